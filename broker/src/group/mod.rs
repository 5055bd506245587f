//! Consumer groups: who is in them, who reads what, how far they have read.
//!
//! A group has one coordinator, the broker that rendezvous hashing picks. Two brokers may both
//! believe it for a moment; what must survive is in etcd, and every write of it compares the
//! group's key, so the one that is wrong finds out.
//!
//! The protocols are decided purely: an engine takes a request and the time and answers, and knows
//! when it next wants to be asked. Timers, sockets and etcd are outside of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;
use tokio::time::Instant;
use uuid::Uuid;

use self::error::MemberError;
use crate::group_config::GroupSettings;

pub(crate) mod assign;
pub(crate) mod classic;
pub(crate) mod command;
pub(crate) mod consumer;
pub(crate) mod coordinator;
mod engine;
pub(crate) mod environment;
pub(crate) mod error;
pub(crate) mod offsets;
pub(crate) mod patterns;
mod reply;
pub(crate) mod size;
pub(crate) mod status;
mod step;
mod store;
mod task;
mod write;

#[cfg(test)]
mod tests;

/// Who sends a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The client id that it names.
    pub(crate) client_id: String,
    /// Its address, as Kafka writes it: `/10.0.0.1`.
    pub(crate) host: String,
}

/// The topics that there are: what subscriptions and assignments are made of.
pub(crate) trait Topics {
    /// Id and number of partitions of the topic called `name`.
    fn by_name(&self, name: &str) -> Option<(Uuid, u32)>;
    /// Name of the topic with this id.
    fn name(&self, id: Uuid) -> Option<String>;
    /// The topics that match a pattern, compiled as `regex`; `None` if that is not known yet.
    /// Whoever is not told what is current asks again a little later.
    fn matching(&self, pattern: &str, regex: &Regex) -> Option<Matching>;
}

/// The topics that match a pattern.
pub(crate) struct Matching {
    /// Their names.
    pub(crate) names: Arc<BTreeSet<String>>,
    /// Whether these are all of those that there are now.
    pub(crate) is_current: bool,
}

/// What an engine is told of the world when it decides.
pub(crate) struct Context<'a> {
    /// Now, on the clock that timers run by.
    pub(crate) now: Instant,
    /// The topics that there are.
    pub(crate) topics: &'a dyn Topics,
    /// What is configured for this group.
    pub(crate) settings: &'a GroupSettings,
    /// An id for a member that has none yet, never given before: used at most once for each call.
    pub(crate) fresh_id: Uuid,
}

/// Names a request that waits for its answer, within one coordinator's time with a group.
pub(crate) type Ticket = u64;

/// The beginning of a text.
fn beginning(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}

fn millis(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// The member with this id. If an instance id is named, a static member must have it, and not go by
/// another id since.
fn find_member<'a, M>(
    members: &'a BTreeMap<String, M>,
    instances: &BTreeMap<String, String>,
    id: &str,
    instance: Option<&str>,
) -> Result<&'a M, MemberError> {
    if let Some(instance) = instance {
        let owner = instances.get(instance);
        let owner = owner.ok_or_else(|| MemberError::UnknownInstance(instance.to_owned()))?;
        if owner != id {
            return Err(MemberError::fenced(instance, owner, id));
        }
    }
    members.get(id).ok_or_else(|| MemberError::Unknown(id.to_owned()))
}
