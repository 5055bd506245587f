//! What several rules say of open transactions.

use serde_json::Value;

use super::{Code, Confidence, Draft, Exhibits, Severity};

/// Transactions that a sentence names.
const NAMED: usize = 3;

/// Names the transactions of a piece of evidence, the oldest first; `None` if there are none.
pub(super) fn named(e: &Exhibits, id: &str) -> Option<String> {
    let all = e.get(id)?.value.as_array().filter(|all| !all.is_empty())?;
    let mut sentence = all.iter().take(NAMED).map(one).collect::<Vec<_>>().join("; ");
    if all.len() > NAMED {
        sentence = format!("{sentence}; and {} more", all.len() - NAMED);
    }
    Some(sentence)
}

fn one(transaction: &Value) -> String {
    let text = |name: &str| transaction[name].as_str().unwrap_or("an unknown time").to_owned();
    let partitions = transaction["partition_count"].as_u64().unwrap_or_default();
    let verb = if transaction["is_overdue"] == true { "should have been" } else { "is" };
    format!(
        "transaction {}, open since {} ({} s) in {partitions} {}, which {verb} aborted at {} if its producer does not end it",
        transaction["transactional_id"],
        text("open_since"),
        transaction["age_s"],
        if partitions == 1 { "partition" } else { "partitions" },
        text("times_out_at"),
    )
}

/// A cause that at most adds to others; its evidence is still to be named.
pub(super) fn only_adds_to(code: Code, rule: &'static str, reasoning: String) -> Draft {
    Draft {
        code,
        rule,
        severity: Severity::Info,
        confidence: Confidence::Low,
        evidence: Vec::new(),
        counter_evidence: Vec::new(),
        reasoning,
    }
}
