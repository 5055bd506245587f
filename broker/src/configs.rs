//! Describing and altering configs: of topics, brokers, groups, and of metrics that clients push.
//!
//! Topic configs are stored with the topic. Of broker configs, the defaults of topics can be
//! altered for the whole cluster (the resource with an empty name); everything else is the broker's
//! own configuration and read-only. Configs of groups and of client metrics have keys of their own.

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
        Resource::Broker(Some(id)) if *id != broker.config.node_id => Err(TopicError::new(
            ResponseError::InvalidRequest,
            format!("this is broker {}; ask broker {id} for its configs", broker.config.node_id),
        )),
        Resource::Broker(Some(_)) => Ok(broker_entries(broker)),
        Resource::Broker(None) => {
            let (dynamic, _) = broker.replica.read(|view| view.names.broker_configs(None));
            Ok(broker_entries(broker).into_iter().filter(|e| dynamic.contains_key(&e.name)).collect())
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

/// Configs of a client-metrics resource, with its key's mod revision; 0 while there is none.
fn stored_client_metrics(broker: &Broker, name: &str) -> (BTreeMap<String, String>, i64) {
    broker.replica.read(|view| {
        let known = view.names.client_metrics().get(name);
        known.map_or_else(Default::default, |(value, revision)| (value.configs.clone(), *revision))
    })
}

/// The configs of a topic with these values set on it.
pub(crate) fn topic_entries(broker: &Broker, set: &BTreeMap<String, String>) -> Vec<Entry> {
    let (dynamic, _) = broker.replica.read(|view| view.names.broker_configs(None));
    let entries = TOPIC_CONFIGS.iter().map(|config| {
        let mut synonyms = Vec::new();
        if let Some(value) = set.get(config.name) {
            synonyms.push((config.name.to_owned(), value.clone(), Source::Topic));
        }
        if let Some(synonym) = config.synonym {
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

fn broker_entries(broker: &Broker) -> Vec<Entry> {
    let (dynamic, _) = broker.replica.read(|view| view.names.broker_configs(None));
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

/// The broker configs that can be altered for the whole cluster.
fn alterable(broker: &Broker) -> Vec<Alterable> {
    let defaults = TOPIC_CONFIGS.iter().filter_map(|config| {
        let own = broker.config.topics.configs.get(config.name)?;
        Some((config.synonym?, config.kind, config.default, own.clone(), config.help))
    });
    let partitions = broker.config.topics.partitions.to_string();
    let help = "Default number of partitions of a new topic.";
    defaults.chain([("num.partitions", ConfigType::Int, "1", partitions, help)]).collect()
}

fn check_broker_config(name: &str, value: &str) -> Result<(), String> {
    if name == "num.partitions" {
        let valid = value.parse::<u32>().is_ok_and(|n| (1..=MAX_PARTITIONS_PER_TOPIC).contains(&n));
        return valid.then_some(()).ok_or_else(|| format!("{name}: {value:?} is not between 1 and 100,000"));
    }
    match TOPIC_CONFIGS.iter().find(|c| c.synonym == Some(name)) {
        Some(config) => topic_config::check(config.name, value),
        None => Err(format!("{name} cannot be altered while the broker runs")),
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

impl Alter {
    /// Whether it sets nothing: then it is done where nothing is ever set. Tools clear throttles
    /// like this.
    fn only_deletes(&self) -> bool {
        match self {
            Self::Replace(_) => false,
            Self::Incremental(alterations) => {
                alterations.iter().all(|(_, alteration)| *alteration == Alteration::Delete)
            }
        }
    }
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
        Resource::Broker(Some(_)) if alter.only_deletes() => return Ok(()),
        Resource::Broker(Some(_)) => {
            let why = "configs of single brokers are read-only; those that can change belong to all: use the default broker";
            return Err(TopicError::new(ResponseError::InvalidRequest, why));
        }
        Resource::Broker(None) => {
            let (current, revision) = broker.replica.read(|view| view.names.broker_configs(None));
            let effective = |name: &str| current.get(name).cloned();
            let rules = Rules { effective: &effective, check: check_broker_config, is_list };
            let altered = rules.apply(&current, alter)?;
            strandline_metadata::topics::configure_broker(keys, None, revision, altered)
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
        if value.len() > CONFIG_VALUE_BYTES {
            return Err(invalid(format!("{name}: a value has at most {CONFIG_VALUE_BYTES} bytes")));
        }
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

fn is_list(name: &str) -> bool {
    TOPIC_CONFIGS.iter().any(|c| c.kind == ConfigType::List && (c.name == name || c.synonym == Some(name)))
}

fn list(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split(',').map(|i| i.trim().to_owned()).filter(|i| !i.is_empty()).collect()
}
