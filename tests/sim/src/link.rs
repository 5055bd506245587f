//! A way between two machines: how long it takes, and whether anything gets through.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::random::Random;

/// A link. Clones are handles of the same link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    random: Random,
    cut: Arc<watch::Sender<bool>>,
    calls_held: Arc<watch::Sender<bool>>,
    /// Milliseconds that a message takes, at least and at most.
    latency_ms: (u64, u64),
}

impl Link {
    pub(crate) fn new(random: Random, latency_ms: (u64, u64)) -> Self {
        let [cut, calls_held] = [(); 2].map(|()| Arc::new(watch::Sender::new(false)));
        Self { random, cut, calls_held, latency_ms }
    }

    /// Cuts it, or joins it again. What is on its way waits, as what a TCP connection sends again
    /// and again.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Holds back calls and the answers to them, or lets them go on. Streams get through.
    pub(crate) fn hold_calls(&self, hold: bool) {
        self.calls_held.send_replace(hold);
    }

    /// Ends when a call, or an answer to one, that is sent now has arrived.
    pub(crate) async fn cross_by_call(&self) {
        let mut held = self.calls_held.subscribe();
        // The sender lives in `self`.
        let _ = held.wait_for(|held| !*held).await;
        self.cross().await;
    }

    /// Ends when a message that is sent now has arrived.
    pub(crate) async fn cross(&self) {
        sleep(self.latency()).await;
        self.passable().await;
    }

    /// Ends when the link is not cut.
    pub(crate) async fn passable(&self) {
        let mut cut = self.cut.subscribe();
        // The sender lives in `self`.
        let _ = cut.wait_for(|cut| !*cut).await;
    }

    pub(crate) fn random(&self) -> &Random {
        &self.random
    }

    fn latency(&self) -> Duration {
        // Now and then a message is late, and so is overtaken by those on other connections.
        let (from, to) = self.latency_ms;
        if self.random.chance(0.01) { self.random.ms(to, to * 20 + 20) } else { self.random.ms(from, to) }
    }
}
