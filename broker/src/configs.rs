//! Describing and altering configs: of topics, brokers, groups, and of metrics that clients push.
//!
//! Topic configs are stored with the topic. Of broker configs, the defaults of topics can be
//! altered, for the whole cluster (the resource with an empty name) or for one broker, where they
//! count for what that broker takes and for the partitions that clients are led to there;
//! everything else is the broker's own configuration and read-only. Configs of groups and of client
//! metrics have keys of their own.

mod client_metrics;
mod group;
mod kafka_names;

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;

use crate::Broker;
use crate::config::SETTINGS;
use crate::group_config;
use crate::limits;
use crate::limits::{CONFIG_RESOURCE_NAME_CHARS, CONFIG_VALUE_BYTES};
use crate::telemetry;
use crate::topic_config::{self, ConfigType, TOPIC_CONFIGS};
use crate::topics::{self, TopicError};

/// Kafka's numbers for what a config belongs to.
pub(crate) const TOPIC: i8 = 2;
pub(crate) const BROKER: i8 = 4;
pub(crate) const BROKER_LOGGER: i8 = 8;
pub(crate) const CLIENT_METRICS: i8 = 16;
pub(crate) const GROUP: i8 = 32;

/// Where a value comes from, by Kafka's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Topic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
    ClientMetrics = 7,
    Group = 8,
}

/// A config with all that can be said of it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) source: Source,
    pub(crate) read_only: bool,
    pub(crate) sensitive: bool,
    pub(crate) kind: ConfigType,
    pub(crate) documentation: String,
    /// Every place that gives a value, the one that counts first: name, value, source.
    pub(crate) synonyms: Vec<(String, String, Source)>,
}

impl Entry {
    /// A config that can be altered. The first of `synonyms`, of which there is at least one, gives
    /// its value.
    fn of(name: &str, kind: ConfigType, help: &str, synonyms: Vec<(String, String, Source)>) -> Self {
        let (value, source) = synonyms
            .first()
            .map_or((String::new(), Source::Default), |(_, value, source)| (value.clone(), *source));
        Self {
            name: name.to_owned(),
            value,
            source,
            read_only: false,
            sensitive: false,
            kind,
            documentation: help.to_owned(),
            synonyms,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Topic(String),
    /// One broker, or the defaults of all.
    Broker(Option<i32>),
    Group(String),
    ClientMetrics(String),
}

/// Which of several alterations of a resource would come first is not said.
pub(crate) fn named_twice() -> TopicError {
    TopicError::new(ResponseError::InvalidRequest, "Each resource must appear at most once.")
}

impl Resource {
    /// A resource by Kafka's type and name.
    pub(crate) fn parse(kind: i8, name: &str) -> Result<Self, TopicError> {
        let invalid = |why: &str| Err(TopicError::new(ResponseError::InvalidRequest, why));
        match kind {
            TOPIC => Ok(Self::Topic(name.to_owned())),
            BROKER if name.is_empty() => Ok(Self::Broker(None)),
            BROKER => {
                let wrong =
                    || TopicError::new(ResponseError::InvalidRequest, "a broker is named by its node id");
                name.parse().map(|id| Self::Broker(Some(id))).map_err(|_| wrong())
            }
            GROUP => match group_config::check_group_id(name, false) {
                Ok(()) => Ok(Self::Group(name.to_owned())),
                Err(error) => invalid(&error.to_string()),
            },
            CLIENT_METRICS if name.is_empty() || name.chars().count() > CONFIG_RESOURCE_NAME_CHARS => {
                invalid("the name of a client-metrics resource has 1 to 249 characters")
            }
            CLIENT_METRICS => Ok(Self::ClientMetrics(name.to_owned())),
            BROKER_LOGGER => {
                invalid("loggers have no configs here: what is logged is set with --log when a broker starts")
            }
            _ => invalid("configs belong to topics, brokers, groups and client metrics here"),
        }
    }
}

/// The configs of a resource.
pub(crate) async fn describe(broker: &Broker, resource: &Resource) -> Result<Vec<Entry>, TopicError> {
    match resource {
        Resource::Topic(name) => {
            topics::check_name(name)?;
            let find = || broker.replica.read(|view| view.names.topic(name).map(|t| t.value.configs.clone()));
            if find().is_none() {
                topics::learn(broker, std::slice::from_ref(name), false).await;
            }
            let set = find().ok_or_else(|| {
                TopicError::new(ResponseError::UnknownTopicOrPartition, "there is no such topic")
            })?;
            Ok(topic_entries(broker, &set))
        }
        Resource::Broker(Some(id)) if *id != broker.config.node_id => Err(other_broker(broker, *id)),
        Resource::Broker(Some(id)) => Ok(broker_entries(broker, Some(*id))),
        Resource::Broker(None) => {
            let (dynamic, _) = broker.replica.read(|view| view.names.broker_configs(None));
            let entries = broker_entries(broker, None);
            Ok(entries.into_iter().filter(|e| dynamic.contains_key(&e.name)).collect())
        }
        Resource::Group(name) => {
            let (set, _) = broker.replica.read(|view| view.names.group_configs(name));
            Ok(group::entries(broker, &set))
        }
        Resource::ClientMetrics(name) => {
            let (set, _) = stored_client_metrics(broker, name);
            Ok(client_metrics::entries(&set))
        }
    }
}

fn other_broker(broker: &Broker, asked: i32) -> TopicError {
    let own = broker.config.node_id;
    let why = format!("Unexpected broker id, expected {own}, but received {asked}");
    TopicError::new(ResponseError::InvalidRequest, why)
}

/// Configs of a client-metrics resource, with its key's mod revision; 0 while there is none.
fn stored_client_metrics(broker: &Broker, name: &str) -> (BTreeMap<String, String>, i64) {
    broker.replica.read(|view| {
        let known = view.names.client_metrics().get(name);
        known.map_or_else(Default::default, |(value, revision)| (value.configs.clone(), *revision))
    })
}

/// The configs of a topic with these values set on it.
pub(crate) fn topic_entries(broker: &Broker, set: &BTreeMap<String, String>) -> Vec<Entry> {
    let node_id = Some(broker.config.node_id);
    let (own, dynamic) =
        broker.replica.read(|view| (view.names.broker_configs(node_id).0, view.names.broker_configs(None).0));
    let entries = TOPIC_CONFIGS.iter().map(|config| {
        let mut synonyms = Vec::new();
        if let Some(value) = set.get(config.name) {
            synonyms.push((config.name.to_owned(), value.clone(), Source::Topic));
        }
        if let Some(synonym) = config.synonym {
            if let Some(value) = own.get(synonym) {
                synonyms.push((synonym.to_owned(), value.clone(), Source::DynamicBroker));
            }
            if let Some(value) = dynamic.get(synonym) {
                synonyms.push((synonym.to_owned(), value.clone(), Source::DynamicDefaultBroker));
            }
            if let Some(value) =
                broker.config.topics.configs.get(config.name).filter(|v| *v != config.default)
            {
                synonyms.push((synonym.to_owned(), value.clone(), Source::StaticBroker));
            }
        }
        let default_name = config.synonym.unwrap_or(config.name);
        synonyms.push((default_name.to_owned(), config.default.to_owned(), Source::Default));
        Entry::of(config.name, config.kind, &config.documentation(), synonyms)
    });
    entries.collect()
}

/// The configs of this broker, or, without a node id, those that all brokers have unless they have
/// their own.
fn broker_entries(broker: &Broker, node_id: Option<i32>) -> Vec<Entry> {
    let of = |node_id| broker.replica.read(|view| view.names.broker_configs(node_id).0);
    let (dynamic, altered) = (of(None), node_id.map(|_| of(node_id)).unwrap_or_default());
    let own = SETTINGS.iter().zip(&broker.config.effective).map(|(setting, (name, value))| {
        let source = if *value == setting.default { Source::Default } else { Source::StaticBroker };
        Entry {
            name: name.clone(),
            value: if setting.secret { String::new() } else { value.clone() },
            source,
            read_only: true,
            sensitive: setting.secret,
            kind: ConfigType::String,
            documentation: format!("{} ({})", setting.help, setting.unit),
            synonyms: vec![(name.clone(), value.clone(), source)],
        }
    });
    let mut entries: Vec<Entry> = own.collect();
    for (name, kind, default, value, help) in alterable(broker) {
        let mut synonyms = Vec::new();
        if let Some(set) = altered.get(name) {
            synonyms.push((name.to_owned(), set.clone(), Source::DynamicBroker));
        }
        if let Some(set) = dynamic.get(name) {
            synonyms.push((name.to_owned(), set.clone(), Source::DynamicDefaultBroker));
        }
        if value != default {
            synonyms.push((name.to_owned(), value, Source::StaticBroker));
        }
        synonyms.push((name.to_owned(), default.to_owned(), Source::Default));
        entries.push(Entry::of(name, kind, help, synonyms));
    }
    entries.extend(kafka_names::entries(broker));
    entries
}

/// A broker config that can be altered: name, type, default, this broker's own value, what it is
/// for.
type Alterable = (&'static str, ConfigType, &'static str, String, &'static str);

/// Broker configs of Kafka that tools set and remove again, here accepted for that and without
/// effect.
const THROTTLES: [&str; 3] = [
    "follower.replication.throttled.rate",
    "leader.replication.throttled.rate",
    "replica.alter.log.dirs.io.max.bytes.per.second",
];
/// What they are by default: no limit.
const UNTHROTTLED: &str = "9223372036854775807";
const THROTTLE_HELP: &str = "Accepted for compatibility and without effect: records are replicated by the object store; there is nothing to slow down.";

/// The broker configs that can be altered.
fn alterable(broker: &Broker) -> Vec<Alterable> {
    let defaults = TOPIC_CONFIGS.iter().filter_map(|config| {
        let own = broker.config.topics.configs.get(config.name).map_or(config.default, String::as_str);
        Some((config.synonym?, config.kind, config.default, own.to_owned(), config.help))
    });
    let partitions = broker.config.topics.partitions.to_string();
    let help = "Default number of partitions of a new topic.";
    let throttles =
        THROTTLES.map(|name| (name, ConfigType::Long, UNTHROTTLED, UNTHROTTLED.to_owned(), THROTTLE_HELP));
    defaults.chain([("num.partitions", ConfigType::Int, "1", partitions, help)]).chain(throttles).collect()
}

fn check_broker_config(name: &str, value: &str) -> Result<(), String> {
    if name == "num.partitions" {
        let valid = value.parse::<u32>().is_ok_and(|n| (1..=MAX_PARTITIONS_PER_TOPIC).contains(&n));
        return valid.then_some(()).ok_or_else(|| format!("{name}: {value:?} is not between 1 and 100,000"));
    }
    if THROTTLES.contains(&name) {
        let valid = value.parse::<i64>().is_ok_and(|rate| rate >= 0);
        return valid.then_some(()).ok_or_else(|| format!("{name}: {value:?} is not a rate in bytes/s"));
    }
    match TOPIC_CONFIGS.iter().find(|c| c.synonym == Some(name)) {
        Some(config) => topic_config::check(config.name, value),
        None => Err(format!("Cannot update these configs dynamically: Set({name})")),
    }
}

/// One change of one config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Alteration {
    Set(String),
    Delete,
    Append(String),
    Subtract(String),
}

/// How the configs are to change.
#[derive(Clone, Debug)]
pub(crate) enum Alter {
    /// Exactly these are set afterwards.
    Replace(Vec<(String, String)>),
    /// These change, the others stay.
    Incremental(Vec<(String, Alteration)>),
}

/// Alters the configs of a resource, in one transaction that fails if somebody else changed them
/// meanwhile.
pub(crate) async fn alter(
    broker: &Broker,
    resource: &Resource,
    alter: Alter,
    validate_only: bool,
) -> Result<(), TopicError> {
    let is_current = broker.replica.barrier().await.is_ok();
    let raced = TopicError::new(
        ResponseError::RequestTimedOut,
        "the configs were changed by others at the same time; try again",
    );
    let keys = broker.replica.keys();
    let change = match resource {
        Resource::Topic(name) => {
            topics::check_name(name)?;
            let topic = broker.replica.read(|view| view.names.topic(name).cloned());
            let topic =
                topic.ok_or_else(|| topics::unknown(ResponseError::UnknownTopicOrPartition, is_current))?;
            let effective = |name: &str| {
                topic
                    .value
                    .configs
                    .get(name)
                    .cloned()
                    .or_else(|| topic_config::find(name).map(|c| c.default.to_owned()))
            };
            let rules = Rules { effective: &effective, check: topic_config::check, is_list };
            let altered = rules.apply(&topic.value.configs, alter)?;
            strandline_metadata::topics::configure(keys, &topic, altered)
        }
        Resource::Broker(Some(id)) if *id != broker.config.node_id => return Err(other_broker(broker, *id)),
        Resource::Broker(node_id) => {
            let (current, revision) = broker.replica.read(|view| view.names.broker_configs(*node_id));
            let effective = |name: &str| current.get(name).cloned();
            let rules = Rules { effective: &effective, check: check_broker_config, is_list };
            // As in Kafka, whatever is wrong with the config of a broker.
            let wrong = |e: TopicError| TopicError::new(ResponseError::InvalidRequest, e.message);
            let altered = rules.apply(&current, alter).map_err(wrong)?;
            strandline_metadata::topics::configure_broker(keys, *node_id, revision, altered)
        }
        Resource::Group(name) => {
            let ((current, revision), groups) = broker
                .replica
                .read(|view| (view.names.group_configs(name), view.names.configured_groups().len()));
            let rules = Rules { effective: &|_| None, check: group_config::check, is_list: |_| false };
            let altered = rules.apply(&current, alter)?;
            group_config::check_together(&broker.config.groups.settings, &altered).map_err(invalid)?;
            check_room(revision, &altered, groups, limits::GROUP_CONFIG_RESOURCES)?;
            strandline_metadata::topics::configure_group(keys, name, revision, altered)
        }
        Resource::ClientMetrics(name) => {
            let (current, revision) = stored_client_metrics(broker, name);
            let resources = broker.replica.read(|view| view.names.client_metrics().len());
            let rules =
                Rules { effective: &|_| None, check: telemetry::check, is_list: client_metrics::is_list };
            let altered = rules.apply(&current, alter)?;
            check_room(revision, &altered, resources, limits::CLIENT_METRICS_RESOURCES)?;
            strandline_metadata::topics::configure_client_metrics(keys, name, revision, altered)
        }
    };
    if validate_only {
        return Ok(());
    }
    topics::commit(broker, change).await.map_err(|e| topics::commit_error(&e, raced))?;
    // Without a record to wait for, the barrier's read does not cover the change; its revision
    // comes with the watch.
    Ok(())
}

fn invalid(why: String) -> TopicError {
    TopicError::new(ResponseError::InvalidConfig, why)
}

/// Whether a resource that has no key yet may get one.
fn check_room(
    revision: i64,
    altered: &BTreeMap<String, String>,
    known: usize,
    most: usize,
) -> Result<(), TopicError> {
    if revision == 0 && !altered.is_empty() && known >= most {
        let why = format!("there are {most} resources of this type, as many as there may be");
        return Err(TopicError::new(ResponseError::PolicyViolation, why));
    }
    Ok(())
}

/// What holds for the configs of one type of resource.
struct Rules<'a> {
    /// The value that counts while none is set: what a list is appended to.
    effective: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a config takes a value; else a sentence why not.
    check: fn(&str, &str) -> Result<(), String>,
    is_list: fn(&str) -> bool,
}

impl Rules<'_> {
    fn check(&self, name: &str, value: &str) -> Result<(), TopicError> {
        check_length(name, value)?;
        (self.check)(name, value).map_err(invalid)
    }

    fn apply(
        &self,
        current: &BTreeMap<String, String>,
        alter: Alter,
    ) -> Result<BTreeMap<String, String>, TopicError> {
        let alterations = match alter {
            Alter::Replace(entries) => {
                let mut replaced = BTreeMap::new();
                for (name, value) in entries {
                    self.check(&name, &value)?;
                    replaced.insert(name, value);
                }
                return Ok(replaced);
            }
            Alter::Incremental(alterations) => alterations,
        };
        let mut altered = current.clone();
        for (name, alteration) in alterations {
            if let Alteration::Set(value) | Alteration::Append(value) | Alteration::Subtract(value) =
                &alteration
            {
                check_length(&name, value)?;
            }
            let value = match alteration {
                Alteration::Delete => {
                    altered.remove(&name);
                    continue;
                }
                Alteration::Set(value) => value,
                Alteration::Append(value) | Alteration::Subtract(value) if !(self.is_list)(&name) => {
                    return Err(invalid(format!(
                        "{name} is no list, so {value:?} can be neither appended nor subtracted"
                    )));
                }
                Alteration::Append(value) => {
                    let mut items = list(altered.get(&name).cloned().or_else(|| (self.effective)(&name)));
                    items.extend(
                        list(Some(value)).into_iter().filter(|v| !items.contains(v)).collect::<Vec<_>>(),
                    );
                    items.join(",")
                }
                Alteration::Subtract(value) => {
                    let gone = list(Some(value));
                    let items = list(altered.get(&name).cloned().or_else(|| (self.effective)(&name)));
                    items.into_iter().filter(|i| !gone.contains(i)).collect::<Vec<_>>().join(",")
                }
            };
            self.check(&name, &value)?;
            altered.insert(name, value);
        }
        Ok(altered)
    }
}

fn check_length(name: &str, value: &str) -> Result<(), TopicError> {
    if value.len() > CONFIG_VALUE_BYTES {
        return Err(invalid(format!("{name}: a value has at most {CONFIG_VALUE_BYTES} bytes")));
    }
    Ok(())
}

fn is_list(name: &str) -> bool {
    TOPIC_CONFIGS.iter().any(|c| c.kind == ConfigType::List && (c.name == name || c.synonym == Some(name)))
}

fn list(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split(',').map(|i| i.trim().to_owned()).filter(|i| !i.is_empty()).collect()
}
