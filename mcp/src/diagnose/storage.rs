//! How the object store is, as the brokers see it.

use super::bounds::{S3_ERRORS, S3_NOTABLE_MS, S3_P50_MS, S3_P99_MS, S3_SLOWER};
use super::{Code, Confidence, Draft, Exhibits, Rule, Severity};

/// What must be known to say that it is well. Latencies are not: where nothing is written, there
/// are none.
pub const ESSENTIAL: &[&str] = &["s3.failing_brokers"];

/// The rules.
pub const RULES: &[Rule] = &[denied, failing, throttled, slow, errors];

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

/// The figures that are slow by themselves or against what was before.
pub fn slow_evidence(e: &Exhibits) -> Vec<&'static str> {
    let mut found = Vec::new();
    for id in ["s3.put_p99_ms", "s3.get_p99_ms"] {
        if e.number(id).is_some_and(|ms| ms > S3_P99_MS) {
            found.push(id);
        }
    }
    if let Some(now) = e.number("s3.put_p50_ms") {
        let before = e.number("s3.put_p50_before_ms");
        if now > S3_P50_MS {
            found.push("s3.put_p50_ms");
        } else if before.is_some_and(|b| now >= S3_NOTABLE_MS && now >= S3_SLOWER * b) {
            found.extend(["s3.put_p50_ms", "s3.put_p50_before_ms"]);
        }
    }
    found
}

/// Whether the object store is slow.
pub fn is_slow(e: &Exhibits) -> bool {
    !slow_evidence(e).is_empty()
}

fn denied(e: &Exhibits) -> Option<Draft> {
    let rate = e.number("s3.denied_per_s").filter(|r| *r > 0.0)?;
    let reasoning =
        format!("{rate} requests/s are refused for who sends them: credentials, a policy or a clock");
    Some(Draft {
        severity: Severity::Critical,
        ..draft(Code::StorageDenied, "storage.requests_denied", vec!["s3.denied_per_s"], reasoning)
    })
}

fn failing(e: &Exhibits) -> Option<Draft> {
    let failing = e.number("s3.failing_brokers").filter(|n| *n > 0.0)?;
    let all = e.number("s3.scraped_brokers").is_some_and(|n| failing >= n);
    let reasoning =
        format!("several requests in a row failed on {failing} brokers, and none has succeeded since");
    let mut evidence = vec!["s3.failing_brokers", "s3.scraped_brokers"];
    evidence.extend(["s3.error_rate", "s3.put_failures"].into_iter().filter(|id| e.has(id)));
    Some(Draft {
        severity: if all { Severity::Critical } else { Severity::Warning },
        ..draft(Code::StorageFailing, "storage.unhealthy", evidence, reasoning)
    })
}

fn throttled(e: &Exhibits) -> Option<Draft> {
    let rate = e.number("s3.throttled_per_s").filter(|r| *r > 0.0)?;
    let reasoning = format!("it says slow down to {rate} requests/s");
    Some(draft(Code::StorageThrottled, "storage.throttled", vec!["s3.throttled_per_s"], reasoning))
}

fn slow(e: &Exhibits) -> Option<Draft> {
    let evidence = slow_evidence(e);
    if evidence.is_empty() {
        return None;
    }
    let figures: Vec<String> =
        evidence.iter().filter_map(|id| Some(format!("{id} is {:.0}", e.number(id)?))).collect();
    // What fails is retried, and each try counts: slowness by itself is sure only where nothing
    // fails.
    let fails = e.number("s3.error_rate").is_some_and(|r| r > S3_ERRORS);
    let counter_evidence = if fails { vec!["s3.error_rate"] } else { Vec::new() };
    let reasoning = format!("it answers late: {}", figures.join(", "));
    Some(Draft { counter_evidence, ..draft(Code::StorageSlow, "storage.late_answers", evidence, reasoning) })
}

fn errors(e: &Exhibits) -> Option<Draft> {
    let rate = e.number("s3.error_rate").filter(|r| *r > S3_ERRORS)?;
    let lost = e.number("s3.put_failures").filter(|n| *n > 0.0);
    let (mut evidence, mut reasoning) =
        (vec!["s3.error_rate"], format!("{:.1} % of the requests fail", rate * 100.0));
    if let Some(lost) = lost {
        evidence.push("s3.put_failures");
        reasoning = format!("{reasoning}, and {lost} flushes were refused for it");
    }
    Some(draft(Code::StorageErrors, "storage.requests_fail", evidence, reasoning))
}
