//! Plans: a change thought through before a person makes it. Nothing is applied here, ever: a plan
//! is the state that it rests on, the difference, what follows from it, and the commands of Kafka's
//! own tools.
//!
//! ```text
//!   tools/plan ─▶ facts ─▶ topic, offsets (pure) ─▶ Draft ─▶ Plans (kept an hour) ◀─ check_plan
//! ```
//!
//! The state that a plan rests on is compared as a whole: whatever of it changes before the
//! commands are run is seen by comparing again.

pub mod command;
pub mod offsets;
mod store;
pub mod topic;

use serde_json::{Map, Value};

pub use self::store::Plans;
use crate::access::sha256_hex;

/// What a plan changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Creates a topic.
    CreateTopic,
    /// Changes configs of a topic.
    UpdateTopicConfig,
    /// Adds partitions to a topic.
    AddPartitions,
    /// Sets committed offsets of a group.
    ResetOffsets,
}

impl Kind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateTopic => "create_topic",
            Self::UpdateTopicConfig => "update_topic_config",
            Self::AddPartitions => "add_partitions",
            Self::ResetOffsets => "reset_offsets",
        }
    }
}

/// Something that a plan does not go well with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind it is.
    pub code: &'static str,
    /// Whether the brokers or Kafka's tools would refuse it; then there are no commands.
    pub blocking: bool,
    /// What is wrong, in a sentence.
    pub message: String,
}

impl Violation {
    /// One that forbids the plan.
    pub fn blocking(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, blocking: true, message: message.into() }
    }

    /// One that a person should know of.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, blocking: false, message: message.into() }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Of what.
    pub what: String,
    /// As it is.
    pub before: Value,
    /// As it is to be.
    pub after: Value,
}

/// How to take a change back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollback {
    /// Whether that is possible.
    pub possible: bool,
    /// The commands for it.
    pub commands: Vec<String>,
    /// What it does not bring back.
    pub note: String,
}

/// A plan, before it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// What it changes.
    pub kind: Kind,
    /// The topic.
    pub topic: String,
    /// The group, for offsets.
    pub group: Option<String>,
    /// The state that it rests on: what [`topic::state`] or [`offsets::state`] says.
    pub current: State,
    /// What of that state is to be otherwise.
    pub desired: State,
    /// For offsets: whether ends that move on are as good.
    pub at_least: bool,
    /// What changes.
    pub diff: Vec<Difference>,
    /// What follows, in sentences.
    pub impact: Vec<String>,
    /// What it does not go well with.
    pub violations: Vec<Violation>,
    /// The commands, in their order.
    pub commands: Vec<String>,
    /// How to see that it worked.
    pub verification: Vec<String>,
    /// How to take it back.
    pub rollback: Rollback,
}

impl Draft {
    /// Whether there is something to run.
    pub fn is_runnable(&self) -> bool {
        !self.violations.iter().any(|v| v.blocking)
    }

    /// The hash of the state that it rests on.
    pub fn precondition_hash(&self) -> String {
        hash(&self.current)
    }
}

/// A state: facts by name, in one order.
pub type State = Map<String, Value>;

/// The hash of a state.
pub fn hash(state: &State) -> String {
    let text = Value::Object(state.clone()).to_string();
    sha256_hex(text.as_bytes()).chars().take(32).collect()
}

/// How the live state is to a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is what the plan rests on.
    Unchanged,
    /// It is what the plan was to bring about.
    Applied,
    /// It is something else; what, as the plan has it and as it is.
    Changed(Vec<Difference>),
}

/// Compares the live state with a plan.
pub fn compare(plan: &Draft, live: &State) -> Verdict {
    let wanted = |name: &String| plan.desired.get(name);
    let is_reached = plan.desired.iter().all(|(name, value)| match live.get(name) {
        Some(now) if plan.at_least => now.as_i64() >= value.as_i64() && now.as_i64().is_some(),
        Some(now) => now == value,
        None => value.is_null(),
    });
    if *live == plan.current {
        return if is_reached { Verdict::Applied } else { Verdict::Unchanged };
    }
    // What the plan says nothing of may not have changed either, but for what comes into being with
    // a topic.
    let rest = |state: &State| -> State {
        let kept = state.iter().filter(|(name, _)| wanted(name).is_none() && !is_bookkeeping(name));
        kept.map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    if is_reached && (plan.kind == Kind::CreateTopic || rest(live) == rest(&plan.current)) {
        return Verdict::Applied;
    }
    let names: std::collections::BTreeSet<&String> = plan.current.keys().chain(live.keys()).collect();
    let differs = names.into_iter().filter(|n| plan.current.get(*n) != live.get(*n));
    Verdict::Changed(
        differs
            .map(|name| Difference {
                what: name.clone(),
                before: plan.current.get(name).cloned().unwrap_or_default(),
                after: live.get(name).cloned().unwrap_or_default(),
            })
            .collect(),
    )
}

/// What moves by itself when the commands are run.
fn is_bookkeeping(name: &str) -> bool {
    name == "members"
}

#[cfg(test)]
mod tests;
