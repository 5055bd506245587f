//! What goes wrong, one thing after the other and some at once, by the seed.

use std::sync::Arc;
use std::time::Duration;

use strandline_metadata::backend::faulty::FaultPlan as EtcdFaults;
use strandline_metadata::backend::{Backend, KeyRange, RangeRequest};
use strandline_storage::store::FaultPlan as S3Faults;
use tokio::time::sleep;

use crate::link::Link;
use crate::node::Node;
use crate::random::Random;
use crate::standalone;
use crate::trace::Trace;

/// A way to make trouble.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Kill,
    KillAll,
    Pause,
    Replace,
    Leave,
    CutEtcd,
    CutS3,
    CutClients,
    EtcdFails,
    WatchFails,
    S3Fails,
    S3Slow,
    ClockJumps,
    Compact,
}

const TROUBLES: &[Trouble] = &[
    Trouble::Kill,
    Trouble::Kill,
    Trouble::Kill,
    Trouble::KillAll,
    Trouble::Pause,
    Trouble::Pause,
    Trouble::Pause,
    Trouble::Replace,
    Trouble::Leave,
    Trouble::CutEtcd,
    Trouble::CutEtcd,
    Trouble::CutS3,
    Trouble::CutClients,
    Trouble::EtcdFails,
    Trouble::EtcdFails,
    Trouble::EtcdFails,
    Trouble::WatchFails,
    Trouble::S3Fails,
    Trouble::S3Fails,
    Trouble::S3Slow,
    Trouble::ClockJumps,
    Trouble::Compact,
];

/// Makes trouble, so many times.
pub(crate) async fn run(
    nodes: Vec<Arc<Node>>,
    backend: Arc<dyn Backend>,
    random: Random,
    trace: Trace,
    count: u32,
) {
    let mut under_way = tokio::task::JoinSet::new();
    for _ in 0..count {
        sleep(random.ms(50, 2500)).await;
        let node = random.pick(&nodes).clone();
        let trouble = *random.pick(TROUBLES);
        let (nodes, backend, trace) = (nodes.clone(), backend.clone(), trace.clone());
        let maker = Maker { node, nodes, backend, random: random.fork(), trace };
        // The next one does not wait for the end of this one.
        under_way.spawn(async move { maker.make(trouble).await });
    }
    while under_way.join_next().await.is_some() {}
}

/// The coordinator of a group dies and comes back, so many times, and whoever did without it hears
/// of that late: two brokers coordinate the group at the same time, and both are registered.
pub(crate) async fn comebacks(nodes: Vec<Arc<Node>>, random: Random, trace: Trace, count: u32) {
    let addresses: Vec<String> = nodes.iter().map(|node| node.address()).collect();
    for _ in 0..count {
        sleep(random.ms(500, 4000)).await;
        let (coordinator, _) = standalone::group(&addresses, &random).coordinator().await;
        let Some(back) = nodes.iter().find(|node| node.id == coordinator) else { continue };
        let others = || nodes.iter().filter(|node| node.id != coordinator);
        back.kill();
        // Until its lease is over, and another one has the group.
        sleep(random.ms(2500, 4000)).await;
        trace.note(&format!("only broker {coordinator} will know that it is back"));
        let watch_delay = Duration::from_millis(300)..=random.ms(500, 3000);
        for node in others() {
            node.set_etcd_plan(EtcdFaults { watch_delay: watch_delay.clone(), ..EtcdFaults::default() });
        }
        back.start();
        sleep(random.ms(1500, 4000)).await;
        for node in others() {
            node.set_etcd_plan(EtcdFaults::default());
        }
    }
}

/// Nothing goes wrong any more.
pub(crate) fn heal(nodes: &[Arc<Node>], trace: &Trace) {
    for node in nodes {
        node.set_etcd_plan(EtcdFaults::default());
        node.s3_faults.clear();
        node.start();
    }
    trace.note("everything heals");
}

/// A trouble that is under way: to whom, and by what chance.
struct Maker {
    node: Arc<Node>,
    nodes: Vec<Arc<Node>>,
    backend: Arc<dyn Backend>,
    random: Random,
    trace: Trace,
}

impl Maker {
    async fn make(&self, trouble: Trouble) {
        let node = &self.node;
        match trouble {
            Trouble::Kill => {
                node.kill();
                self.pause(0, 4000).await;
                node.start();
            }
            Trouble::KillAll => {
                for node in &self.nodes {
                    node.kill();
                }
                self.pause(0, 3000).await;
                for node in &self.nodes {
                    node.start();
                }
            }
            // Up to well beyond the lease.
            Trouble::Pause => {
                node.pause();
                self.pause(100, 7000).await;
                node.resume();
            }
            Trouble::Replace => {
                let Some(number) = node.replace() else { return };
                self.pause(100, 7000).await;
                node.resume_replaced(number);
            }
            Trouble::Leave => {
                node.drain().await;
                self.pause(0, 2000).await;
                node.start();
            }
            Trouble::CutEtcd => self.cut(&node.to_etcd, "etcd").await,
            Trouble::CutS3 => self.cut(&node.to_s3, "S3").await,
            Trouble::CutClients => self.cut(&node.to_clients, "its clients").await,
            Trouble::EtcdFails => self.etcd("etcd fails", self.failing_etcd()).await,
            Trouble::WatchFails => self.etcd("watches fail", self.failing_watches()).await,
            Trouble::S3Fails => self.s3("S3 fails", self.failing_s3()).await,
            Trouble::S3Slow => {
                let delay = Duration::ZERO..self.random.ms(500, 5000);
                self.s3("S3 is slow", S3Faults { delay, ..S3Faults::default() }).await;
            }
            Trouble::ClockJumps => {
                let skew_ms = self.random.between(-3_600_000..=3_600_000);
                self.note(&format!("the clock jumps by {skew_ms} ms"));
                node.clock.set_skew_ms(skew_ms);
                self.pause(500, 8000).await;
                node.clock.set_skew_ms(0);
            }
            Trouble::Compact => self.compact().await,
        }
    }

    fn note(&self, what: &str) {
        self.trace.note(&format!("broker {}: {what}", self.node.id));
    }

    async fn pause(&self, from_ms: u64, to_ms: u64) {
        sleep(self.random.ms(from_ms, to_ms)).await;
    }

    async fn cut(&self, link: &Link, from: &str) {
        self.note(&format!("cut off from {from}"));
        link.set_cut(true);
        self.pause(100, 9000).await;
        link.set_cut(false);
        self.note(&format!("reaches {from} again"));
    }

    async fn etcd(&self, what: &str, plan: EtcdFaults) {
        self.note(what);
        self.node.set_etcd_plan(plan);
        self.pause(300, 6000).await;
        self.node.set_etcd_plan(EtcdFaults::default());
        self.note(&format!("no more: {what}"));
    }

    async fn s3(&self, what: &str, plan: S3Faults) {
        self.note(what);
        self.node.s3_faults.set(plan);
        self.pause(300, 6000).await;
        self.node.s3_faults.clear();
        self.note(&format!("no more: {what}"));
    }

    fn failing_etcd(&self) -> EtcdFaults {
        EtcdFaults {
            unavailable: 0.1,
            answer_lost: 0.15,
            executed_later: 0.1,
            later: Duration::ZERO..=self.random.ms(10, 6000),
            no_space: if self.random.chance(0.2) { 0.2 } else { 0.0 },
            no_space_behind: if self.random.chance(0.2) { 0.1 } else { 0.0 },
            call_delay: Duration::ZERO..=self.random.ms(0, 300),
            ..EtcdFaults::default()
        }
    }

    fn failing_watches(&self) -> EtcdFaults {
        EtcdFaults {
            watch_delay: Duration::ZERO..=self.random.ms(0, 800),
            watch_gap: 0.02,
            watch_stuck: 0.02,
            watch_broken: 0.03,
            watch_compacted: 0.02,
            ..EtcdFaults::default()
        }
    }

    fn failing_s3(&self) -> S3Faults {
        S3Faults {
            error_before: 0.15,
            error_after: 0.15,
            slow_down: 0.05,
            hang: 0.03,
            short_answer: 0.03,
            flipped_byte: 0.03,
            missing: if self.random.chance(0.3) { 0.3 } else { 0.0 },
            delay: Duration::ZERO..self.random.ms(1, 400),
            ..S3Faults::default()
        }
    }

    /// Somebody else compacts etcd, further than the brokers do.
    async fn compact(&self) {
        let keys = KeyRange::prefix("/");
        let request = RangeRequest { keys, revision: None, limit: 1, keys_only: true };
        let Ok(read) = self.backend.range(request).await else { return };
        let revision = read.revision - self.random.between(0..=20);
        if revision > 0 {
            self.trace.note(&format!("the history before revision {revision} is forgotten"));
            // It may be forgotten already.
            let _ = self.backend.compact(revision).await;
        }
    }
}
