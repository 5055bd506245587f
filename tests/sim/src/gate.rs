//! Stops a whole process between any two of its steps, and lets it go on, as SIGSTOP and SIGCONT
//! do.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;

/// Holds up every future that is behind it. Clones are handles of the same gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    closed: bool,
    /// Whoever wanted to go on meanwhile, in that order.
    held_up: Vec<Waker>,
}

impl Gate {
    /// Nothing behind the gate runs from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Everything behind the gate goes on.
    pub(crate) fn open(&self) {
        let held_up = {
            let mut shared = self.lock();
            shared.closed = false;
            std::mem::take(&mut shared.held_up)
        };
        held_up.into_iter().for_each(Waker::wake);
    }

    /// Puts a future behind the gate.
    pub(crate) fn hold(&self, future: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        Box::pin(Held { gate: self.clone(), future })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Held {
    gate: Gate,
    future: BoxFuture<'static, ()>,
}

impl Future for Held {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.gate.lock();
        if shared.closed {
            if !shared.held_up.iter().any(|waker| waker.will_wake(context.waker())) {
                shared.held_up.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        drop(shared);
        self.future.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_behind_a_closed_gate_does_nothing_and_then_goes_on() {
        let gate = Gate::default();
        let steps = Arc::new(AtomicU32::new(0));
        let counted = steps.clone();
        tokio::spawn(gate.hold(Box::pin(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })));
        tokio::time::sleep(Duration::from_millis(105)).await;
        assert_eq!(steps.load(Ordering::Relaxed), 10);
        gate.close();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(steps.load(Ordering::Relaxed), 10);
        gate.open();
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert!(steps.load(Ordering::Relaxed) > 10);
    }
}
