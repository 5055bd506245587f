//! What is wrong with the cluster as a whole.

use super::bounds::{COMMIT_P99_MS, ETCD_READ_MS, OVERDUE_S, TOKEN_S};
use super::transactions::{named, only_adds_to};
use super::{Code, Confidence, Draft, Exhibits, Rule, Severity, storage};

/// What must be known to say that it is well.
pub const ESSENTIAL: &[&str] = &["etcd.reachable", "brokers.registered", "s3.failing_brokers"];

/// The rules about brokers, etcd and the observer. Those about the object store are
/// [`storage::RULES`].
pub const OWN: &[Rule] = &[
    etcd_unreachable,
    no_brokers,
    commit_failing,
    broker_lost,
    broker_unregistered,
    broker_restarting,
    etcd_slow,
    etcd_nearly_full,
    state_crowded,
    broker_behind,
    no_job_holder,
    overdue_transaction,
    long_transaction,
    draining,
    metrics_blind,
    token_expiring,
];

/// All rules.
pub fn rules() -> Vec<Rule> {
    storage::RULES.iter().chain(OWN).copied().collect()
}

fn draft(
    code: Code,
    rule: &'static str,
    severity: Severity,
    evidence: Vec<&'static str>,
    reasoning: String,
) -> Draft {
    Draft {
        code,
        rule,
        severity,
        confidence: Confidence::High,
        evidence,
        counter_evidence: Vec::new(),
        reasoning,
    }
}

fn etcd_unreachable(e: &Exhibits) -> Option<Draft> {
    if e.flag("etcd.reachable")? {
        return None;
    }
    let reasoning =
        "etcd cannot be read from here; if the brokers see the same, nothing is committed".to_owned();
    // Commits that go on show that only this observer is cut off.
    let commits = e.number("commit.per_s").is_some_and(|r| r > 0.0);
    Some(Draft {
        counter_evidence: if commits { vec!["commit.per_s"] } else { Vec::new() },
        ..draft(
            Code::EtcdUnreachable,
            "cluster.etcd_cannot_be_read",
            Severity::Critical,
            vec!["etcd.reachable"],
            reasoning,
        )
    })
}

fn no_brokers(e: &Exhibits) -> Option<Draft> {
    let none = e.number("brokers.registered")? == 0.0;
    let reasoning = "no broker is registered".to_owned();
    none.then(|| {
        draft(
            Code::NoBrokers,
            "cluster.none_registered",
            Severity::Critical,
            vec!["brokers.registered"],
            reasoning,
        )
    })
}

fn commit_failing(e: &Exhibits) -> Option<Draft> {
    let count = e.number("commit.failures").filter(|n| *n > 0.0)?;
    let reasoning = format!(
        "{count} flushes were written to the object store and refused by etcd: its quota, its rights, or a lost registration"
    );
    Some(draft(
        Code::CommitFailing,
        "cluster.commits_refused",
        Severity::Critical,
        vec!["commit.failures"],
        reasoning,
    ))
}

fn broker_lost(e: &Exhibits) -> Option<Draft> {
    let count = e.number("brokers.lost").filter(|n| *n > 0.0)?;
    if e.number("brokers.registered") == Some(0.0) {
        return None;
    }
    let reasoning = format!("{count} brokers lost their registration without having said that they leave");
    let mut evidence = vec!["brokers.lost"];
    evidence.extend(["brokers.last_loss_age_s", "brokers.registered"].into_iter().filter(|id| e.has(id)));
    Some(draft(Code::BrokerDown, "cluster.registration_lost", Severity::Warning, evidence, reasoning))
}

fn broker_unregistered(e: &Exhibits) -> Option<Draft> {
    let count = e.number("brokers.unregistered").filter(|n| *n > 0.0)?;
    let reasoning = format!("{count} brokers answer and say themselves that they are not registered");
    Some(draft(
        Code::BrokerUnregistered,
        "cluster.serves_unregistered",
        Severity::Warning,
        vec!["brokers.unregistered"],
        reasoning,
    ))
}

fn broker_restarting(e: &Exhibits) -> Option<Draft> {
    let count = e.number("brokers.restarting").filter(|n| *n > 0.0)?;
    let reasoning = format!("{count} brokers registered anew more than once within the window");
    Some(draft(
        Code::BrokerRestarting,
        "cluster.registers_again_and_again",
        Severity::Warning,
        vec!["brokers.restarting"],
        reasoning,
    ))
}

fn etcd_slow(e: &Exhibits) -> Option<Draft> {
    let slow: Vec<(&'static str, f64)> = [("etcd.read_ms", ETCD_READ_MS), ("commit.p99_ms", COMMIT_P99_MS)]
        .into_iter()
        .filter_map(|(id, most)| Some((id, e.number(id).filter(|ms| *ms > most)?)))
        .collect();
    let (first, _) = slow.first()?;
    let figures: Vec<String> = slow.iter().map(|(id, ms)| format!("{id} is {ms:.0}")).collect();
    // A single read may be slow for many reasons.
    let confidence =
        if slow.len() > 1 || *first == "commit.p99_ms" { Confidence::High } else { Confidence::Low };
    let evidence = slow.iter().map(|(id, _)| *id).collect();
    let reasoning = format!("etcd answers late: {}", figures.join(", "));
    Some(Draft {
        confidence,
        ..draft(Code::EtcdSlow, "cluster.late_commits", Severity::Warning, evidence, reasoning)
    })
}

fn etcd_nearly_full(e: &Exhibits) -> Option<Draft> {
    let since_s = e.number("produce.slowed_by_etcd_s").filter(|s| *s > 0.0)?;
    let reasoning = format!(
        "etcd is above 80 % of its quota: for {since_s:.0} s at least flushes have waited after one another, so producers are slowed"
    );
    let evidence = vec!["produce.slowed_by_etcd_s"];
    Some(draft(Code::EtcdNearlyFull, "cluster.slowed_by_etcd", Severity::Warning, evidence, reasoning))
}

fn state_crowded(e: &Exhibits) -> Option<Draft> {
    let since_s = e.number("produce.slowed_by_state_s").filter(|s| *s > 0.0)?;
    let reasoning = format!(
        "the state has more than half of max_state_ranges: merging does not keep up, and for {since_s:.0} s at least producers have been slowed"
    );
    let evidence = vec!["produce.slowed_by_state_s"];
    Some(draft(Code::StateCrowded, "cluster.slowed_by_state", Severity::Warning, evidence, reasoning))
}

fn broker_behind(e: &Exhibits) -> Option<Draft> {
    let count = e.number("brokers.behind").filter(|n| *n > 0.0)?;
    let reasoning = format!("{count} brokers apply commits late");
    Some(draft(
        Code::BrokerBehind,
        "cluster.watch_lags",
        Severity::Warning,
        vec!["brokers.behind"],
        reasoning,
    ))
}

fn no_job_holder(e: &Exhibits) -> Option<Draft> {
    if e.flag("jobs.held")? || e.number("brokers.registered") == Some(0.0) {
        return None;
    }
    let reasoning =
        "no broker holds the background jobs: no retention, no snapshots, no watermarks".to_owned();
    Some(draft(Code::NoJobHolder, "cluster.jobs_not_held", Severity::Warning, vec!["jobs.held"], reasoning))
}

/// A transaction that nobody aborts though its time-out is over.
fn overdue_transaction(e: &Exhibits) -> Option<Draft> {
    let transactions = named(e, "transactions.overdue")?;
    // Whoever aborts them is not there; that is said already.
    if e.flag("jobs.held") == Some(false) || e.number("brokers.registered") == Some(0.0) {
        return None;
    }
    let reasoning = format!("nobody aborts what timed out {OVERDUE_S} s ago or more: {transactions}");
    let rule = "cluster.transaction_not_aborted";
    if e.number("brokers.lost").is_some_and(|n| n > 0.0) {
        // Another broker took over the jobs, and measures time-outs anew.
        let evidence = vec!["transactions.overdue", "brokers.lost"];
        return Some(Draft { evidence, ..only_adds_to(Code::OpenTransaction, rule, reasoning) });
    }
    Some(draft(
        Code::OpenTransaction,
        rule,
        Severity::Warning,
        vec!["transactions.overdue", "transactions.open"],
        reasoning,
    ))
}

/// A transaction that is slow and may be meant to be.
fn long_transaction(e: &Exhibits) -> Option<Draft> {
    let transactions = named(e, "transactions.long_open")?;
    let reasoning =
        format!("records are kept for long from whoever reads with read_committed, by {transactions}");
    Some(draft(
        Code::OpenTransaction,
        "cluster.transaction_open_for_long",
        Severity::Info,
        vec!["transactions.long_open"],
        reasoning,
    ))
}

fn draining(e: &Exhibits) -> Option<Draft> {
    let count = e.number("brokers.draining").filter(|n| *n > 0.0)?;
    let reasoning = format!("{count} brokers are leaving as they were told");
    Some(draft(Code::BrokerDraining, "cluster.leaves", Severity::Info, vec!["brokers.draining"], reasoning))
}

/// Metrics of some sources cannot be read.
pub fn metrics_blind(e: &Exhibits) -> Option<Draft> {
    let count = e.number("metrics.blind").filter(|n| *n > 0.0)?;
    let reasoning = format!("metrics of {count} sources cannot be read: what they would show is unknown");
    Some(draft(
        Code::MetricsBlind,
        "cluster.not_scraped",
        Severity::Unknown,
        vec!["metrics.blind"],
        reasoning,
    ))
}

fn token_expiring(e: &Exhibits) -> Option<Draft> {
    let left = e.number("access.token_ends_in_s").filter(|s| *s < TOKEN_S)?;
    let reasoning = format!("the token of this caller ends in {left:.0} s");
    Some(draft(
        Code::TokenExpiring,
        "cluster.token_ends",
        Severity::Info,
        vec!["access.token_ends_in_s"],
        reasoning,
    ))
}
