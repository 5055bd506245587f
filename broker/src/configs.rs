//! Describing and altering configs: of topics, and of brokers.
//!
//! Topic configs are stored with the topic. Of broker configs, the defaults of topics can be altered for the whole
//! cluster (the resource with an empty name); everything else is the broker's own configuration and read-only.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use strandline_metadata::limits::MAX_PARTITIONS_PER_TOPIC;

use crate::Broker;
use crate::config::SETTINGS;
use crate::topic_config::{self, ConfigType, Effective, TOPIC_CONFIGS};
use crate::topics::{self, TopicError};

/// Kafka's numbers for what a config belongs to.
pub(crate) const TOPIC: i8 = 2;
pub(crate) const BROKER: i8 = 4;

/// Where a value comes from, by Kafka's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Topic = 1,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
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

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Topic(String),
    /// One broker, or the defaults of all.
    Broker(Option<i32>),
}

impl Resource {
    /// A resource by Kafka's type and name.
    pub(crate) fn parse(kind: i8, name: &str) -> Result<Self, TopicError> {
        match kind {
            TOPIC => Ok(Self::Topic(name.to_owned())),
            BROKER if name.is_empty() => Ok(Self::Broker(None)),
            BROKER => {
                let wrong =
                    || TopicError::new(ResponseError::InvalidRequest, "a broker is named by its node id");
                name.parse().map(|id| Self::Broker(Some(id))).map_err(|_| wrong())
            }
            _ => Err(TopicError::new(
                ResponseError::InvalidRequest,
                "configs belong to topics and brokers here",
            )),
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
    }
}

/// The configs of a topic with these values set on it.
pub(crate) fn topic_entries(broker: &Broker, set: &BTreeMap<String, String>) -> Vec<Entry> {
    let (dynamic, _) = broker.replica.read(|view| view.names.broker_configs(None));
    let effective = Effective { topic: set, dynamic: &dynamic, broker: &broker.config.topics.configs };
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
        Entry {
            name: config.name.to_owned(),
            value: effective.get(config.name).to_owned(),
            source: synonyms[0].2,
            read_only: false,
            sensitive: false,
            kind: config.kind,
            documentation: config.documentation(),
            synonyms,
        }
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
    for (name, kind, value, help) in alterable(broker) {
        let mut synonyms = Vec::new();
        if let Some(set) = dynamic.get(name) {
            synonyms.push((name.to_owned(), set.clone(), Source::DynamicDefaultBroker));
        }
        synonyms.push((name.to_owned(), value, Source::StaticBroker));
        entries.push(Entry {
            name: name.to_owned(),
            value: synonyms[0].1.clone(),
            source: synonyms[0].2,
            read_only: false,
            sensitive: false,
            kind,
            documentation: help.to_owned(),
            synonyms,
        });
    }
    entries
}

/// The broker configs that can be altered for the whole cluster, with this broker's own value.
fn alterable(broker: &Broker) -> Vec<(&'static str, ConfigType, String, &'static str)> {
    let defaults = TOPIC_CONFIGS.iter().filter_map(|config| {
        let own = broker.config.topics.configs.get(config.name)?;
        Some((config.synonym?, config.kind, own.clone(), config.help))
    });
    let partitions = broker.config.topics.partitions.to_string();
    let help = "Partitions of a topic that is created without a number.";
    defaults.chain([("num.partitions", ConfigType::Int, partitions, help)]).collect()
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

/// Alters the configs of a resource, in one transaction that fails if somebody else changed them meanwhile.
pub(crate) async fn alter(
    broker: &Broker,
    resource: &Resource,
    alter: Alter,
    validate_only: bool,
) -> Result<(), TopicError> {
    let _ = broker.replica.barrier().await;
    let raced = TopicError::new(
        ResponseError::RequestTimedOut,
        "the configs were changed by others at the same time; try again",
    );
    let keys = broker.replica.keys();
    let change = match resource {
        Resource::Topic(name) => {
            topics::check_name(name)?;
            let topic = broker.replica.read(|view| view.names.topic(name).cloned());
            let topic = topic.ok_or_else(|| {
                TopicError::new(ResponseError::UnknownTopicOrPartition, "there is no such topic")
            })?;
            let effective = |name: &str| {
                topic
                    .value
                    .configs
                    .get(name)
                    .cloned()
                    .or_else(|| topic_config::find(name).map(|c| c.default.to_owned()))
            };
            let altered = apply(&topic.value.configs, alter, effective, topic_config::check)?;
            strandline_metadata::topics::configure(keys, &topic, altered)
        }
        Resource::Broker(Some(_)) => {
            let why = "configs of single brokers are read-only; those that can change belong to all: use the default broker";
            return Err(TopicError::new(ResponseError::InvalidRequest, why));
        }
        Resource::Broker(None) => {
            let (current, revision) = broker.replica.read(|view| view.names.broker_configs(None));
            let altered = apply(&current, alter, |name| current.get(name).cloned(), check_broker_config)?;
            strandline_metadata::topics::configure_broker(keys, None, revision, altered)
        }
    };
    if validate_only {
        return Ok(());
    }
    topics::commit(broker, change).await.map_err(|e| topics::propose_error(&e, raced))?;
    // Without a record to wait for, the barrier's read does not cover the change; its revision comes with the watch.
    Ok(())
}

fn apply(
    current: &BTreeMap<String, String>,
    alter: Alter,
    effective: impl Fn(&str) -> Option<String>,
    check: impl Fn(&str, &str) -> Result<(), String>,
) -> Result<BTreeMap<String, String>, TopicError> {
    let invalid = |why: String| TopicError::new(ResponseError::InvalidConfig, why);
    let alterations = match alter {
        Alter::Replace(entries) => {
            let mut replaced = BTreeMap::new();
            for (name, value) in entries {
                check(&name, &value).map_err(invalid)?;
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
            Alteration::Append(value) | Alteration::Subtract(value) if !is_list(&name) => {
                return Err(invalid(format!(
                    "{name} is no list, so {value:?} can be neither appended nor subtracted"
                )));
            }
            Alteration::Append(value) => {
                let mut items = list(altered.get(&name).cloned().or_else(|| effective(&name)));
                items
                    .extend(list(Some(value)).into_iter().filter(|v| !items.contains(v)).collect::<Vec<_>>());
                items.join(",")
            }
            Alteration::Subtract(value) => {
                let gone = list(Some(value));
                let items = list(altered.get(&name).cloned().or_else(|| effective(&name)));
                items.into_iter().filter(|i| !gone.contains(i)).collect::<Vec<_>>().join(",")
            }
        };
        check(&name, &value).map_err(invalid)?;
        altered.insert(name, value);
    }
    Ok(altered)
}

fn is_list(name: &str) -> bool {
    TOPIC_CONFIGS.iter().any(|c| c.kind == ConfigType::List && (c.name == name || c.synonym == Some(name)))
}

fn list(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split(',').map(|i| i.trim().to_owned()).filter(|i| !i.is_empty()).collect()
}
