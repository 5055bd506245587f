//! What is wanted of which clients: the configs of client-metrics resources, and what they come to
//! for one client.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use regex::bytes::Regex;
use strandline_metadata::values::ConfigsValue;
use uuid::Uuid;

use crate::limits::{SUBSCRIPTION_PREFIX_CHARS, SUBSCRIPTION_PREFIXES};
use crate::patterns;

/// How often clients push unless a subscription says otherwise, in ms; also how often they ask
/// again when nothing is wanted.
pub(crate) const DEFAULT_INTERVAL_MS: i32 = 300_000;
/// How often clients may be told to push, in ms.
const INTERVALS_MS: std::ops::RangeInclusive<i32> = 100..=3_600_000;
/// Every metric.
const ALL: &str = "*";
/// What can be asked of a client, in the order of [`Peer::text`].
const ATTRIBUTES: [&str; 6] = [
    "client_instance_id",
    "client_id",
    "client_software_name",
    "client_software_version",
    "client_source_address",
    "client_source_port",
];

/// What is known of a client that pushes metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) instance_id: Uuid,
    pub(crate) client_id: String,
    pub(crate) software_name: String,
    pub(crate) software_version: String,
    pub(crate) address: String,
    pub(crate) port: Option<u16>,
}

impl Peer {
    fn text(&self, attribute: &str) -> String {
        match attribute {
            // As Kafka writes ids.
            "client_instance_id" => BASE64_URL_SAFE_NO_PAD.encode(self.instance_id.as_bytes()),
            "client_id" => self.client_id.clone(),
            "client_software_name" => self.software_name.clone(),
            "client_software_version" => self.software_version.clone(),
            "client_source_address" => self.address.clone(),
            _ => self.port.map(|p| p.to_string()).unwrap_or_default(),
        }
    }
}

/// Whether `value` is what the config called `name` takes; else a sentence why not.
pub(crate) fn check(name: &str, value: &str) -> Result<(), String> {
    match name {
        "metrics" => {
            let prefixes = list(value);
            let is_long = |p: &&str| p.chars().count() > SUBSCRIPTION_PREFIX_CHARS;
            if prefixes.len() > SUBSCRIPTION_PREFIXES || prefixes.iter().any(is_long) {
                return Err(format!(
                    "metrics: at most {SUBSCRIPTION_PREFIXES} prefixes, of at most {SUBSCRIPTION_PREFIX_CHARS} characters each"
                ));
            }
            Ok(())
        }
        "interval.ms" => match value.parse() {
            Ok(ms) if INTERVALS_MS.contains(&ms) => Ok(()),
            _ => Err(format!(
                "interval.ms: {value:?} is not between {} and {}",
                INTERVALS_MS.start(),
                INTERVALS_MS.end()
            )),
        },
        "match" => matchers(value).map(|_| ()),
        _ => Err(format!("there is no client-metrics config {name}")),
    }
}

/// The items of a list, as Kafka separates them.
fn list(value: &str) -> Vec<&str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// What a client must look like: attribute and pattern.
fn matchers(value: &str) -> Result<Vec<(&'static str, Regex)>, String> {
    let mut matchers: Vec<(&'static str, Regex)> = Vec::new();
    for item in list(value) {
        let (name, pattern) =
            item.split_once('=').ok_or_else(|| format!("match: {item:?} is not of the form name=pattern"))?;
        let (name, pattern) = (name.trim(), pattern.trim());
        let attribute = ATTRIBUTES.iter().copied().find(|a| *a == name);
        let attribute =
            attribute.ok_or_else(|| format!("match: {name:?} is not one of {}", ATTRIBUTES.join(", ")))?;
        if matchers.iter().any(|(other, _)| *other == attribute) {
            return Err(format!("match: {name} occurs twice"));
        }
        matchers.push((attribute, patterns::whole(pattern).map_err(|why| format!("match: {name}: {why}"))?));
    }
    Ok(matchers)
}

/// One client-metrics resource.
#[derive(Debug)]
struct Subscription {
    prefixes: BTreeSet<String>,
    interval_ms: i32,
    matchers: Vec<(&'static str, Regex)>,
}

/// Names a state of all resources: their number, and the newest revision among them. No two states
/// have the same, since every change of one either raises the revision or lowers the number.
pub(super) type Version = (usize, i64);

/// Every client-metrics resource, ready to be matched.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Vec<Subscription>);

pub(super) fn version(resources: &BTreeMap<String, (ConfigsValue, i64)>) -> Version {
    (resources.len(), resources.values().map(|(_, revision)| *revision).max().unwrap_or(0))
}

impl Subscriptions {
    /// What cannot be understood matches nobody: a newer broker may have stored it.
    pub(super) fn new(resources: &BTreeMap<String, (ConfigsValue, i64)>) -> Self {
        let parsed = resources.values().filter_map(|(value, _)| {
            let get = |name: &str| value.configs.get(name).map_or("", String::as_str);
            let interval_ms = match value.configs.get("interval.ms") {
                Some(text) => text.parse().ok().filter(|ms| INTERVALS_MS.contains(ms))?,
                None => DEFAULT_INTERVAL_MS,
            };
            let prefixes = list(get("metrics")).into_iter().map(str::to_owned).collect();
            Some(Subscription { prefixes, interval_ms, matchers: matchers(get("match")).ok()? })
        });
        Self(parsed.collect())
    }

    /// What is wanted of a client: of all subscriptions that match it, every metric and the
    /// shortest interval.
    pub(super) fn wanted(&self, client: &Peer) -> ClientSubscription {
        let mut prefixes = BTreeSet::new();
        let mut interval_ms = DEFAULT_INTERVAL_MS;
        let mut is_matched = false;
        for subscription in &self.0 {
            let matches =
                |(attribute, regex): &(&str, Regex)| regex.is_match(client.text(attribute).as_bytes());
            if !subscription.matchers.iter().all(matches) {
                continue;
            }
            prefixes.extend(subscription.prefixes.iter().cloned());
            interval_ms =
                if is_matched { interval_ms.min(subscription.interval_ms) } else { subscription.interval_ms };
            is_matched = true;
        }
        if prefixes.contains(ALL) {
            prefixes = BTreeSet::from([ALL.to_owned()]);
        }
        ClientSubscription::new(prefixes, interval_ms, client.instance_id)
    }
}

/// What is wanted of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientSubscription {
    /// Prefixes of names, `*` for all; empty for nothing.
    pub(crate) prefixes: Vec<String>,
    pub(crate) interval_ms: i32,
    /// The same on every broker: a client may ask one and push to another.
    pub(crate) id: i32,
}

impl ClientSubscription {
    fn new(prefixes: BTreeSet<String>, interval_ms: i32, instance_id: Uuid) -> Self {
        let mut bytes = instance_id.as_bytes().to_vec();
        bytes.extend(interval_ms.to_be_bytes());
        for prefix in &prefixes {
            bytes.extend(prefix.as_bytes());
            bytes.push(0);
        }
        let id = strandline_storage::format::batch::crc32c(&bytes).cast_signed();
        Self { prefixes: prefixes.into_iter().collect(), interval_ms, id }
    }

    /// Whether a metric is wanted.
    pub(super) fn has(&self, metric: &str) -> bool {
        self.prefixes.iter().any(|p| p == ALL || metric.starts_with(p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(configs: &[(&str, &str)]) -> (ConfigsValue, i64) {
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        (ConfigsValue { format: 1, configs }, 7)
    }

    fn subscriptions(all: &[&[(&str, &str)]]) -> Subscriptions {
        let named = all.iter().enumerate().map(|(i, configs)| (i.to_string(), resource(configs)));
        Subscriptions::new(&named.collect())
    }

    fn client() -> Peer {
        Peer {
            instance_id: Uuid::from_u128(5),
            client_id: "app-1".to_owned(),
            software_name: "apache-kafka-java".to_owned(),
            software_version: "4.1.0".to_owned(),
            address: "10.0.0.7".to_owned(),
            port: Some(4711),
        }
    }

    #[test]
    fn nothing_is_wanted_unless_somebody_says_so() {
        let wanted = subscriptions(&[]).wanted(&client());
        assert_eq!((wanted.prefixes.len(), wanted.interval_ms), (0, DEFAULT_INTERVAL_MS));
        assert!(!wanted.has("x"));
        let other = subscriptions(&[&[("metrics", "*"), ("match", "client_id=app-2")]]).wanted(&client());
        assert_eq!(other, wanted);
    }

    #[test]
    fn all_that_match_count() {
        let wanted = subscriptions(&[
            &[("metrics", "org.a., org.b."), ("interval.ms", "60000"), ("match", "client_id=app-.*")],
            &[
                ("metrics", "org.a.,org.c."),
                ("interval.ms", "1000"),
                ("match", "client_source_port=4711,client_source_address=10\\..*"),
            ],
            &[("metrics", "*"), ("match", "client_software_name=librdkafka")],
            &[("metrics", "org.c."), ("match", "client_instance_id=AAAAAAAAAAAAAAAAAAAABQ")],
        ])
        .wanted(&client());
        assert_eq!(wanted.prefixes, ["org.a.", "org.b.", "org.c."]);
        assert_eq!(wanted.interval_ms, 1000);
        assert!(wanted.has("org.a.x") && !wanted.has("org.d.x"));
        let slow = subscriptions(&[&[("metrics", "x"), ("interval.ms", "3600000")]]).wanted(&client());
        assert_eq!(slow.interval_ms, 3_600_000, "the default is none that somebody asked for");
        let all = subscriptions(&[&[("metrics", "org.a.")], &[("metrics", "*")]]).wanted(&client());
        assert!(all.prefixes == ["*"] && all.has("anything"));
        let another = Peer { instance_id: Uuid::from_u128(6), ..client() };
        assert_ne!(subscriptions(&[]).wanted(&another).id, subscriptions(&[]).wanted(&client()).id);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (name, value) in
            [("metrics", ""), ("metrics", "*"), ("metrics", "a,b"), ("interval.ms", "100"), ("match", "")]
        {
            assert_eq!(check(name, value), Ok(()));
        }
        for (name, value) in [
            ("metrics", &*"x".repeat(300)),
            ("metrics", &"x,".repeat(300)),
            ("interval.ms", "99"),
            ("interval.ms", "3600001"),
            ("interval.ms", "soon"),
            ("match", "client_id"),
            ("match", "shoe_size=4"),
            ("match", "client_id=("),
            ("match", "client_id=a,client_id=b"),
            ("color", "red"),
        ] {
            let why = check(name, value).unwrap_err();
            assert!(why.contains(name), "{why}");
        }
    }
}
