//! What a seed stands for: the cluster, who works on it, and what goes wrong.

use crate::random::Random;

/// Tells the two sources of a seed apart.
const RARE: u64 = 0x7261_7265;

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
    /// How often a coordinator dies and comes back while the others do not hear of it; consumers
    /// that are members of nothing commit offsets meanwhile.
    pub comebacks: u32,
    /// Whether the answer to a checkpoint may come when another broker has written newer snapshots.
    pub late_checkpoints: bool,
    /// How often, in the end, etcd is restored from a backup, the bucket is another one, and
    /// objects change places: once or never.
    pub strangers: u32,
    /// How often all producers are silent for so long that they are forgotten.
    pub silences: u32,
    /// Compacted topics: one or none.
    pub tables: u32,
    /// Whether there are transactions: once or never.
    pub transactions: u32,
    /// The seed of these, so that all else is drawn as without them.
    pub rare_seed: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let random = Random::new(seed);
        // What few seeds have is drawn elsewhere, so that the others stay what they were without
        // it.
        let rare = Random::new(seed ^ RARE);
        let has_comebacks = rare.chance(0.12);
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
            comebacks: if has_comebacks { 1 + rare.below(3) as u32 } else { 0 },
            late_checkpoints: rare.chance(0.12),
            rare_seed: rare.number(),
            strangers: u32::from(rare.chance(0.12)),
            // Drawn last, so that the others are what they were without it.
            silences: u32::from(rare.chance(0.1)),
            tables: u32::from(rare.chance(0.25)),
            transactions: u32::from(rare.chance(0.3)),
        }
    }
}
