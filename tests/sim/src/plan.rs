//! What a seed stands for: the cluster, who works on it, and what goes wrong.

use crate::random::Random;

/// Everything about a run that is drawn before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Brokers.
    pub brokers: i32,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Producers with a producer id.
    pub idempotent: u32,
    /// Producers without.
    pub plain: u32,
    /// Members that come and go in one consumer group.
    pub members: u32,
    /// Faults, one after the other, before everything heals.
    pub faults: u32,
    /// Whether a second topic is deleted and created again all the time.
    pub topics_churn: bool,
    /// Whether it is waited, in the end, until orphans are collected.
    pub waits_for_orphans: bool,
    /// Log records after which a snapshot is due.
    pub snapshot_records: u32,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let random = Random::new(seed);
        Self {
            seed,
            brokers: 2 + random.below(3) as i32,
            partitions: 1 + random.below(4) as i32,
            idempotent: 1 + random.below(3) as u32,
            plain: random.below(2) as u32,
            members: random.below(4) as u32,
            faults: 4 + random.below(12) as u32,
            topics_churn: random.chance(0.4),
            snapshot_records: 10 + random.below(60) as u32,
            waits_for_orphans: random.chance(0.1),
        }
    }
}
