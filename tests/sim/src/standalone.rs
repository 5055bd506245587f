//! Consumers that give themselves a partition each and are members of nothing; their group only
//! keeps their offsets, all in one key.
//!
//! Each looks for the coordinator anew every time, and asks another broker first, so that two of
//! them find two coordinators while brokers do not agree. Nobody else commits to its partition, so
//! it is told at least what was acknowledged to it last.

use std::time::Duration;

use strandline_tests::history::History;
use strandline_tests::member::Group;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::random::Random;

/// The group that they commit to.
pub(crate) const GROUP: &str = "s";
/// Time for the coordinator to answer, faults included.
const PATIENCE: Duration = Duration::from_mins(3);

/// One of these consumers.
#[derive(Debug)]
pub(crate) struct Standalone {
    pub(crate) addresses: Vec<String>,
    pub(crate) partition: i32,
    pub(crate) history: History,
    pub(crate) stop: watch::Receiver<bool>,
}

/// The group, by a client that asks any broker for its coordinator.
pub(crate) fn group(addresses: &[String], random: &Random) -> Group {
    let (before, from) = addresses.split_at(random.below(addresses.len()));
    let mut group = Group::new(GROUP, [from, before].concat());
    group.patience = PATIENCE;
    group
}

impl Standalone {
    /// Commits numbers that grow, and looks what is committed, until it is over and once more.
    pub(crate) async fn run(self, random: Random) {
        let (mut next, mut acknowledged) = (0, -1);
        loop {
            let is_over = *self.stop.borrow();
            if is_over || random.chance(0.3) {
                let committed = group(&self.addresses, &random).committed().await;
                let told = committed.get(&self.partition).copied().unwrap_or(-1);
                if told < acknowledged {
                    let partition = self.partition;
                    let what =
                        format!("{told} is committed for partition {partition}, after {acknowledged} was");
                    self.history.anomaly("committed offset went back", what);
                }
            }
            if is_over {
                return;
            }
            next += 1;
            // Not to be a member is to have no id, and a generation that none has.
            if group(&self.addresses, &random).commit("", -1, self.partition, next).await == 0 {
                acknowledged = next;
            }
            sleep(random.ms(10, 150)).await;
        }
    }
}
