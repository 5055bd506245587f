//! Why a group is behind.
//!
//! Evidence about the group begins with `group.`; what it shares with the whole cluster does not.

use super::bounds::{
    HOT, MOST_OF_LAG, NO_LAG_RECORDS, NO_LAG_S, OVERTAKEN_S, RECOVERED_S, S3_ERRORS, SAME_PACE, STORM, SURGE,
};
use super::storage::{is_slow, slow_evidence};
use super::transactions::{named, only_adds_to};
use super::{Code, Confidence, Draft, Exhibits, Rule, Severity};

/// What must be known to say that a group is well.
pub const ESSENTIAL: &[&str] = &["group.members", "group.lag"];

/// The rules.
pub const RULES: &[Rule] = &[
    out_of_range,
    overtaking,
    empty_group,
    open_transaction,
    rebalance_storm,
    no_broker,
    broker_lost,
    storage,
    hot_partition,
    stalled,
    surge,
    slow,
    never_committed,
    no_lag,
];

fn draft(code: Code, rule: &'static str, evidence: Vec<&'static str>, reasoning: String) -> Draft {
    Draft {
        code,
        rule,
        severity: Severity::Warning,
        confidence: Confidence::High,
        evidence,
        counter_evidence: Vec::new(),
        reasoning,
    }
}

/// The lag, if it is more than a group has that is well.
fn behind(e: &Exhibits) -> Option<f64> {
    let lag = e.number("group.lag")?;
    let usual = e.number("group.produce_rate").unwrap_or_default() * NO_LAG_S;
    (lag > NO_LAG_RECORDS.max(usual)).then_some(lag)
}

/// The lag without what open transactions keep from a group that has read all that is committed, if
/// it is more than a group has that is well: what says how fast the group reads is about that.
fn readable(e: &Exhibits) -> Option<f64> {
    let lag = behind(e)?;
    let readable = e.number("group.readable_lag").unwrap_or(lag);
    let usual = e.number("group.produce_rate").unwrap_or_default() * NO_LAG_S;
    (readable > NO_LAG_RECORDS.max(usual)).then_some(readable)
}

/// Whether somebody is there to read; not if it is not known.
fn has_members(e: &Exhibits) -> bool {
    e.number("group.members").is_some_and(|n| n > 0.0)
}

/// Whether what is left shrinks as fast as it should: more is read than produced.
pub fn is_catching_up(e: &Exhibits) -> bool {
    match (e.number("group.consume_rate"), e.number("group.produce_rate")) {
        (Some(consumed), Some(produced)) => consumed > produced,
        _ => false,
    }
}

fn out_of_range(e: &Exhibits) -> Option<Draft> {
    let count = e.number("group.partitions_out_of_range").filter(|n| *n > 0.0)?;
    let lost = e.number("group.records_lost").filter(|n| *n > 0.0);
    let (mut evidence, mut reasoning) = (
        vec!["group.partitions_out_of_range"],
        format!("what the group committed is not in the log of {count} of its partitions"),
    );
    if let Some(lost) = lost {
        evidence.push("group.records_lost");
        reasoning = format!("{reasoning}; retention took {lost} records that it had not read");
    }
    let severity = if lost.is_some() { Severity::Critical } else { Severity::Warning };
    Some(Draft {
        severity,
        ..draft(Code::OffsetsOutOfRange, "lag.committed_outside_of_log", evidence, reasoning)
    })
}

fn empty_group(e: &Exhibits) -> Option<Draft> {
    let lag = behind(e)?;
    let is_empty = e.number("group.members") == Some(0.0);
    let reasoning = format!("nobody is in the group, and {lag} records wait for it");
    is_empty.then(|| draft(Code::EmptyGroup, "lag.no_members", vec!["group.members", "group.lag"], reasoning))
}

/// A group that has read what is committed waits for the transaction; for one that is far from
/// there it is no reason yet, and will be one.
fn open_transaction(e: &Exhibits) -> Option<Draft> {
    let lag = behind(e)?;
    if !has_members(e) {
        return None;
    }
    let held = e.number("group.held_back_lag")?;
    let later = e.number("group.held_back_later").unwrap_or_default();
    let transactions = named(e, "group.open_transactions")?;
    let past = e.number("group.partitions_past_stable").is_some_and(|n| n > 0.0);
    let mut counter_evidence = Vec::new();
    if past {
        counter_evidence.push("group.partitions_past_stable");
    }
    if held * 2.0 < lag {
        counter_evidence.push("group.readable_lag");
        let reasoning = format!(
            "of the lag of {lag} records {} are of open transactions or behind them, and the group has others to read first: {transactions}",
            held + later
        );
        let adds = only_adds_to(Code::OpenTransaction, "lag.transaction_ahead", reasoning);
        let evidence = vec!["group.open_transactions", "group.held_back_lag", "group.held_back_later"];
        return (held + later > NO_LAG_RECORDS).then_some(Draft { evidence, counter_evidence, ..adds });
    }
    if readable(e).is_some() {
        counter_evidence.push("group.readable_lag");
    }
    let reasoning = format!(
        "the group has read what is committed and waits: {held} of the {lag} records of its lag are kept from whoever reads with read_committed, by {transactions}"
    );
    let evidence =
        vec!["group.open_transactions", "group.held_back_lag", "group.partitions_held_back", "group.members"];
    Some(Draft {
        counter_evidence,
        ..draft(Code::OpenTransaction, "lag.waits_at_last_stable_offset", evidence, reasoning)
    })
}

fn rebalance_storm(e: &Exhibits) -> Option<Draft> {
    let count = e.number("group.rebalances").filter(|n| *n >= STORM)?;
    let reasoning = format!("it got {count} new generations within the window, and nobody reads meanwhile");
    let mut storm = draft(Code::RebalanceStorm, "lag.many_generations", vec!["group.rebalances"], reasoning);
    if behind(e).is_none() {
        // It bears it so far.
        storm.severity = Severity::Info;
        storm.counter_evidence.push("group.lag");
    }
    Some(storm)
}

fn no_broker(e: &Exhibits) -> Option<Draft> {
    behind(e)?;
    let none = e.number("brokers.registered") == Some(0.0);
    let reasoning = "no broker is registered: nothing can be read".to_owned();
    none.then(|| Draft {
        severity: Severity::Critical,
        ..draft(Code::BrokerDown, "lag.no_brokers", vec!["brokers.registered", "group.lag"], reasoning)
    })
}

fn broker_lost(e: &Exhibits) -> Option<Draft> {
    behind(e)?;
    let lost = e.number("brokers.lost").filter(|n| *n > 0.0)?;
    let lost_age = e.number("brokers.last_loss_age_s")?;
    let commit_age = e.number("group.last_commit_age_s")?;
    // One that committed well after the loss has another reason.
    let has_recovered = lost_age - commit_age > RECOVERED_S && is_catching_up(e);
    if has_recovered || e.number("brokers.registered") == Some(0.0) {
        return None;
    }
    let reasoning = format!(
        "{lost} brokers lost their registration, the last {lost_age:.0} s ago; the group last committed {commit_age:.0} s ago"
    );
    let evidence = vec!["brokers.lost", "brokers.last_loss_age_s", "group.last_commit_age_s"];
    let goes_on = lost_age - commit_age > RECOVERED_S;
    Some(Draft {
        confidence: Confidence::Medium,
        counter_evidence: if goes_on {
            vec!["group.last_commit_age_s", "group.consume_rate"]
        } else {
            Vec::new()
        },
        ..draft(Code::BrokerDown, "lag.since_a_broker_was_lost", evidence, reasoning)
    })
}

fn storage(e: &Exhibits) -> Option<Draft> {
    behind(e)?;
    if e.number("s3.failing_brokers").is_some_and(|n| n > 0.0) {
        let reasoning =
            "the object store does not answer, so what is not in memory cannot be read".to_owned();
        return Some(Draft {
            severity: Severity::Critical,
            ..draft(
                Code::StorageSlow,
                "lag.storage_failing",
                vec!["s3.failing_brokers", "group.lag"],
                reasoning,
            )
        });
    }
    let fails = e.number("s3.error_rate").is_some_and(|r| r > S3_ERRORS);
    if !fails && !is_slow(e) {
        return None;
    }
    let mut evidence = slow_evidence(e);
    if fails {
        evidence.push("s3.error_rate");
    }
    let counter_evidence = if is_catching_up(e) { vec!["group.consume_rate"] } else { Vec::new() };
    let reasoning =
        "the object store is slow or fails in part, which every read of old records waits for".to_owned();
    Some(Draft {
        confidence: Confidence::Medium,
        counter_evidence,
        ..draft(Code::StorageSlow, "lag.storage_slow", evidence, reasoning)
    })
}

fn hot_partition(e: &Exhibits) -> Option<Draft> {
    readable(e)?;
    if !has_members(e) {
        return None;
    }
    let of_lag = e.number("group.hottest_lag_share").filter(|s| *s >= MOST_OF_LAG)?;
    let of_production = e.number("group.hottest_produce_share")?;
    let fair = e.number("group.hottest_fair_share").filter(|s| *s <= 0.5)?;
    let is_read = e.number("group.hottest_consume_rate").is_some_and(|r| r > 0.0);
    if of_production < HOT * fair && of_production < MOST_OF_LAG || !is_read {
        return None;
    }
    let reasoning = format!(
        "one partition gets {:.0} % of its topic's records and has {:.0} % of the lag; the others keep up",
        of_production * 100.0,
        of_lag * 100.0
    );
    let evidence = vec![
        "group.hottest_partition",
        "group.hottest_lag_share",
        "group.hottest_produce_share",
        "group.hottest_fair_share",
        "group.hottest_consume_rate",
    ];
    Some(draft(Code::HotPartition, "lag.skewed_production", evidence, reasoning))
}

fn stalled(e: &Exhibits) -> Option<Draft> {
    readable(e)?;
    let stalled = e.number("group.partitions_stalled").filter(|n| *n > 0.0)?;
    let lagging = e.number("group.partitions_lagging")?;
    if !has_members(e) || stalled * 2.0 < lagging {
        return None;
    }
    let reasoning = format!(
        "members are there, and of {lagging} partitions with something to read {stalled} had no commit for a minute"
    );
    let evidence = vec!["group.members", "group.partitions_stalled", "group.partitions_lagging"];
    let mut counter_evidence = Vec::new();
    if e.number("group.consume_rate").is_some_and(|r| r > 0.0) {
        counter_evidence.push("group.consume_rate");
    }
    Some(Draft {
        counter_evidence,
        ..draft(Code::ConsumerStalled, "lag.members_without_commits", evidence, reasoning)
    })
}

fn surge(e: &Exhibits) -> Option<Draft> {
    readable(e)?;
    let (produced, before) = (e.number("group.produce_rate")?, e.number("group.produce_rate_before")?);
    let consumed = e.number("group.consume_rate")?;
    if produced < SURGE * before || produced <= consumed || consumed <= 0.0 {
        return None;
    }
    let has_slowed = e.number("group.consume_rate_before").is_some_and(|b| consumed < SAME_PACE * b);
    let evidence = vec!["group.produce_rate", "group.produce_rate_before", "group.consume_rate"];
    let reasoning =
        format!("{produced:.0} records/s are produced, {before:.0} before; {consumed:.0} are read");
    let counter_evidence = if has_slowed { vec!["group.consume_rate_before"] } else { Vec::new() };
    Some(Draft {
        counter_evidence,
        ..draft(Code::ProducerSurge, "lag.production_leapt", evidence, reasoning)
    })
}

fn slow(e: &Exhibits) -> Option<Draft> {
    readable(e)?;
    let (consumed, produced) = (e.number("group.consume_rate")?, e.number("group.produce_rate")?);
    if !has_members(e) || consumed <= 0.0 || consumed >= produced {
        return None;
    }
    let is_surge = e.number("group.produce_rate_before").is_some_and(|b| produced >= SURGE * b);
    let reasoning = format!("{consumed:.0} records/s are read and {produced:.0} are produced");
    let evidence = vec!["group.members", "group.consume_rate", "group.produce_rate"];
    let counter_evidence = if is_surge { vec!["group.produce_rate_before"] } else { Vec::new() };
    Some(Draft {
        counter_evidence,
        ..draft(Code::ConsumerSlow, "lag.reads_less_than_is_produced", evidence, reasoning)
    })
}

fn overtaking(e: &Exhibits) -> Option<Draft> {
    let left = e.number("group.overtaken_in_s").filter(|s| *s < OVERTAKEN_S)?;
    let reasoning = format!("retention will overtake it in {left:.0} s if both go on like this");
    Some(Draft {
        severity: Severity::Critical,
        confidence: Confidence::Medium,
        ..draft(Code::RetentionOvertaking, "lag.log_start_is_faster", vec!["group.overtaken_in_s"], reasoning)
    })
}

fn never_committed(e: &Exhibits) -> Option<Draft> {
    let never = e.number("group.partitions_never_committed").filter(|n| *n > 0.0)?;
    if !has_members(e) {
        return None;
    }
    let reasoning =
        format!("{never} partitions have records and members, and the group has committed nothing for them");
    Some(Draft {
        confidence: Confidence::Medium,
        ..draft(
            Code::NeverCommitted,
            "lag.records_without_commits",
            vec!["group.partitions_never_committed", "group.members"],
            reasoning,
        )
    })
}

fn no_lag(e: &Exhibits) -> Option<Draft> {
    let lag = e.number("group.lag")?;
    if behind(e).is_some() || e.number("group.partitions_out_of_range").is_some_and(|n| n > 0.0) {
        return None;
    }
    // A little may be left behind by somebody who stands still.
    let stands = e.number("group.partitions_stalled").is_some_and(|n| n > 0.0);
    let reasoning = if lag > 0.0 {
        format!("{lag} records are left, no more than seconds of production")
    } else {
        "the group has read everything".to_owned()
    };
    Some(Draft {
        severity: Severity::Ok,
        counter_evidence: if stands { vec!["group.partitions_stalled"] } else { Vec::new() },
        ..draft(Code::NoLag, "lag.at_the_end", vec!["group.lag"], reasoning)
    })
}
