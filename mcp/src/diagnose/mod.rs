//! Diagnosis: deterministic rules over evidence, no model inside.
//!
//! ```text
//!   tools/evidence ─▶ Exhibits ─▶ rules (lag, storage, broker, cluster) ─▶ Cause… ─▶ report ─▶ Report
//!   (reads sources)   (present, or missing and why)      pure
//! ```
//!
//! A rule looks at numbers that are present. What is missing is `None`, never zero, so a rule that
//! needs it does not fire, and the report says that it is missing. A cause cites only evidence that
//! is there; evidence that speaks against it is cited too and lowers the confidence.

mod advice;
pub mod bounds;
pub mod broker;
mod cause;
pub mod cluster;
mod evidence;
pub mod lag;
mod report;
pub mod storage;
mod transactions;

pub use self::advice::{Advice, advice};
pub use self::cause::{Cause, Code, Confidence, Draft, Severity, judge};
pub use self::evidence::{Evidence, Exhibits, Missing, Status};
pub use self::report::{Report, report};

/// Version of the rules: it changes when the same evidence may lead to another answer.
pub const RULES_VERSION: &str = "4";

/// A rule: a cause if the evidence is there for it.
pub type Rule = fn(&Exhibits) -> Option<Draft>;

#[cfg(test)]
mod tests;
