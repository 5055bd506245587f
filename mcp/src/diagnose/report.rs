//! The report: causes and evidence put together. "Healthy" and "unknown" are answers too.

use super::{Cause, Code, Confidence, Exhibits, Severity};

/// What a diagnosis says.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// In a sentence or two.
    pub summary: String,
    /// The worst of all causes.
    pub severity: Severity,
    /// How sure the first cause is, or the verdict without one.
    pub confidence: Confidence,
    /// The rule that set it.
    pub rule: &'static str,
    /// The causes, what explains others first.
    pub causes: Vec<Cause>,
}

/// Puts a report together. `essential` is what must be known to call something healthy; `healthy`
/// says so.
pub fn report(causes: Vec<Cause>, exhibits: &Exhibits, essential: &[&str], healthy: &str) -> Report {
    let unknown: Vec<&str> = essential.iter().copied().filter(|id| !exhibits.has(id)).collect();
    let real: Vec<&Cause> = causes.iter().filter(|c| c.code != Code::NoLag).collect();
    let Some(first) = causes.first() else {
        return without_cause(&unknown, healthy);
    };
    let mut severity = causes.iter().map(|c| c.severity).max().unwrap_or(Severity::Unknown);
    if severity < Severity::Unknown && !unknown.is_empty() {
        // Something small was found, and something large may be hidden.
        severity = Severity::Unknown;
    }
    let mut summary = format!("{}: {}", first.code.as_str(), first.reasoning);
    let others: Vec<&str> =
        real.iter().map(|c| c.code.as_str()).filter(|c| *c != first.code.as_str()).collect();
    if !others.is_empty() {
        let mut distinct: Vec<&str> = Vec::new();
        for other in others {
            if !distinct.contains(&other) {
                distinct.push(other);
            }
        }
        summary = format!("{summary}; also {}", distinct.join(", "));
    }
    if !unknown.is_empty() {
        summary = format!("{summary}; not known: {}", unknown.join(", "));
    }
    Report { summary, severity, confidence: first.confidence, rule: first.rule, causes }
}

fn without_cause(unknown: &[&str], healthy: &str) -> Report {
    let causes = Vec::new();
    if unknown.is_empty() {
        return Report {
            summary: format!("healthy: {healthy}"),
            severity: Severity::Ok,
            confidence: Confidence::High,
            rule: "all_evidence_within_bounds",
            causes,
        };
    }
    Report {
        summary: format!("unknown: no rule fires, and this is not known: {}", unknown.join(", ")),
        severity: Severity::Unknown,
        confidence: Confidence::None,
        rule: "essential_evidence_missing",
        causes,
    }
}
