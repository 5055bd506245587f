//! Which topics match the patterns of subscriptions (KIP-848), for all groups of this broker.
//!
//! A pattern is matched against the name of every topic once, and from then on only against those
//! that are created; groups with the same pattern share it. That may take long, since a client
//! writes the pattern: it is done beside the connections' threads, a few topics at a time, so that
//! patterns take turns. A group goes on meanwhile with what it knew, as in Kafka, and asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regex::bytes::Regex;
use strandline_metadata::names::{TopicChange, TopicMap, topic_changes};
use strandline_metadata::replica::Replica;
use strandline_metadata::turns::Turns;
use uuid::Uuid;

use super::{Matching, Topics};
use crate::compute::{Compute, Kind};
use crate::limits::{
    MATCHED_NAME_OVERHEAD_BYTES, MATCHED_PATTERNS, MATCHED_PATTERNS_BYTES, NAMES_MATCHED_AT_ONCE,
    UNITS_PER_ELEMENT,
};
use crate::tasks::{TaskKind, TaskSet};

/// The topics that the broker knows, and what matches patterns among them.
#[derive(Clone, Debug)]
pub(crate) struct KnownTopics {
    replica: Replica,
    patterns: Arc<Mutex<KnownPatterns>>,
    compute: Arc<Compute>,
    tasks: TaskSet,
}

#[derive(Debug, Default)]
struct KnownPatterns {
    matched: BTreeMap<String, MatchedPattern>,
    /// What `matched` takes, about.
    bytes: usize,
    /// Counts questions: the number of the last one tells which pattern was not asked for longest.
    asked: u64,
}

/// What one pattern matches.
#[derive(Debug, Default)]
struct MatchedPattern {
    /// Among these topics.
    topics: TopicMap,
    names: Arc<BTreeSet<String>>,
    /// Whether it was ever matched to the end.
    is_known: bool,
    /// Whether it is being matched against newer ones.
    is_pending: bool,
    asked: u64,
    /// What the names take, about.
    bytes: usize,
}

impl KnownTopics {
    pub(crate) fn new(replica: Replica, compute: Arc<Compute>, tasks: TaskSet) -> Self {
        Self { replica, patterns: Arc::default(), compute, tasks }
    }

    fn lock(&self) -> MutexGuard<'_, KnownPatterns> {
        self.patterns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Matches a pattern against what has changed since it was matched last.
    async fn refresh(self, pattern: String, regex: Regex, now: TopicMap) {
        let (before, names) = {
            let known = self.lock();
            let Some(matched) = known.matched.get(&pattern) else { return };
            (matched.topics.clone(), matched.names.clone())
        };
        let (created, deleted) = changes(&before, &now).await;
        let mut matching = Vec::new();
        for some in created.chunks(NAMES_MATCHED_AT_ONCE) {
            let (regex, some) = (regex.clone(), some.to_vec());
            let work = move || {
                let matches = |name: &String| regex.is_match(name.as_bytes());
                some.into_iter().filter(matches).collect::<Vec<_>>()
            };
            matching.extend(self.compute.run(Kind::Pattern, work).await);
        }
        let names = if matching.is_empty() && deleted.is_empty() {
            names
        } else {
            let merge = move || {
                let mut names = (*names).clone();
                for gone in deleted {
                    names.remove(&gone);
                }
                names.extend(matching);
                Arc::new(names)
            };
            self.compute.run(Kind::Pattern, merge).await
        };
        let bytes = names_bytes(&names).await;
        let mut known = self.lock();
        if let Some(matched) = known.matched.get_mut(&pattern) {
            (matched.topics, matched.names) = (now, names);
            (matched.is_known, matched.is_pending) = (true, false);
            let before = std::mem::replace(&mut matched.bytes, bytes);
            known.bytes = known.bytes - before + bytes;
            known.keep_within(MATCHED_PATTERNS_BYTES);
        }
    }
}

/// The names of topics that were created, and of those that were deleted.
async fn changes(before: &TopicMap, now: &TopicMap) -> (Vec<String>, Vec<String>) {
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    let mut turns = Turns::default();
    for change in topic_changes(before, now) {
        turns.spend(UNITS_PER_ELEMENT).await;
        match change {
            TopicChange::Created(name) => created.push(name.to_owned()),
            TopicChange::Deleted(name) => deleted.push(name.to_owned()),
        }
    }
    (created, deleted)
}

/// What a set of names takes, about.
async fn names_bytes(names: &BTreeSet<String>) -> usize {
    let (mut bytes, mut turns) = (0, Turns::default());
    for name in names {
        turns.spend(1).await;
        bytes += name.len() + MATCHED_NAME_OVERHEAD_BYTES;
    }
    bytes
}

impl KnownPatterns {
    /// Makes room for one more. Says whether there is room.
    fn make_room(&mut self) -> bool {
        self.matched.len() < MATCHED_PATTERNS || self.forget_oldest()
    }

    /// Forgets patterns until the others take no more than this. The one that was asked for last
    /// stays in any case.
    fn keep_within(&mut self, bytes: usize) {
        while self.bytes > bytes && self.matched.len() > 1 && self.forget_oldest() {}
    }

    /// Forgets the pattern that was not asked for longest. Says whether there was one that is not
    /// being matched.
    fn forget_oldest(&mut self) -> bool {
        let idle = self.matched.iter().filter(|(_, matched)| !matched.is_pending);
        let oldest = idle.min_by_key(|(_, matched)| matched.asked).map(|(pattern, _)| pattern.clone());
        let Some(forgotten) = oldest.and_then(|pattern| self.matched.remove(&pattern)) else { return false };
        self.bytes -= forgotten.bytes;
        true
    }
}

impl Topics for KnownTopics {
    fn by_name(&self, name: &str) -> Option<(Uuid, u32)> {
        self.replica.read(|view| view.names.topic(name).map(|t| (t.value.topic_id, t.value.partitions)))
    }

    fn name(&self, id: Uuid) -> Option<String> {
        self.replica.read(|view| view.names.topic_by_id(id).map(|t| t.name.clone()))
    }

    fn matching(&self, pattern: &str, regex: &Regex) -> Option<Matching> {
        let now = self.replica.read(|view| view.names.topics().clone());
        let mut known = self.lock();
        known.asked += 1;
        let asked = known.asked;
        if !known.matched.contains_key(pattern) {
            if !known.make_room() {
                return None;
            }
            known.matched.insert(pattern.to_owned(), MatchedPattern::default());
        }
        let matched = known.matched.get_mut(pattern)?;
        matched.asked = asked;
        let is_current = matched.is_known && matched.topics.ptr_eq(&now);
        if !is_current && !matched.is_pending {
            matched.is_pending = true;
            let refresh = self.clone().refresh(pattern.to_owned(), regex.clone(), now);
            self.tasks.start(TaskKind::Background, "match a pattern", refresh);
        }
        matched.is_known.then(|| Matching { names: matched.names.clone(), is_current })
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
    use kafka_protocol::messages::{DeleteTopicsRequest, TopicName};
    use tokio::task::yield_now;

    use super::*;
    use crate::api::text;
    use crate::patterns::whole;
    use crate::testing::{TestClient, World};

    /// Asks until the answer is current.
    async fn current(topics: &KnownTopics, pattern: &str) -> Vec<String> {
        let regex = whole(pattern).unwrap();
        for _ in 0..1_000 {
            if let Some(Matching { names, is_current: true }) = topics.matching(pattern, &regex) {
                return names.iter().cloned().collect();
            }
            yield_now().await;
        }
        panic!("{pattern} is never matched");
    }

    #[tokio::test]
    async fn what_matches_is_known_a_little_later_and_follows_the_topics() {
        let opened = World::new().broker(1, &[]).await;
        let mut client = TestClient::connect(&opened.broker);
        for topic in ["logs-a", "logs-b", "other"] {
            client.create_topic(topic, 1, &[]).await;
        }
        let topics = &opened.broker.groups.env.topics;
        let regex = whole("logs-.*").unwrap();
        assert!(topics.matching("logs-.*", &regex).is_none(), "nobody waits for it");
        assert_eq!(current(topics, "logs-.*").await, ["logs-a", "logs-b"]);
        client.create_topic("logs-c", 1, &[]).await;
        let gone = DeleteTopicState::default().with_name(Some(TopicName(text("logs-a"))));
        client.call(&DeleteTopicsRequest::default().with_topics(vec![gone]), 6).await;
        let Some(Matching { names, is_current: false }) = topics.matching("logs-.*", &regex) else {
            panic!("what was known stands until then")
        };
        assert_eq!(names.len(), 2);
        assert_eq!(current(topics, "logs-.*").await, ["logs-b", "logs-c"]);
    }

    #[test]
    fn patterns_that_match_much_give_way_before_there_are_many() {
        let mut known = KnownPatterns::default();
        let each = MATCHED_PATTERNS_BYTES / 4;
        for asked in 0..10 {
            let matched = MatchedPattern { asked, bytes: each, is_known: true, ..MatchedPattern::default() };
            known.matched.insert(format!("p{asked}"), matched);
            known.bytes += each;
            known.keep_within(MATCHED_PATTERNS_BYTES);
        }
        assert_eq!(known.matched.keys().collect::<Vec<_>>(), ["p6", "p7", "p8", "p9"]);
        assert_eq!(known.bytes, 4 * each);
        known.keep_within(0);
        assert_eq!(known.matched.keys().collect::<Vec<_>>(), ["p9"], "it would be matched again and again");
    }

    #[tokio::test]
    async fn what_is_remembered_of_a_pattern_is_counted() {
        let opened = World::new().broker(1, &[]).await;
        let mut client = TestClient::connect(&opened.broker);
        let topics = &opened.broker.groups.env.topics;
        for count in 1..=3 {
            client.create_topic(&format!("logs-{count}"), 1, &[]).await;
            assert_eq!(current(topics, "logs-.*").await.len(), count);
            assert_eq!(topics.lock().bytes, count * ("logs-1".len() + MATCHED_NAME_OVERHEAD_BYTES));
        }
    }

    #[tokio::test]
    async fn so_many_patterns_are_remembered() {
        let opened = World::new().broker(1, &[]).await;
        let topics = &opened.broker.groups.env.topics;
        for i in 0..MATCHED_PATTERNS + 5 {
            assert!(current(topics, &format!("p{i}")).await.is_empty());
        }
        let known = topics.lock();
        assert_eq!(known.matched.len(), MATCHED_PATTERNS);
        assert!(!known.matched.contains_key("p4") && known.matched.contains_key("p5"));
    }
}
