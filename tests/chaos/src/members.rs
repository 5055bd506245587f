//! Members of consumer groups, of both protocols, that read a topic and commit what they have read.
//!
//! What was committed and acknowledged is the least that anybody may be told later; and whatever
//! lies below a committed offset has been read by somebody. They come, vanish without a word and
//! come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FetchRequest, GroupId,
    OffsetCommitResponse,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_tests::client::{Client, ClientError, fetch_request, text, topic};
use strandline_tests::history::History;
use strandline_tests::member::Group;
use strandline_tests::records::values;
use strandline_tests::tail;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// Time for a coordinator to answer, faults included.
const PATIENCE: Duration = Duration::from_mins(10);
const HEARTBEAT: Duration = Duration::from_secs(1);
const FETCH_VERSION: i16 = 11;

/// Which protocol a group speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Classic,
    Consumer,
}

/// What all members of a group have in common.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    pub(crate) group: String,
    pub(crate) protocol: Protocol,
    pub(crate) topic: String,
    pub(crate) partitions: i32,
    pub(crate) addresses: Vec<String>,
    pub(crate) history: History,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) stop: watch::Receiver<Phase>,
}

/// What members are asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// They work, and vanish now and then.
    Wild,
    /// They work.
    Calm,
    /// They are not needed any more.
    Over,
}

/// What a group has done.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The highest offset of each partition whose commit was acknowledged.
    committed: BTreeMap<i32, i64>,
    /// What was read, by partition.
    read: BTreeMap<i32, BTreeSet<i64>>,
    /// Commits that were acknowledged.
    commits: u64,
}

/// Why a member does not go on with what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Rebalance,
    Unknown,
    Over,
    Vanishes,
}

/// A member at work: what it was given, and how far it is.
struct Worker {
    group: Group,
    rng: StdRng,
    number: u32,
    id: String,
    generation: i32,
    /// Where it goes on reading, by partition.
    next: BTreeMap<i32, i64>,
    reader: Option<Client>,
    turn: usize,
}

impl Members {
    /// One life after the other, until it is over.
    pub(crate) async fn run(self, number: u32, seed: u64) {
        let group = self.asking();
        let rng = StdRng::seed_from_u64(seed ^ u64::from(number));
        let (next, turn) = (BTreeMap::new(), number as usize);
        let mut worker =
            Worker { group, rng, number, id: String::new(), generation: 0, next, reader: None, turn };
        sleep(Duration::from_millis(worker.rng.random_range(0..3000))).await;
        while self.phase() != Phase::Over {
            let ended = match self.protocol {
                Protocol::Classic => self.classic_generation(&mut worker).await,
                Protocol::Consumer => self.consumer_life(&mut worker).await,
            };
            worker.next.clear();
            match ended {
                Ended::Rebalance => {}
                Ended::Unknown => worker.id.clear(),
                Ended::Over => return,
                Ended::Vanishes => {
                    worker.id.clear();
                    let away = Duration::from_millis(worker.rng.random_range(100..15_000));
                    sleep(away).await;
                }
            }
        }
    }

    fn phase(&self) -> Phase {
        *self.stop.borrow()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From joining to the next rebalance.
    async fn classic_generation(&self, worker: &mut Worker) -> Ended {
        let joined = worker.group.join(&worker.id).await;
        match ResponseError::try_from_code(joined.error_code) {
            None => {}
            Some(ResponseError::UnknownMemberId) => return Ended::Unknown,
            Some(error) => return self.refused(worker, "joins", error).await,
        }
        worker.id = joined.member_id.to_string();
        worker.generation = joined.generation_id;
        let members: Vec<String> = joined.members.iter().map(|m| m.member_id.to_string()).collect();
        let leads = joined.leader.as_str() == worker.id;
        let assignments = if leads { self.assign(&members) } else { BTreeMap::new() };
        let (code, assignment) = worker.group.sync(&worker.id, worker.generation, &assignments).await;
        match ResponseError::try_from_code(code) {
            None => {}
            Some(ResponseError::UnknownMemberId) => return Ended::Unknown,
            Some(_) => return Ended::Rebalance,
        }
        let given = partitions_of(assignment);
        self.take(worker, &given).await;
        let mut beat_at = Instant::now();
        loop {
            if let Some(ended) = self.leaves(worker) {
                return ended;
            }
            if Instant::now() >= beat_at {
                beat_at = Instant::now() + HEARTBEAT;
                let code = worker.group.heartbeat(&worker.id, worker.generation).await;
                if let Some(ended) = ended(code) {
                    return ended;
                }
            }
            if let Some(ended) = self.work(worker).await {
                return ended;
            }
        }
    }

    /// From the first heartbeat to the end of a membership by the new protocol.
    async fn consumer_life(&self, worker: &mut Worker) -> Ended {
        if worker.id.is_empty() {
            worker.id = Uuid::from_u128(worker.rng.random()).to_string();
        }
        worker.generation = 0;
        let mut topic_id = Uuid::nil();
        let mut beat_at = Instant::now();
        loop {
            if let Some(ended) = self.leaves(worker) {
                return ended;
            }
            if Instant::now() >= beat_at {
                beat_at = Instant::now() + HEARTBEAT;
                let answer = match self.beat(worker, topic_id).await {
                    Ok(answer) => answer,
                    Err(ended) => return ended,
                };
                worker.generation = answer.member_epoch;
                if let Some(assignment) = answer.assignment {
                    let mut given = Vec::new();
                    for topic in assignment.topic_partitions {
                        topic_id = topic.topic_id;
                        given.extend(topic.partitions);
                    }
                    // What was taken away is committed already; the next heartbeat says that it is
                    // given up.
                    worker.next.retain(|partition, _| given.contains(partition));
                    self.take(worker, &given).await;
                    beat_at = Instant::now();
                }
            }
            match self.work(worker).await {
                // Its epoch has changed: a heartbeat tells it which it has now.
                Some(Ended::Rebalance) => beat_at = Instant::now(),
                Some(ended) => return ended,
                None => {}
            }
        }
    }

    async fn beat(
        &self,
        worker: &mut Worker,
        topic_id: Uuid,
    ) -> Result<ConsumerGroupHeartbeatResponse, Ended> {
        let partitions: Vec<i32> = worker.next.keys().copied().collect();
        let mut owned = Vec::new();
        if !partitions.is_empty() {
            owned.push(TopicPartitions::default().with_topic_id(topic_id).with_partitions(partitions));
        }
        let mut request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_member_id(text(&worker.id))
            .with_member_epoch(worker.generation)
            .with_rebalance_timeout_ms(-1)
            .with_topic_partitions(Some(owned));
        if worker.generation == 0 {
            request = request
                .with_rebalance_timeout_ms(10_000)
                .with_subscribed_topic_names(Some(vec![topic(&self.topic)]));
        }
        let answer = worker.group.call(&request, 1, |r| r.error_code).await;
        let Ok(answer) = answer else { return Err(Ended::Unknown) };
        match ResponseError::try_from_code(answer.error_code) {
            None => Ok(answer),
            Some(
                ResponseError::UnknownMemberId
                | ResponseError::FencedMemberEpoch
                | ResponseError::StaleMemberEpoch,
            ) => Err(Ended::Unknown),
            Some(error) => Err(self.refused(worker, "says that it lives", error).await),
        }
    }

    async fn refused(&self, worker: &Worker, does: &str, error: ResponseError) -> Ended {
        if !error.is_retriable() && error != ResponseError::RebalanceInProgress {
            let (group, number) = (&self.group, worker.number);
            self.history.anomaly("wrong refusal", format!("member {number} of {group} {does}: {error:?}"));
        }
        sleep(Duration::from_millis(200)).await;
        Ended::Rebalance
    }

    fn leaves(&self, worker: &mut Worker) -> Option<Ended> {
        match self.phase() {
            Phase::Over => Some(Ended::Over),
            Phase::Wild if worker.rng.random_bool(0.003) => Some(Ended::Vanishes),
            Phase::Wild | Phase::Calm => None,
        }
    }

    /// Takes up what is new among the partitions that it was given, where the group has got to.
    async fn take(&self, worker: &mut Worker, given: &[i32]) {
        let known = self.ledger().committed.clone();
        let committed = worker.group.committed().await;
        self.compare(&known, &committed, worker.number);
        for partition in given {
            let at = committed.get(partition).copied().unwrap_or(-1).max(0);
            worker.next.entry(*partition).or_insert(at);
        }
    }

    /// Reads on and commits.
    async fn work(&self, worker: &mut Worker) -> Option<Ended> {
        let before = worker.next.clone();
        if self.read(worker).await.is_err() {
            (worker.reader, worker.turn) = (None, worker.turn + 1);
            sleep(Duration::from_millis(100)).await;
        }
        let moved: Vec<(i32, i64)> =
            worker.next.iter().filter(|(p, o)| before.get(p) != Some(o)).map(|(p, o)| (*p, *o)).collect();
        for (partition, offset) in moved {
            let mut request = worker.group.commit_request(&worker.id, worker.generation, partition, offset);
            request.topics[0].partitions[0].committed_leader_epoch = -1;
            let code = |r: &OffsetCommitResponse| r.topics[0].partitions[0].error_code;
            let answer = worker.group.call(&request, 9, code).await;
            match answer.as_ref().map(code) {
                Err(_) => return Some(Ended::Unknown),
                Ok(0) => {
                    let mut ledger = self.ledger();
                    let highest = ledger.committed.entry(partition).or_insert(0);
                    *highest = (*highest).max(offset);
                    ledger.commits += 1;
                }
                Ok(code) => {
                    if let Some(ended) = ended(code) {
                        return Some(ended);
                    }
                    // Not committed: it is tried again, or the next one is, when there is more.
                    worker.next.insert(partition, before.get(&partition).copied().unwrap_or(0));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        None
    }

    /// One fetch from any broker.
    async fn read(&self, worker: &mut Worker) -> Result<(), ClientError> {
        if worker.next.is_empty() {
            sleep(Duration::from_millis(200)).await;
            return Ok(());
        }
        let address = &self.addresses[worker.turn % self.addresses.len()];
        if worker.reader.is_none() {
            let mut client = Client::connect(address).await?;
            client.set_timeout(Duration::from_secs(4));
            worker.reader = Some(client);
        }
        let Some(client) = &mut worker.reader else { unreachable!("it was just made") };
        let wanted: Vec<(i32, i64)> = worker.next.iter().map(|(p, o)| (*p, *o)).collect();
        let response = client
            .call::<FetchRequest>(&fetch_request(&self.topic, &wanted, 300, 1 << 20), FETCH_VERSION)
            .await?;
        for part in response.responses.into_iter().flat_map(|t| t.partitions) {
            let partition = part.partition_index;
            let Some(next) = worker.next.get_mut(&partition) else { continue };
            let place = format!("{}, {address}, partition {partition}", self.group);
            if let Some(error) = ResponseError::try_from_code(part.error_code) {
                if !error.is_retriable() {
                    let what = format!("{place}: {error:?} at {next}, which was asked for in order");
                    self.history.anomaly("poll skip", what);
                }
                return Err(ClientError::Kafka(error));
            }
            for (offset, value) in values(part.records.unwrap_or_default()) {
                if offset < *next {
                    continue;
                }
                if offset != *next {
                    self.history.anomaly("poll skip", format!("{place}: offset {offset} instead of {next}"));
                }
                *next = offset + 1;
                tail::see(&self.history, partition, offset, &value, &place);
                self.ledger().read.entry(partition).or_default().insert(offset);
            }
        }
        Ok(())
    }

    /// Whatever was acknowledged before somebody asked must be in the answer, or more.
    fn compare(&self, known: &BTreeMap<i32, i64>, committed: &BTreeMap<i32, i64>, number: u32) {
        for (partition, at_least) in known {
            let told = committed.get(partition).copied().unwrap_or(-1);
            if told < *at_least {
                let what = format!(
                    "member {number} of {} is told {told} for partition {partition}, {at_least} is committed",
                    self.group
                );
                self.history.anomaly("committed offset went back", what);
            }
        }
    }

    /// How many records the group has not committed yet: these are the ends of all partitions.
    pub(crate) async fn left(&self, ends: &[i64]) -> i64 {
        let committed = self.asking().committed().await;
        (0..).zip(ends).map(|(p, end)| end - committed.get(&p).copied().unwrap_or(0).max(0)).sum()
    }

    /// The group as somebody sees it who is no member.
    fn asking(&self) -> Group {
        let mut group = Group::new(&self.group, self.addresses.clone());
        group.topic.clone_from(&self.topic);
        group.patience = PATIENCE;
        group
    }

    /// Checks what is committed in the end, and that everything below it was read. Gives the number
    /// of commits.
    pub(crate) async fn check(&self) -> u64 {
        let known = self.ledger().committed.clone();
        let committed = self.asking().committed().await;
        self.compare(&known, &committed, u32::MAX);
        self.check_read(&committed);
        self.ledger().commits
    }

    /// Whatever lies below a committed offset was read by a member.
    fn check_read(&self, committed: &BTreeMap<i32, i64>) {
        let (ledger, nothing) = (self.ledger(), BTreeSet::new());
        for (partition, end) in committed {
            let read = ledger.read.get(partition).unwrap_or(&nothing);
            if let Some(skipped) = (0..*end).find(|offset| !read.contains(offset)) {
                let what = format!(
                    "{}: {end} is committed for partition {partition}, and nobody has read {skipped}",
                    self.group
                );
                self.history.anomaly("poll skip", what);
            }
        }
    }

    /// Where the group is, for a person.
    pub(crate) fn place(&self) -> String {
        format!("{} has committed {:?}", self.group, self.ledger().committed)
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
        ResponseError::RebalanceInProgress
        | ResponseError::IllegalGeneration
        | ResponseError::StaleMemberEpoch => Some(Ended::Rebalance),
        ResponseError::UnknownMemberId
        | ResponseError::FencedInstanceId
        | ResponseError::FencedMemberEpoch => Some(Ended::Unknown),
        // Tried again.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> (Members, watch::Sender<Phase>) {
        let phase = watch::Sender::new(Phase::Wild);
        let members = Members {
            group: "g".to_owned(),
            protocol: Protocol::Classic,
            topic: "t".to_owned(),
            partitions: 2,
            addresses: Vec::new(),
            history: History::default(),
            ledger: Arc::default(),
            stop: phase.subscribe(),
        };
        (members, phase)
    }

    fn found(members: &Members) -> Vec<&'static str> {
        members.history.lock().anomalies.drain(..).map(|a| a.name).collect()
    }

    #[test]
    fn a_committed_offset_that_goes_back_is_found() {
        let (members, _phase) = members();
        let known = BTreeMap::from([(0, 5), (1, 0)]);
        members.compare(&known, &BTreeMap::from([(0, 5), (1, 3)]), 0);
        assert!(found(&members).is_empty());
        members.compare(&known, &BTreeMap::from([(0, 4), (1, 3)]), 0);
        assert_eq!(found(&members), ["committed offset went back"]);
        // What is not there at all has gone back, too.
        members.compare(&known, &BTreeMap::from([(1, 3)]), 0);
        assert_eq!(found(&members), ["committed offset went back"]);
    }

    #[test]
    fn what_was_committed_and_read_by_nobody_is_found() {
        let (members, _phase) = members();
        members.ledger().read.insert(0, BTreeSet::from([0, 1, 2, 4]));
        members.check_read(&BTreeMap::from([(0, 3)]));
        assert!(found(&members).is_empty());
        members.check_read(&BTreeMap::from([(0, 5)]));
        assert_eq!(found(&members), ["poll skip"]);
        members.check_read(&BTreeMap::from([(1, 1)]));
        assert_eq!(found(&members), ["poll skip"]);
    }

    #[test]
    fn every_partition_goes_to_one_member() {
        let (members, _phase) = members();
        let assigned = members.assign(&["a".to_owned(), "b".to_owned(), "c".to_owned()]);
        let mut all: Vec<i32> = assigned.into_values().flat_map(partitions_of).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
    }
}
