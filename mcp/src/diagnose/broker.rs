//! How one broker is.

use super::bounds::{RESTARTS, WATCH_LAG};
use super::{Code, Confidence, Draft, Exhibits, Rule, Severity, storage};

/// What must be known to say that it is well.
pub const ESSENTIAL: &[&str] = &["broker.registered", "broker.says_registered"];

/// The rules about the broker itself. Those about its object store are [`storage::RULES`].
pub const OWN: &[Rule] = &[down, restarting, unregistered, behind, draining, blind, commit_failing];

/// All rules.
pub fn rules() -> Vec<Rule> {
    storage::RULES.iter().chain(OWN).copied().collect()
}

fn draft(code: Code, rule: &'static str, evidence: Vec<&'static str>, reasoning: &str) -> Draft {
    Draft {
        code,
        rule,
        severity: Severity::Warning,
        confidence: Confidence::High,
        evidence,
        counter_evidence: Vec::new(),
        reasoning: reasoning.to_owned(),
    }
}

fn down(e: &Exhibits) -> Option<Draft> {
    if e.flag("broker.registered")? {
        return None;
    }
    let mut found = draft(
        Code::BrokerDown,
        "broker.not_registered",
        vec!["broker.registered"],
        "it is not registered with the cluster",
    );
    if e.has("broker.lost_age_s") {
        found.evidence.push("broker.lost_age_s");
    }
    if e.text("broker.scrape") == Some("ok") {
        // Its process lives: it is cut off rather than down.
        found.counter_evidence.push("broker.scrape");
    }
    Some(found)
}

fn restarting(e: &Exhibits) -> Option<Draft> {
    let count = e.number("broker.registrations").filter(|n| *n >= RESTARTS)?;
    let reasoning = format!("it registered anew {count} times within the window");
    Some(draft(
        Code::BrokerRestarting,
        "broker.registers_again_and_again",
        vec!["broker.registrations"],
        &reasoning,
    ))
}

fn unregistered(e: &Exhibits) -> Option<Draft> {
    let says = !e.flag("broker.says_registered")?;
    says.then(|| {
        draft(
            Code::BrokerUnregistered,
            "broker.says_unregistered",
            vec!["broker.says_registered"],
            "it answers and says itself that it is not registered: cut off from etcd, or replaced",
        )
    })
}

fn behind(e: &Exhibits) -> Option<Draft> {
    let lag = e.number("broker.watch_lag").filter(|n| *n >= WATCH_LAG)?;
    let reasoning = format!("it has not applied {lag:.0} revisions: what it serves is behind");
    Some(draft(Code::BrokerBehind, "broker.watch_lags", vec!["broker.watch_lag"], &reasoning))
}

fn draining(e: &Exhibits) -> Option<Draft> {
    let drains = e.flag("broker.draining")?;
    drains.then(|| Draft {
        severity: Severity::Info,
        ..draft(
            Code::BrokerDraining,
            "broker.leaves",
            vec!["broker.draining"],
            "it is leaving as it was told",
        )
    })
}

fn blind(e: &Exhibits) -> Option<Draft> {
    let scrape = e.text("broker.scrape").filter(|s| *s != "ok")?;
    if e.flag("broker.registered") == Some(false) {
        return None;
    }
    let reasoning = format!("it is registered, and its metrics are {scrape}: how it is cannot be said");
    Some(Draft {
        severity: Severity::Unknown,
        ..draft(
            Code::MetricsBlind,
            "broker.not_scraped",
            vec!["broker.scrape", "broker.registered"],
            &reasoning,
        )
    })
}

fn commit_failing(e: &Exhibits) -> Option<Draft> {
    let count = e.number("commit.failures").filter(|n| *n > 0.0)?;
    let reasoning = format!("{count} of its flushes were written and refused by etcd");
    Some(Draft {
        severity: Severity::Critical,
        ..draft(Code::CommitFailing, "broker.commits_refused", vec!["commit.failures"], &reasoning)
    })
}
