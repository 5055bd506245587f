//! Prompts: how to go about a task with these tools. Their text is ours; what the user fills in is
//! put between quotes, and only if it is a plain name.

use crate::foreign::is_clean;

/// One argument of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptArgument {
    /// Its name; it is completed by it.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Whether it must be given.
    pub required: bool,
}

/// A prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptSpec {
    /// Its name.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// Its arguments.
    pub arguments: &'static [PromptArgument],
    text: &'static str,
}

const GROUP: PromptArgument =
    PromptArgument { name: "group_id", description: "The consumer group", required: true };
const TOPIC: PromptArgument = PromptArgument { name: "topic", description: "The topic", required: true };
const START: PromptArgument =
    PromptArgument { name: "start", description: "When it began, RFC 3339", required: true };
const END: PromptArgument =
    PromptArgument { name: "end", description: "When it was over, RFC 3339", required: true };

/// Every prompt.
pub const PROMPTS: &[PromptSpec] = &[
    PromptSpec {
        name: "cluster_health_check",
        title: "Cluster health check",
        description: "Is the cluster well, and what should somebody look at?",
        arguments: &[],
        text: "Check the health of this Strandline cluster. Call explain_current_state. For each finding call the diagnose tool that fits, and read the runbook that it names. Then call list_lagging_groups and storage_status. Report: one line of verdict; findings, the worst first, each with its figures and where they come from; what is unknown (meta.partial, missing_evidence, nulls). Do not call anything zero that is null.",
    },
    PromptSpec {
        name: "triage_group_lag",
        title: "Triage a group's lag",
        description: "Why does this group lag, and what to do?",
        arguments: &[GROUP],
        text: "Triage the lag of the consumer group {group_id}. Call diagnose_group_lag, get_group_lag and check_replay_readiness for it, then recent_changes and query_metric (group_lag, 6h) to see when it began. Read the runbook that the diagnosis names. Report: cause with its evidence, evidence against it, how long until it has caught up or retention overtakes it, and steps with their risks for a person to take. You cannot change anything yourself.",
    },
    PromptSpec {
        name: "storage_incident",
        title: "Storage incident",
        description: "What is wrong with the object store?",
        arguments: &[],
        text: "Examine the object store behind this cluster. Call diagnose_storage, storage_status over 15m and 6h, and query_metric for s3_put_p99, s3_error_rate and s3_throttle_rate over 6h. Say whether one broker sees it or all, since when, what it does to producers and consumers (cluster_metrics, list_lagging_groups), and what the runbook s3-slow-or-failing advises. Name what you could not see.",
    },
    PromptSpec {
        name: "topic_review",
        title: "Review a topic",
        description: "Is this topic configured for what it is used for?",
        arguments: &[TOPIC],
        text: "Review the topic {topic}. Call describe_topics and describe_configs for it, list_groups with the topic, and get_group_lag for each of its groups; audit_topics with its name as prefix if you may. Say whether retention, partitions and sizes fit how it is used, whether keys are skewed, and which settings come from the topic, the cluster or a default. Suggest changes with their risks; a person makes them.",
    },
    PromptSpec {
        name: "change_review",
        title: "Review recent changes",
        description: "What changed lately, and what did it do?",
        arguments: &[],
        text: "Review what changed in this cluster. Call recent_changes over 24h. Group changes that belong together. For each that could matter compare the metrics before and after with query_metric (produce_records, produce_p99, s3_put_p99, group_rebalances). Say which changes had an effect, which had none, and from when on changes are known (known_since).",
    },
    PromptSpec {
        name: "postmortem_draft",
        title: "Draft a postmortem",
        description: "A postmortem from what was recorded.",
        arguments: &[START, END],
        text: "Draft a postmortem of the incident from {start} to {end}. Call recent_changes with that start and end, query_metric for produce_records, produce_p99, commit_p99, s3_put_p99, s3_error_rate and group_rebalances over that time with half an hour on both sides, and incident_snapshot for the state now. Write: summary, impact in figures, timeline with revisions and times, cause with evidence and what speaks against it, what went well, actions. Mark every statement that is not from evidence as an assumption. Look at meta.window: history may not cover all of it.",
    },
];

/// The prompt called `name`.
pub fn find(name: &str) -> Option<&'static PromptSpec> {
    PROMPTS.iter().find(|p| p.name == name)
}

impl PromptSpec {
    /// Its text with the arguments filled in; else a sentence what is wrong with which.
    pub fn fill(&self, given: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        let mut text = self.text.to_owned();
        for argument in self.arguments {
            let value = given(argument.name).filter(|v| !v.is_empty());
            let value = value.ok_or_else(|| format!("{} is missing", argument.name))?;
            if !is_clean(&value) || value.contains(['"', '`', '\\']) {
                return Err(format!("{} is no plain name", argument.name));
            }
            text = text.replace(&format!("{{{}}}", argument.name), &format!("\"{value}\""));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_name_tools_that_there_are_and_take_plain_names_only() {
        for prompt in PROMPTS {
            let text = prompt.fill(|_| Some("x".to_owned())).unwrap();
            assert!(!text.contains('{'), "{text}");
            for word in
                text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.contains('_'))
            {
                let known = crate::tools::Tool::ALL.iter().any(|t| t.spec().name == word);
                let is_tool = [
                    "list_",
                    "get_",
                    "describe_",
                    "check_",
                    "diagnose_",
                    "query_",
                    "recent_",
                    "explain_",
                    "audit_",
                ]
                .iter()
                .any(|p| word.starts_with(p));
                assert!(known || !is_tool, "{} names {word}", prompt.name);
            }
        }
        let triage = find("triage_group_lag").unwrap();
        assert!(triage.fill(|_| None).is_err());
        for bad in ["a\nb", "a\" and drop", "a`b", "a\u{202e}b"] {
            assert!(triage.fill(|_| Some(bad.to_owned())).is_err(), "{bad}");
        }
    }
}
