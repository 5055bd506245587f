//! Members of one consumer group that come, go and vanish, and what they are told about committed
//! offsets.
//!
//! A member commits, for each partition that it is given, numbers that only grow, from what is
//! committed when it is given it. So whatever was acknowledged to anybody must be the least that
//! anybody is told later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use strandline_tests::history::History;
use strandline_tests::member::Group;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::random::Random;

/// The group.
const GROUP: &str = "g";
/// Time for the coordinator to answer, faults included.
const PATIENCE: Duration = Duration::from_mins(3);

/// The highest offset of each partition whose commit was acknowledged.
pub(crate) type Ledger = Arc<Mutex<BTreeMap<i32, i64>>>;

/// What all members have in common.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    pub(crate) addresses: Vec<String>,
    pub(crate) partitions: i32,
    pub(crate) history: History,
    pub(crate) ledger: Ledger,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Why a member does not go on in its generation.
enum Ended {
    Rebalance,
    Unknown,
    Stopped,
    Vanishes,
}

impl Members {
    /// One member after the other, until it is over.
    pub(crate) async fn run(self, number: u32, random: Random) {
        let mut id = String::new();
        sleep(random.ms(0, 2000)).await;
        while !*self.stop.borrow() {
            let mut group = Group::new(GROUP, self.addresses.clone());
            group.patience = PATIENCE;
            match self.generation(&mut group, &mut id, number, &random).await {
                Ended::Rebalance => {}
                Ended::Unknown => id.clear(),
                Ended::Stopped => return,
                Ended::Vanishes => {
                    id.clear();
                    sleep(random.ms(100, 4000)).await;
                }
            }
        }
    }

    async fn generation(&self, group: &mut Group, id: &mut String, number: u32, random: &Random) -> Ended {
        let joined = group.join(id).await;
        match ResponseError::try_from_code(joined.error_code) {
            None => {}
            Some(ResponseError::UnknownMemberId) => return Ended::Unknown,
            Some(error) if error.is_retriable() => {
                sleep(Duration::from_millis(200)).await;
                return Ended::Rebalance;
            }
            Some(error) => {
                self.history.anomaly("wrong refusal", format!("member {number} joins: {error:?}"));
                return Ended::Stopped;
            }
        }
        *id = joined.member_id.to_string();
        let generation = joined.generation_id;
        let members: Vec<String> = joined.members.iter().map(|m| m.member_id.to_string()).collect();
        let leads = joined.leader.as_str() == id;
        let assignments = if leads { self.assign(&members) } else { BTreeMap::new() };
        let (code, assignment) = group.sync(id, generation, &assignments).await;
        match ResponseError::try_from_code(code) {
            None => {}
            Some(ResponseError::UnknownMemberId) => return Ended::Unknown,
            Some(_) => return Ended::Rebalance,
        }
        let mut next = BTreeMap::new();
        let known = self.acknowledged();
        let committed = group.committed().await;
        self.compare(&known, &committed, number);
        for partition in partitions_of(assignment) {
            next.insert(partition, committed.get(&partition).copied().unwrap_or(-1).max(0));
        }
        self.work(group, id, generation, next, random).await
    }

    /// Commits and says that it lives, until something else is to be done.
    async fn work(
        &self,
        group: &mut Group,
        id: &str,
        generation: i32,
        mut next: BTreeMap<i32, i64>,
        random: &Random,
    ) -> Ended {
        let mut heartbeat_at = Instant::now();
        loop {
            if *self.stop.borrow() {
                return Ended::Stopped;
            }
            if random.chance(0.01) {
                return Ended::Vanishes;
            }
            if Instant::now() >= heartbeat_at {
                heartbeat_at = Instant::now() + Duration::from_millis(500);
                if let Some(ended) = ended(group.heartbeat(id, generation).await) {
                    return ended;
                }
            }
            for (&partition, position) in &mut next {
                *position += random.between(1..=5);
                let code = group.commit(id, generation, partition, *position).await;
                if code == 0 {
                    let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                    let highest = ledger.entry(partition).or_insert(0);
                    *highest = (*highest).max(*position);
                } else if let Some(ended) = ended(code) {
                    return ended;
                }
            }
            sleep(random.ms(20, 300)).await;
        }
    }

    fn acknowledged(&self) -> BTreeMap<i32, i64> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whatever was acknowledged before somebody asked must be in the answer, or more.
    fn compare(&self, known: &BTreeMap<i32, i64>, committed: &BTreeMap<i32, i64>, number: u32) {
        for (partition, at_least) in known {
            let told = committed.get(partition).copied().unwrap_or(-1);
            if told < *at_least {
                let what = format!(
                    "member {number} is told {told} for partition {partition}, {at_least} is committed"
                );
                self.history.anomaly("committed offset went back", what);
            }
        }
    }

    /// What is committed in the end.
    pub(crate) async fn check(&self) {
        let mut group = Group::new(GROUP, self.addresses.clone());
        group.patience = PATIENCE;
        let known = self.acknowledged();
        let committed = group.committed().await;
        self.compare(&known, &committed, u32::MAX);
    }

    /// Every partition to one member.
    fn assign(&self, members: &[String]) -> BTreeMap<String, Bytes> {
        let mut assignments: BTreeMap<String, BytesMut> =
            members.iter().map(|m| (m.clone(), BytesMut::new())).collect();
        for (partition, member) in (0..self.partitions).zip(members.iter().cycle()) {
            assignments.entry(member.clone()).or_default().put_i32(partition);
        }
        assignments.into_iter().map(|(member, bytes)| (member, bytes.freeze())).collect()
    }
}

fn partitions_of(mut assignment: Bytes) -> Vec<i32> {
    let mut partitions = Vec::new();
    while assignment.remaining() >= 4 {
        partitions.push(assignment.get_i32());
    }
    partitions
}

/// What the code of an answer means for a member.
fn ended(code: i16) -> Option<Ended> {
    match ResponseError::try_from_code(code)? {
        ResponseError::RebalanceInProgress | ResponseError::IllegalGeneration => Some(Ended::Rebalance),
        ResponseError::UnknownMemberId | ResponseError::FencedInstanceId => Some(Ended::Unknown),
        // Tried again.
        _ => None,
    }
}
