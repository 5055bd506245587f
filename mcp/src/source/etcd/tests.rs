use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::backend::{KeyValue, Watch};
use strandline_metadata::keys::Key;
use strandline_metadata::values::group::{
    ClassicGroupValue, ClassicStateValue, CommittedOffset, GroupState, GroupValue, OffsetsValue,
};
use strandline_metadata::values::transaction::{
    OpenTransactionsValue, TransactionStateValue, TransactionValue,
};
use strandline_metadata::values::watermarks::{Watermarks, WatermarksValue};
use strandline_metadata::values::{
    BrokerValue, ClusterValue, ConfigsValue, LeaderValue, TopicValue, VALUE_FORMAT, Value as _,
};
use tokio::sync::Notify;
use uuid::Uuid;

use super::*;
use crate::limits::REREAD_AFTER;

/// etcd's model: every revision since the compacted one, and what was asked.
#[derive(Debug, Default)]
struct History {
    revisions: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
    asked: Vec<&'static str>,
    /// Counted wrongly by so much.
    miscounts: i64,
    down: bool,
}

#[derive(Debug, Default)]
struct Model {
    history: Mutex<History>,
    /// The answer to the next request of changes is held back until it is notified.
    hold: Mutex<Option<Arc<Notify>>>,
    /// Random changes with this seed come right after each answer.
    churn: Mutex<Option<StdRng>>,
}

#[derive(Debug, Default)]
struct Still(AtomicI64);

impl Clock for Still {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn keyspace() -> Keyspace {
    Keyspace::new("t").unwrap()
}

impl History {
    fn newest(&self) -> i64 {
        self.revisions.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    fn change(&mut self, change: impl FnOnce(i64, &mut BTreeMap<Bytes, KeyValue>)) {
        let (mut kvs, revision) = (self.at(self.newest()), self.newest() + 1);
        change(revision, &mut kvs);
        self.revisions.insert(revision, kvs);
    }

    fn put(&mut self, key: &Key, value: Vec<u8>) {
        let key = keyspace().encode(key);
        self.change(|revision, kvs| {
            let before = kvs.get(&key);
            let create_revision = before.map_or(revision, |kv| kv.create_revision);
            let version = before.map_or(1, |kv| kv.version + 1);
            let (value, mod_revision) = (value.into(), revision);
            let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision, version, lease: 0 };
            kvs.insert(key, kv);
        });
    }

    fn delete(&mut self, key: &Key) {
        let key = keyspace().encode(key);
        if self.at(self.newest()).contains_key(&key) {
            self.change(|_, kvs| drop(kvs.remove(&key)));
        }
    }

    fn at(&self, revision: i64) -> BTreeMap<Bytes, KeyValue> {
        self.revisions.get(&revision).cloned().unwrap_or_default()
    }

    /// What a range has, at a revision or now.
    fn read(&self, keys: &KeyRange, revision: Option<i64>) -> Result<Vec<KeyValue>, BackendError> {
        if self.down {
            return Err(BackendError::Unavailable("it is down".to_owned()));
        }
        let at = revision.unwrap_or(self.newest());
        let oldest = self.revisions.first_key_value().map_or(1, |(revision, _)| *revision);
        if at < oldest {
            return Err(BackendError::Compacted { oldest });
        }
        Ok(self.at(at).into_values().filter(|kv| keys.contains(&kv.key)).collect())
    }
}

/// One of few keys of every family, and a value for it; some values cannot be read.
#[expect(clippy::too_many_lines, reason = "it is a table with an entry per key")]
fn random_put(random: &mut StdRng) -> (Key, Vec<u8>) {
    let which = random.random_range(0..6_u128);
    // No two topics have one id; one that is created again may have another than before.
    let (name, id) = (format!("n{which}"), Uuid::from_u128(10 * which + random.random_range(0..2)));
    let (number, part) = (random.random_range(0..1_000_i64), random.random_range(0..2));
    let partitions = random.random_range(1..4);
    let configs = BTreeMap::from([("retention.ms".to_owned(), number.to_string())]);
    let key = match random.random_range(0..16) {
        0 => Key::Cluster,
        1 => Key::Broker(i32::from(part == 1)),
        2 => Key::BrokerConfig(None),
        3 => Key::GroupConfig(name.clone()),
        4 => Key::Group(name.clone()),
        5 => Key::Leader("jobs".to_owned()),
        6 => Key::Head(number % 3),
        7 => Key::Commits,
        8 => Key::ProducerIds,
        9 => Key::Topic(name.clone()),
        10 => Key::Watermarks { topic_id: id, part },
        11 => Key::ClientMetrics(name.clone()),
        12 => Key::Transaction(name.clone()),
        13 => Key::OpenTransactions,
        _ => Key::Offsets { group: name.clone(), topic: format!("n{}", number % 6), part },
    };
    if random.random_bool(0.05) {
        return (key, b"{\"format\":99}".to_vec());
    }
    let format = VALUE_FORMAT;
    let value = match &key {
        Key::Cluster => ClusterValue {
            format,
            cluster_id: format!("c{number}"),
            feature_level: 1,
            unknown: std::collections::BTreeMap::new(),
        }
        .encode(),
        Key::Broker(node_id) => BrokerValue {
            format,
            node_id: *node_id,
            process_id: id,
            host: name,
            port: 9092,
            zone: String::new(),
            version: number.to_string(),
            metrics_url: String::new(),
            registered_at_ms: number,
            draining: part == 1,
        }
        .encode(),
        Key::Leader(_) => LeaderValue { format, node_id: 1, incarnation: number }.encode(),
        Key::Group(_) => {
            let classic = ClassicGroupValue {
                state: ClassicStateValue::Empty,
                protocol_type: "consumer".to_owned(),
                generation: part as i32,
                protocol: None,
                leader: None,
                members: BTreeMap::new(),
            };
            let group = GroupState::Classic(classic);
            GroupValue { format, writer: 1, write: 1, state_since_ms: number, group }.encode()
        }
        Key::Topic(_) => TopicValue {
            format,
            topic_id: id,
            partitions,
            configs,
            created_at_ms: number,
            unknown: std::collections::BTreeMap::new(),
            replication_factor: None,
        }
        .encode(),
        Key::Watermarks { .. } => {
            let marks = Watermarks {
                log_start: 0,
                end: number,
                last_stable: number,
                bytes: 1,
                last_timestamp_ms: number,
            };
            WatermarksValue { format, revision: number, partitions: vec![marks; 2] }.encode()
        }
        Key::Offsets { .. } => {
            let commit = CommittedOffset {
                after: 0,
                offset: number,
                leader_epoch: -1,
                time_ms: number,
                metadata: String::new(),
                expires_ms: None,
            };
            let partitions = BTreeMap::from([(part, commit)]);
            OffsetsValue { format, writer: 1, write: 1, topic_id: id, partitions }.encode()
        }
        Key::Transaction(_) => TransactionValue {
            format,
            producer_id: number,
            epoch: 0,
            last_epoch: -1,
            previous_producer_id: -1,
            timeout_ms: 60_000,
            state: TransactionStateValue::Empty,
            groups: BTreeSet::new(),
            updated_ms: number,
        }
        .encode(),
        Key::OpenTransactions => {
            OpenTransactionsValue { format, open: number.unsigned_abs(), oldest: Vec::new() }.encode()
        }
        _ => ConfigsValue { format, configs }.encode(),
    };
    (key, value)
}

/// Something happens: a put, a deletion, a deletion and the same key again, one key for another, a
/// compaction.
fn happen(history: &mut History, random: &mut StdRng) {
    let (key, value) = random_put(random);
    match random.random_range(0..20) {
        0 => history.delete(&key),
        1 => {
            history.delete(&key);
            history.put(&key, value);
        }
        2 => {
            let (other, _) = random_put(random);
            history.delete(&other);
            history.put(&key, value);
        }
        3 => {
            history.put(&key, value);
            history.delete(&key);
        }
        4 => {
            let before = history.newest() - random.random_range(0..20);
            history.revisions.retain(|revision, _| *revision >= before);
        }
        _ => history.put(&key, value),
    }
}

impl Model {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    fn put(&self, key: &Key, value: Vec<u8>) {
        self.history().put(key, value);
    }

    fn churn(&self) {
        if let Some(random) = self.churn.lock().unwrap().as_mut() {
            // A compaction would come between the two ranges of a call.
            let (key, value) = random_put(random);
            let mut history = self.history();
            if random.random_bool(0.2) { history.delete(&key) } else { history.put(&key, value) }
        }
    }

    /// What was asked since this was asked before.
    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.history().asked)
    }

    fn source(self: &Arc<Self>) -> EtcdSource {
        let metrics = Metrics::new().unwrap();
        EtcdSource::new(self.clone(), keyspace(), Arc::new(Still::default()), metrics, Duration::from_secs(5))
    }

    /// The view of one who keeps nothing, as of a revision.
    fn fresh(&self, need: Need, revision: i64) -> View {
        let (families, mut view) = (Families::new(keyspace()), View { revision, ..View::default() });
        for (has, range) in families.spans(need) {
            let kvs = self.history().read(&range, Some(revision)).unwrap();
            CachedView::whole(&families, has, revision, Instant::now(), kvs, None).show(has, &mut view);
        }
        view
    }
}

#[async_trait]
impl ReadBackend for Model {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, BackendError> {
        let answer = {
            let mut history = self.history();
            history.asked.push("whole");
            let kvs = history.read(&request.keys, request.revision)?;
            RangeResponse { revision: history.newest(), kvs, more: false }
        };
        self.churn();
        Ok(answer)
    }

    async fn changed(&self, request: ChangedRequest) -> Result<ChangedResponse, BackendError> {
        let answer = {
            let mut history = self.history();
            history.asked.push("changed");
            let mut kvs = history.read(&request.keys, request.revision)?;
            let count = kvs.len().saturating_add_signed(history.miscounts as isize);
            kvs.retain(|kv| kv.mod_revision > request.after);
            ChangedResponse { revision: history.newest(), kvs, count }
        };
        let hold = self.hold.lock().unwrap().take();
        if let Some(hold) = hold {
            hold.notified().await;
        }
        self.churn();
        Ok(answer)
    }

    async fn watch(&self, _: KeyRange, _: i64) -> Result<Box<dyn Watch>, BackendError> {
        Err(BackendError::Unavailable("nothing is watched".to_owned()))
    }
}

const NEEDS: [Need; 10] = [
    Need::PLAIN,
    Need::SNAPSHOT,
    Need::TOPICS,
    Need::ENDS,
    Need::PLAIN_AND_TOPICS,
    Need::PLAIN_AND_ENDS,
    Need::OFFSETS,
    Need::GROUPS,
    Need::GROUPS_AND_TOPICS,
    Need::ALL,
];

#[tokio::test]
async fn after_random_changes_a_view_is_what_a_fresh_one_would_be() {
    let mut incremental = 0;
    for seed in 0..10 {
        let mut random = StdRng::seed_from_u64(seed);
        let model = Arc::new(Model::default());
        let source = model.source();
        for _ in 0..60 {
            for _ in 0..random.random_range(0..8) {
                happen(&mut model.history(), &mut random);
            }
            if random.random_bool(0.02) {
                model.history().down = true;
                source.read(Need::ALL).await.unwrap_err();
                model.history().down = false;
            }
            // Every other seed, more happens between the two ranges of a call.
            *model.churn.lock().unwrap() = (seed % 2 == 1).then(|| StdRng::seed_from_u64(random.random()));
            let need = NEEDS[random.random_range(0..NEEDS.len())];
            model.asked();
            let view = source.read(need).await.unwrap();
            let asked = model.asked();
            let spans = Families::new(keyspace()).spans(need).len();
            assert!(asked.len() <= 2 * spans, "{asked:?}");
            incremental += usize::from(!asked.contains(&"whole"));
            assert_eq!(*view, model.fresh(need, view.revision), "seed {seed}, {need:?}, after {asked:?}");
        }
    }
    assert!(incremental > 100, "only {incremental} reads needed nothing whole");
}

fn topic(name: &str) -> (Key, Vec<u8>) {
    let (configs, topic_id) = (BTreeMap::new(), Uuid::from_u128(u128::from(name.as_bytes()[0])));
    let value = TopicValue {
        format: VALUE_FORMAT,
        topic_id,
        partitions: 1,
        configs,
        created_at_ms: 0,
        unknown: std::collections::BTreeMap::new(),
        replication_factor: None,
    };
    (Key::Topic(name.to_owned()), value.encode())
}

/// A cluster of these topics, and a source that has read them.
async fn read_once(topics: &[&str]) -> (Arc<Model>, EtcdSource) {
    let model = Arc::new(Model::default());
    for name in topics {
        let (key, value) = topic(name);
        model.put(&key, value);
    }
    let source = model.source();
    source.read(Need::PLAIN_AND_TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["whole", "whole"]);
    (model, source)
}

fn names(view: &View) -> Vec<&str> {
    view.topics.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn what_did_not_change_is_not_read_again_and_a_deletion_costs_one_range() {
    let (model, source) = read_once(&["a", "b"]).await;
    let view = source.read(Need::PLAIN_AND_TOPICS).await.unwrap();
    assert_eq!((names(&view), model.asked()), (vec!["a", "b"], vec!["changed", "changed"]));
    let (key, value) = topic("c");
    model.put(&key, value);
    let view = source.read(Need::TOPICS).await.unwrap();
    assert_eq!((names(&view), model.asked()), (vec!["a", "b", "c"], vec!["changed"]));
    model.history().delete(&key);
    let view = source.read(Need::PLAIN_AND_TOPICS).await.unwrap();
    assert_eq!((names(&view), model.asked()), (vec!["a", "b"], vec!["changed", "changed", "whole"]));
    source.read(Need::PLAIN_AND_TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["changed", "changed"]);
    // A family that is not known makes the whole range unknown.
    source.read(Need::ENDS).await.unwrap();
    assert_eq!(model.asked(), ["whole"]);
}

#[tokio::test]
async fn an_answer_that_does_not_add_up_is_not_used() {
    let (model, source) = read_once(&["a"]).await;
    for miscounts in [1, -1] {
        model.history().miscounts = miscounts;
        let view = source.read(Need::TOPICS).await.unwrap();
        assert_eq!((names(&view), model.asked()), (vec!["a"], vec!["changed", "whole"]));
    }
}

#[tokio::test]
async fn after_an_error_everything_is_read_whole() {
    let (model, source) = read_once(&["a"]).await;
    model.history().down = true;
    source.read(Need::PLAIN).await.unwrap_err();
    model.history().down = false;
    model.asked();
    source.read(Need::TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["whole"], "although not it was in error");
}

/// The same keys at the same revisions, with other values: what a backup of another time may look
/// like.
fn restore(model: &Model, revisions: usize) {
    let mut history = model.history();
    history.revisions.clear();
    for name in ["x", "b", "a"].iter().cycle().take(revisions) {
        let (key, value) = topic(name);
        history.put(&key, value);
    }
}

#[tokio::test]
async fn a_history_that_goes_back_is_another_one() {
    let (model, source) = read_once(&["a", "b", "c", "d"]).await;
    restore(&model, 2);
    let view = source.read(Need::TOPICS).await.unwrap();
    assert_eq!((names(&view), model.asked()), (vec!["b", "x"], vec!["changed", "whole"]));
    // What is remembered is of the new one.
    restore(&model, 3);
    let view = source.read(Need::TOPICS).await.unwrap();
    assert_eq!((names(&view), model.asked()), (vec!["a", "b", "x"], vec!["changed"]));
}

#[tokio::test]
async fn a_watch_that_ends_makes_the_source_forget() {
    let (model, source) = read_once(&["a", "b", "c"]).await;
    // As many revisions and as many keys: nothing that is asked would show it.
    restore(&model, 3);
    let changes = crate::source::changes::Changes::default();
    let following =
        changes.follow(crate::source::changes::Family::Topic, source.clone(), Arc::new(Still::default()));
    assert!(timeout(Duration::from_millis(100), following).await.is_err(), "it goes on for ever");
    let view = source.read(Need::TOPICS).await.unwrap();
    assert_eq!(names(&view), ["a", "b", "x"]);
}

#[tokio::test(start_paused = true)]
async fn now_and_then_everything_is_read_whole() {
    let (model, source) = read_once(&["a"]).await;
    tokio::time::advance(REREAD_AFTER / 2).await;
    source.read(Need::TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["changed"]);
    // The read between did not make it younger.
    tokio::time::advance(REREAD_AFTER / 2).await;
    source.read(Need::TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["whole"]);
    source.read(Need::TOPICS).await.unwrap();
    assert_eq!(model.asked(), ["changed"]);
}

#[tokio::test]
async fn an_answer_that_another_call_overtook_is_of_its_own_revision() {
    let (model, source) = read_once(&["a"]).await;
    let hold = Arc::new(Notify::new());
    *model.hold.lock().unwrap() = Some(hold.clone());
    let mut slow = Box::pin(source.read(Need::TOPICS));
    assert!(futures::poll!(&mut slow).is_pending());
    let (key, value) = topic("b");
    model.put(&key, value);
    let fast = source.read(Need::PLAIN_AND_TOPICS).await.unwrap();
    assert_eq!(names(&fast), ["a", "b"]);
    hold.notify_one();
    let slow = slow.await.unwrap();
    assert_eq!(names(&slow), ["a"], "as of revision {}", slow.revision);
    assert_eq!(model.asked(), ["changed", "changed", "changed", "whole"]);
    let view = source.read(Need::TOPICS).await.unwrap();
    assert_eq!(
        (names(&view), model.asked()),
        (vec!["a", "b"], vec!["changed"]),
        "what is kept is the newest"
    );
}
