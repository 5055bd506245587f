//! Evidence reports: what was looked at, what it shows, which causes it supports. A cause may cite only evidence that is
//! there; what could not be looked at is named as missing.

use serde_json::{Value, json};

use super::Body;
use super::body;
use crate::clock::rfc3339;

/// Version of the rules: it moves when the same evidence leads to another answer.
pub(crate) const RULES_VERSION: &str = "1";

/// What every report looks like.
pub(crate) const REPORT: &str = "{summary:s,severity:(ok|info|warning|critical|unknown),confidence:(high|medium|low),confidence_rule:s,root_causes:[{code:s,evidence_refs:[s],counter_evidence_refs:[s],reasoning:s}],evidence:[{id:s,source:s,window:s?,samples:i?,observed_at:s?,status:s,value:*}],missing_evidence:[s],recommendations:[{action:s,risk:s,verification:s,runbook_id:s?}],rules_version:s}";

/// Something that was looked at.
#[derive(Clone, Debug)]
struct Evidence {
    id: &'static str,
    source: String,
    window: Option<&'static str>,
    samples: Option<usize>,
    observed_at_ms: i64,
    value: Value,
}

/// Something that explains what is seen.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub(crate) code: &'static str,
    refs: Vec<&'static str>,
    counter: Vec<&'static str>,
    reasoning: String,
}

/// A report that is being written.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    now_ms: i64,
    evidence: Vec<Evidence>,
    missing: Vec<String>,
    pub(crate) causes: Vec<Cause>,
    recommendations: Vec<Value>,
}

impl Report {
    pub(crate) fn new(now_ms: i64) -> Self {
        Self {
            now_ms,
            evidence: Vec::new(),
            missing: Vec::new(),
            causes: Vec::new(),
            recommendations: Vec::new(),
        }
    }

    /// Notes what was looked at. What is not known is missing, not evidence.
    pub(crate) fn evidence(&mut self, id: &'static str, source: impl Into<String>, value: Option<Value>) {
        match value.filter(|v| !v.is_null()) {
            Some(value) => self.evidence.push(Evidence {
                id,
                source: source.into(),
                window: None,
                samples: None,
                observed_at_ms: self.now_ms,
                value,
            }),
            None => self.missing.push(id.to_owned()),
        }
    }

    /// The same over a window.
    pub(crate) fn evidence_over(
        &mut self,
        id: &'static str,
        source: impl Into<String>,
        window: &'static str,
        samples: Option<usize>,
        value: Option<Value>,
    ) {
        let before = self.evidence.len();
        self.evidence(id, source, value);
        if let Some(added) = self.evidence.get_mut(before) {
            (added.window, added.samples) = (Some(window), samples);
        }
    }

    fn has(&self, id: &str) -> bool {
        self.evidence.iter().any(|e| e.id == id)
    }

    /// Notes a cause, if all that it cites is there. Says whether it was.
    pub(crate) fn cause(
        &mut self,
        code: &'static str,
        refs: &[&'static str],
        counter: &[&'static str],
        reasoning: impl Into<String>,
    ) -> bool {
        if refs.is_empty() || !refs.iter().all(|r| self.has(r)) {
            return false;
        }
        let counter = counter.iter().copied().filter(|r| self.has(r)).collect();
        self.causes.push(Cause { code, refs: refs.to_vec(), counter, reasoning: reasoning.into() });
        true
    }

    /// Notes something to do.
    pub(crate) fn recommend(
        &mut self,
        action: &str,
        risk: &str,
        verification: &str,
        runbook_id: Option<&str>,
    ) {
        self.recommendations.push(
            json!({"action": action, "risk": risk, "verification": verification, "runbook_id": runbook_id}),
        );
    }

    /// How sure the first cause is, and the rule that says so.
    fn confidence(&self) -> (&'static str, &'static str) {
        let Some(first) = self.causes.first() else {
            return if self.missing.is_empty() {
                ("high", "no rule found a cause and no evidence is missing")
            } else {
                ("low", "no rule found a cause and evidence is missing")
            };
        };
        let sources: std::collections::BTreeSet<&str> = first
            .refs
            .iter()
            .filter_map(|r| self.evidence.iter().find(|e| e.id == *r))
            .map(|e| e.source.as_str())
            .collect();
        match (first.counter.is_empty(), sources.len() > 1 || first.refs.len() > 2, self.missing.is_empty()) {
            (false, ..) => ("low", "there is evidence against the first cause"),
            (true, true, true) => {
                ("high", "several pieces of evidence agree, none speaks against it, none is missing")
            }
            (true, true, false) => ("medium", "several pieces of evidence agree, and some is missing"),
            (true, false, true) => ("medium", "one piece of evidence, and none is missing"),
            (true, false, false) => ("low", "one piece of evidence, and some is missing"),
        }
    }

    /// The finished report.
    pub(crate) fn finish(self, summary: impl Into<String>, severity: &'static str) -> Body {
        let (confidence, rule) = self.confidence();
        let causes: Vec<Value> = self
            .causes
            .iter()
            .map(|c| json!({"code": c.code, "evidence_refs": c.refs, "counter_evidence_refs": c.counter, "reasoning": c.reasoning}))
            .collect();
        let evidence: Vec<Value> = self
            .evidence
            .iter()
            .map(|e| {
                json!({
                    "id": e.id, "source": e.source, "window": e.window, "samples": e.samples,
                    "observed_at": rfc3339(e.observed_at_ms), "status": "ok", "value": e.value,
                })
            })
            .collect();
        body(json!({
            "summary": summary.into(), "severity": severity, "confidence": confidence, "confidence_rule": rule,
            "root_causes": causes, "evidence": evidence, "missing_evidence": self.missing,
            "recommendations": self.recommendations, "rules_version": RULES_VERSION,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_cites_only_what_is_there() {
        let mut report = Report::new(0);
        report.evidence("seen", "etcd", Some(json!(1)));
        report.evidence("unseen", "metrics", None);
        assert!(!report.cause("x", &["seen", "unseen"], &[], ""));
        assert!(!report.cause("x", &[], &[], ""));
        assert!(report.cause("y", &["seen"], &["unseen"], ""));
        let body = report.finish("s", "warning");
        assert_eq!(body["missing_evidence"], json!(["unseen"]));
        assert_eq!(body["root_causes"][0]["counter_evidence_refs"], json!([]));
        assert_eq!(body["confidence"], "low");
    }
}
