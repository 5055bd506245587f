//! The shape of every answer: the tool's own fields and `meta`; or an error and `meta`.

use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::limits::ANSWER_BYTES;
use crate::source::etcd::EtcdError;

/// Version of the answers' shape.
pub const SCHEMA_VERSION: &str = "1";

/// Why a call has no answer. Its code is part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// An argument is not what it may be.
    InvalidArgument,
    /// What is asked for does not exist, or the caller may not see it.
    NotFound,
    /// The caller may not ask that.
    PermissionDenied,
    /// The caller asks too often.
    RateLimited,
    /// A source cannot be read.
    SourceUnavailable,
    /// A source did not answer in time.
    SourceTimeout,
    /// What is known is too old to be an answer.
    StaleData,
    /// The cursor is not good (any more) for this caller and these arguments.
    CursorExpired,
    /// Nothing is known of that time.
    WindowOutOfRange,
    /// The answer would be too large.
    OutputTooLarge,
    /// The observer is wrong.
    Internal,
}

impl Code {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::PermissionDenied => "permission_denied",
            Self::RateLimited => "rate_limited",
            Self::SourceUnavailable => "source_unavailable",
            Self::SourceTimeout => "source_timeout",
            Self::StaleData => "stale_data",
            Self::CursorExpired => "cursor_expired",
            Self::WindowOutOfRange => "window_out_of_range",
            Self::OutputTooLarge => "output_too_large",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later.
    const fn is_retryable(self) -> bool {
        matches!(self, Self::RateLimited | Self::SourceUnavailable | Self::SourceTimeout | Self::StaleData)
    }
}

/// An error that the caller sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct ToolError {
    /// What kind it is.
    pub code: Code,
    /// What is wrong, in a sentence.
    pub message: String,
    /// When to try again, in ms.
    pub retry_after_ms: Option<u64>,
    /// What to do instead.
    pub suggestions: Vec<String>,
}

impl ToolError {
    /// An error with a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None, suggestions: Vec::new() }
    }

    /// With something to do instead.
    #[must_use]
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestions.push(suggestion.into());
        self
    }

    /// As the caller sees it.
    pub fn to_json(&self, request_id: &str) -> Value {
        json!({
            "code": self.code.as_str(),
            "message": self.message,
            "retryable": self.code.is_retryable(),
            "retry_after_ms": self.retry_after_ms,
            "suggestions": self.suggestions,
            "request_id": request_id,
        })
    }
}

impl From<EtcdError> for ToolError {
    fn from(error: EtcdError) -> Self {
        let code = match error {
            EtcdError::TimedOut(_) => Code::SourceTimeout,
            EtcdError::Unavailable(_) | EtcdError::Compacted => Code::SourceUnavailable,
        };
        // Endpoints and users of etcd are in the log, not in answers.
        let message = match &error {
            EtcdError::Unavailable(_) => "etcd cannot be read now".to_owned(),
            EtcdError::TimedOut(_) | EtcdError::Compacted => error.to_string(),
        };
        Self { retry_after_ms: Some(2_000), ..Self::new(code, message) }
            .suggest("observer_status shows what the observer knows of its sources")
    }
}

/// How a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceStatus {
    /// It was read.
    Ok,
    /// What is known of it is old.
    Stale,
    /// It could not be read.
    Failed,
    /// There is nothing to read from.
    Absent,
}

impl SourceStatus {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stale => "stale",
            Self::Failed => "failed",
            Self::Absent => "absent",
        }
    }
}

/// A source that an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceNote {
    /// `etcd`, `metrics:broker-1`, …
    pub source: String,
    /// How it is.
    pub status: SourceStatus,
    /// How old what is known of it is, in ms.
    pub age_ms: Option<i64>,
}

/// The time that an answer really covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// From when, ms since 1970.
    pub start_ms: i64,
    /// Until when.
    pub end_ms: i64,
    /// Between samples, in ms.
    pub step_ms: i64,
    /// How many.
    pub samples: usize,
}

/// What is said beside the tool's own fields.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// The id of the cluster.
    pub cluster_id: Option<String>,
    /// The revision that the answer is as of.
    pub revision: Option<i64>,
    /// When what it rests on was read, ms since 1970: the oldest of it.
    pub oldest_ms: Option<i64>,
    /// Whether something is missing that should be there.
    pub partial: bool,
    /// What to know about the answer: code and sentence.
    pub warnings: Vec<(&'static str, String)>,
    /// The time that it covers.
    pub window: Option<Covered>,
    /// What it rests on.
    pub sources: Vec<SourceNote>,
}

impl Meta {
    /// Notes a source.
    pub fn source(&mut self, source: impl Into<String>, status: SourceStatus, age_ms: Option<i64>) {
        let source = source.into();
        if !self.sources.iter().any(|s| s.source == source) {
            self.sources.push(SourceNote { source, status, age_ms });
        }
    }

    /// Notes something to know, once per code.
    pub fn warn(&mut self, code: &'static str, message: impl Into<String>) {
        if !self.warnings.iter().any(|(known, _)| *known == code) {
            self.warnings.push((code, message.into()));
        }
    }

    /// Notes that something is missing.
    pub fn missing(&mut self, code: &'static str, message: impl Into<String>) {
        self.partial = true;
        self.warn(code, message);
    }

    /// Notes when something that the answer rests on was read.
    pub fn read_at(&mut self, ms: i64) {
        self.oldest_ms = Some(self.oldest_ms.map_or(ms, |known| known.min(ms)));
    }

    /// As the caller sees it.
    pub fn to_json(&self, request_id: &str, principal: &str, now_ms: i64) -> Value {
        let warnings: Vec<Value> =
            self.warnings.iter().map(|(code, message)| json!({"code": code, "message": message})).collect();
        let sources: Vec<Value> = self
            .sources
            .iter()
            .map(|s| json!({"source": s.source, "status": s.status.as_str(), "age_ms": s.age_ms}))
            .collect();
        json!({
            "schema_version": SCHEMA_VERSION,
            "request_id": request_id,
            "principal": principal,
            "cluster_id": self.cluster_id,
            "observed_at": rfc3339(now_ms),
            "etcd_revision": self.revision,
            "freshness_ms": self.oldest_ms.map(|ms| (now_ms - ms).max(0)),
            "partial": self.partial,
            "warnings": warnings,
            "window": self.window.map(|w| json!({
                "start": rfc3339(w.start_ms), "end": rfc3339(w.end_ms), "step_s": (w.step_ms + 999) / 1000, "samples": w.samples,
            })),
            "sources": sources,
        })
    }
}

/// An answer, ready to be sent.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The whole of it.
    pub value: Value,
    /// Its bytes as JSON.
    pub text: String,
    /// The code of the error, or `ok`.
    pub outcome: &'static str,
}

/// Puts an answer and its meta together. One that is too large becomes an error.
pub fn render(result: Result<Map<String, Value>, ToolError>, meta: &Value, request_id: &str) -> Rendered {
    let (mut body, outcome) = match result {
        Ok(body) => (body, "ok"),
        Err(error) => (error_body(&error, request_id), error.code.as_str()),
    };
    body.insert("meta".to_owned(), meta.clone());
    let value = Value::Object(body);
    let text = value.to_string();
    if text.len() <= ANSWER_BYTES {
        return Rendered { value, text, outcome };
    }
    let error =
        ToolError::new(Code::OutputTooLarge, format!("the answer has more than {ANSWER_BYTES} bytes"))
            .suggest("ask for less: fewer names, a smaller limit, a shorter window");
    let mut body = error_body(&error, request_id);
    let mut meta = meta.clone();
    // It may be what is too large.
    meta["warnings"] = json!([]);
    meta["sources"] = json!([]);
    body.insert("meta".to_owned(), meta);
    let value = Value::Object(body);
    Rendered { text: value.to_string(), value, outcome: error.code.as_str() }
}

fn error_body(error: &ToolError, request_id: &str) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), error.to_json(request_id))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_becomes_an_error() {
        let body = Map::from_iter([("x".to_owned(), Value::from("y".repeat(ANSWER_BYTES)))]);
        let rendered = render(Ok(body), &Meta::default().to_json("r", "p", 5), "r");
        assert_eq!(rendered.outcome, "output_too_large");
        assert_eq!(rendered.value["error"]["code"], "output_too_large");
        assert_eq!(rendered.value["meta"]["principal"], "p");
        assert!(rendered.text.len() < 1_000);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let meta = Meta::default().to_json("r", "p", 5);
        assert!(
            meta["etcd_revision"].is_null() && meta["freshness_ms"].is_null() && meta["window"].is_null()
        );
        let mut meta = Meta::default();
        meta.read_at(3);
        meta.read_at(4);
        meta.warn("a", "1");
        meta.warn("a", "2");
        let meta = meta.to_json("r", "p", 5);
        assert_eq!((&meta["freshness_ms"], meta["warnings"].as_array().unwrap().len()), (&json!(2), 1));
    }

    #[test]
    fn an_error_of_etcd_does_not_name_its_endpoints() {
        let error = ToolError::from(EtcdError::Unavailable("http://etcd-1:2379 refused".to_owned()));
        assert_eq!(error.code, Code::SourceUnavailable);
        assert!(!error.message.contains("etcd-1"));
    }
}
