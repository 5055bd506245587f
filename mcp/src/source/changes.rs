//! What changed: topics, configs, brokers and groups, as watches of those four prefixes saw it.
//! Bounded: the newest changes of each kind, since this process started.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use strandline_metadata::backend::{BackendError, Event, KeyRange, KeyValue, RangeRequest, ReadBackend};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::values::group::{GroupState, GroupValue};
use strandline_metadata::values::{BrokerValue, ConfigsValue, TopicValue, Value as _};
use tracing::debug;

use super::etcd::EtcdSource;
use crate::clock::Clock;
use crate::limits::CHANGES_KEPT;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A topic.
    Topic,
    /// The cluster's dynamic defaults, or configs of a group or of client metrics.
    Config,
    /// A broker's registration.
    Broker,
    /// A group.
    Group,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Topic, Self::Config, Self::Broker, Self::Group];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Config => "config",
            Self::Broker => "broker",
            Self::Group => "group",
        }
    }

    fn range(self, keys: &Keyspace) -> KeyRange {
        match self {
            Self::Topic => keys.topics(),
            Self::Config => keys.configs(),
            Self::Broker => keys.brokers(),
            Self::Group => keys.groups(),
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The revision at which it happened.
    pub revision: i64,
    /// When it was seen here, ms since 1970.
    pub seen_at_ms: i64,
    /// What kind of thing changed.
    pub family: Family,
    /// Which: the topic's name, the group's id, the broker's node id.
    pub name: String,
    /// What happened: `created`, `changed`, `deleted`.
    pub action: &'static str,
    /// What of it, before and after.
    pub details: BTreeMap<String, (Value, Value)>,
}

/// The newest changes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    changes: BTreeMap<Family, VecDeque<Change>>,
    since_ms: BTreeMap<Family, i64>,
    gaps: u64,
}

/// The facts of a value that are compared.
type Facts = BTreeMap<String, Value>;

impl Changes {
    /// The newest changes of some kinds, the newest first.
    pub fn recent(&self, families: &[Family]) -> Vec<Change> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Change> =
            families.iter().filter_map(|f| shared.changes.get(f)).flatten().cloned().collect();
        all.sort_by_key(|c| std::cmp::Reverse(c.revision));
        all
    }

    /// Since when changes of these kinds are known without a gap, ms since 1970; `None` if one is
    /// not watched yet.
    pub fn since_ms(&self, families: &[Family]) -> Option<i64> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let since: Option<Vec<i64>> = families.iter().map(|f| shared.since_ms.get(f).copied()).collect();
        since?.into_iter().max()
    }

    /// Follows one kind of keys until the end of the process.
    pub(crate) async fn follow(self, family: Family, etcd: EtcdSource, clock: Arc<dyn Clock>) {
        let mut known: Option<BTreeMap<String, Facts>> = None;
        loop {
            let (reader, keys) = (etcd.reader().as_ref(), etcd.keys());
            if let Err(error) = self.follow_once(family, reader, keys, clock.as_ref(), &mut known).await {
                debug!(%error, family = family.as_str(), "a watch ended");
                // If every member of etcd was stopped, it may come back with the state of a backup.
                etcd.forget();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn follow_once(
        &self,
        family: Family,
        reader: &dyn ReadBackend,
        keys: &Keyspace,
        clock: &dyn Clock,
        known: &mut Option<BTreeMap<String, Facts>>,
    ) -> Result<(), BackendError> {
        let range = family.range(keys);
        let request = RangeRequest { keys: range.clone(), revision: None, limit: 0, keys_only: false };
        let read = reader.range(request).await?;
        let now = read.kvs.iter().filter_map(|kv| facts(keys, kv)).collect::<BTreeMap<_, _>>();
        if let Some(before) = known {
            // What changed while nobody watched is seen by comparing; in between may have been
            // more.
            self.compare(family, before, &now, read.revision, clock.now_ms());
        } else {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.since_ms.insert(family, clock.now_ms());
        }
        let known = known.insert(now);
        let mut watch = reader.watch(range, read.revision + 1).await?;
        loop {
            let batch = watch.next().await?;
            for event in &batch.events {
                let seen_at_ms = clock.now_ms();
                match event {
                    Event::Put(kv) => {
                        let Some((name, facts)) = facts(keys, kv) else { continue };
                        let before = known.insert(name.clone(), facts.clone());
                        let action = if before.is_none() { "created" } else { "changed" };
                        self.note(
                            family,
                            name,
                            action,
                            before.as_ref(),
                            Some(&facts),
                            kv.mod_revision,
                            seen_at_ms,
                        );
                    }
                    Event::Delete { key, revision } => {
                        let Some(name) = keys.parse(key).and_then(|k| name_of(&k)) else { continue };
                        let before = known.remove(&name);
                        self.note(family, name, "deleted", before.as_ref(), None, *revision, seen_at_ms);
                    }
                }
            }
        }
    }

    fn compare(
        &self,
        family: Family,
        before: &BTreeMap<String, Facts>,
        now: &BTreeMap<String, Facts>,
        revision: i64,
        at_ms: i64,
    ) {
        for (name, facts) in now {
            match before.get(name) {
                None => self.note(family, name.clone(), "created", None, Some(facts), revision, at_ms),
                Some(old) if old != facts => {
                    self.note(family, name.clone(), "changed", Some(old), Some(facts), revision, at_ms);
                }
                Some(_) => {}
            }
        }
        for (name, facts) in before.iter().filter(|(name, _)| !now.contains_key(*name)) {
            self.note(family, name.clone(), "deleted", Some(facts), None, revision, at_ms);
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).gaps += 1;
    }

    #[expect(clippy::too_many_arguments, reason = "a change has that many parts")]
    fn note(
        &self,
        family: Family,
        name: String,
        action: &'static str,
        before: Option<&Facts>,
        after: Option<&Facts>,
        revision: i64,
        seen_at_ms: i64,
    ) {
        let none = Facts::new();
        let (old, new) = (before.unwrap_or(&none), after.unwrap_or(&none));
        let mut details = BTreeMap::new();
        for fact in old.keys().chain(new.keys()) {
            let pair =
                (old.get(fact).cloned().unwrap_or_default(), new.get(fact).cloned().unwrap_or_default());
            if pair.0 != pair.1 {
                details.insert(fact.clone(), pair);
            }
        }
        if action == "changed" && details.is_empty() {
            return;
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = shared.changes.entry(family).or_default();
        if changes.len() >= CHANGES_KEPT {
            changes.pop_front();
        }
        changes.push_back(Change { revision, seen_at_ms, family, name, action, details });
        // What was dropped shortens what is known.
        if changes.len() >= CHANGES_KEPT
            && let Some(oldest) = changes.front().map(|c| c.seen_at_ms)
        {
            shared.since_ms.insert(family, oldest);
        }
    }
}

fn name_of(key: &Key) -> Option<String> {
    Some(match key {
        Key::Topic(name) | Key::Group(name) => name.clone(),
        Key::Broker(node_id) => node_id.to_string(),
        Key::BrokerConfig(None) => "cluster defaults".to_owned(),
        Key::BrokerConfig(Some(node_id)) => format!("broker {node_id}"),
        Key::GroupConfig(group) => format!("group {group}"),
        Key::ClientMetrics(name) => format!("client-metrics {name}"),
        _ => return None,
    })
}

/// The facts of a value, under the name of what it is about.
fn facts(keys: &Keyspace, kv: &KeyValue) -> Option<(String, Facts)> {
    let key = keys.parse(&kv.key)?;
    let name = name_of(&key)?;
    let mut facts = Facts::new();
    let configs = |facts: &mut Facts, configs: &BTreeMap<String, String>| {
        for (name, value) in configs {
            facts.insert(format!("config {name}"), crate::foreign::shown_config(name, value).into());
        }
    };
    match key {
        Key::Topic(_) => {
            let topic = TopicValue::decode(&kv.value).ok()?;
            facts.insert("partitions".to_owned(), topic.partitions.into());
            facts.insert("topic_id".to_owned(), topic.topic_id.to_string().into());
            configs(&mut facts, &topic.configs);
        }
        Key::Broker(_) => {
            let broker = BrokerValue::decode(&kv.value).ok()?;
            facts.insert("incarnation".to_owned(), kv.create_revision.into());
            facts.insert("version".to_owned(), crate::foreign::clean(&broker.version).into());
            facts.insert("draining".to_owned(), broker.draining.into());
        }
        Key::Group(_) => {
            let group = GroupValue::decode(&kv.value).ok()?;
            match &group.group {
                GroupState::Classic(classic) => {
                    facts.insert("state".to_owned(), json!(classic.state));
                    facts.insert("generation".to_owned(), classic.generation.into());
                    facts.insert("members".to_owned(), classic.members.len().into());
                }
                GroupState::Consumer(consumer) => {
                    facts.insert("epoch".to_owned(), consumer.epoch.into());
                    facts.insert("assignment_epoch".to_owned(), consumer.assignment_epoch.into());
                    facts.insert("members".to_owned(), consumer.members.len().into());
                }
            }
        }
        Key::BrokerConfig(_) | Key::GroupConfig(_) | Key::ClientMetrics(_) => {
            configs(&mut facts, &ConfigsValue::decode(&kv.value).ok()?.configs);
        }
        _ => return None,
    }
    Some((name, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(changes: &Changes, n: i64, before: Option<&Facts>, after: Option<&Facts>) {
        let action = match (before, after) {
            (None, _) => "created",
            (_, None) => "deleted",
            _ => "changed",
        };
        changes.note(Family::Topic, format!("t{n}"), action, before, after, n, n);
    }

    #[test]
    fn only_what_differs_is_a_detail_and_nothing_is_no_change() {
        let changes = Changes::default();
        let one = Facts::from([("a".to_owned(), json!(1)), ("b".to_owned(), json!(2))]);
        let two = Facts::from([("a".to_owned(), json!(1)), ("b".to_owned(), json!(3))]);
        note(&changes, 1, Some(&one), Some(&one));
        note(&changes, 2, Some(&one), Some(&two));
        let recent = changes.recent(&Family::ALL);
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].details, BTreeMap::from([("b".to_owned(), (json!(2), json!(3)))]));
    }

    #[test]
    fn the_newest_are_kept_and_it_is_said_since_when() {
        let changes = Changes::default();
        assert_eq!(changes.since_ms(&[Family::Topic]), None);
        let one = Facts::from([("a".to_owned(), json!(1))]);
        for n in 0..=1_000 {
            note(&changes, n, None, Some(&one));
        }
        let recent = changes.recent(&[Family::Topic]);
        assert_eq!((recent.len(), recent[0].revision), (CHANGES_KEPT, 1_000));
        assert_eq!(changes.since_ms(&[Family::Topic]), Some(1));
    }
}
