//! From what `object_store` reports to what a caller should do next.
//!
//! The S3 client gives the HTTP status only as text inside of an error, so it is read back out of
//! that text here, and nowhere else. The tests of the development S3 server hold the real client to
//! it.

use std::error::Error;

use crate::error::{Operation, StoreError};
use crate::limits::MAX_ERROR_TEXT_BYTES;

/// What the client writes before the status of a failed request.
const STATUS_MARK: &str = "status code: ";
/// How the client words a range that begins behind the object's end, without having asked a server.
const RANGE_MARKS: [&str; 2] = ["Wanted range starting at", "Out of range of file"];
/// The code for a bucket that does not exist.
const NO_BUCKET: &str = "NoSuchBucket";
/// Where credentials are fetched from. No answer from there is no answer about an object.
const CREDENTIAL_MARKS: [&str; 3] = ["/latest/api/token", "/latest/meta-data/iam/", "http://169.254.170.2"];

/// Decides what a failed operation means. `key` is the object, or the prefix of a listing.
pub(super) fn classify(operation: Operation, key: &str, error: &object_store::Error) -> StoreError {
    let text = with_causes(error);
    let answer = Answer::read(&text);
    let key = key.to_owned();
    let message = answer.message(&text);
    if CREDENTIAL_MARKS.iter().any(|mark| text.contains(mark)) {
        return StoreError::Denied { key, operation, message: format!("no credentials: {message}") };
    }
    if let (object_store::Error::NotFound { .. }, code) = (error, answer.code)
        && code != Some(NO_BUCKET)
    {
        return match operation {
            Operation::Get | Operation::Delete => StoreError::NotFound { key },
            Operation::Put | Operation::List => {
                StoreError::Invalid { what: format!("{operation} {key} finds no bucket ({message})") }
            }
        };
    }
    if let Some(error) = answer.meaning(operation, &key, &message) {
        return error;
    }
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StoreError::Denied { key, operation, message }
        }
        object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. }
        | object_store::Error::NotImplemented { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => {
            StoreError::Invalid { what: format!("{operation} {key}: {message}") }
        }
        _ if text.contains("Received redirect without LOCATION") => StoreError::Invalid {
            what: format!("{operation} {key}: the server redirects, which means another region ({message})"),
        },
        _ if RANGE_MARKS.iter().any(|mark| text.contains(mark)) => {
            StoreError::Corrupt { key, what: format!("it ends before the range ({message})") }
        }
        _ => StoreError::Unavailable { key, operation, message },
    }
}

/// What an S3 server answered, as far as it can be read.
pub(super) struct Answer<'a> {
    pub(super) status: Option<u16>,
    pub(super) code: Option<&'a str>,
    pub(super) detail: Option<&'a str>,
}

impl<'a> Answer<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let status = text
            .split_once(STATUS_MARK)
            .and_then(|(_, rest)| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        Self { status, code: element(text, "Code"), detail: element(text, "Message") }
    }

    /// The error that status and code stand for, if they stand for one by themselves.
    pub(super) fn meaning(&self, operation: Operation, key: &str, message: &str) -> Option<StoreError> {
        let (key, message) = (key.to_owned(), message.to_owned());
        Some(match (self.status, self.code) {
            (_, Some(NO_BUCKET)) => {
                StoreError::Invalid { what: format!("the bucket does not exist ({message})") }
            }
            (Some(429 | 503), _) | (_, Some("SlowDown" | "SlowDownRead" | "SlowDownWrite")) => {
                StoreError::Throttled { key, operation, message }
            }
            // The client has no words of its own for a listing's status.
            (Some(401 | 403), _)
            | (_, Some("AccessDenied" | "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken")) => {
                StoreError::Denied { key, operation, message }
            }
            (Some(416), _) => {
                StoreError::Corrupt { key, what: format!("it ends before the range ({message})") }
            }
            // The body was damaged or cut on its way to the server, or took too long: another
            // attempt may do.
            (
                Some(400),
                Some("BadDigest" | "IncompleteBody" | "RequestTimeout" | "XAmzContentChecksumMismatch"),
            )
            | (Some(408 | 409), _) => StoreError::Unavailable { key, operation, message },
            (Some(status), _) if status < 500 => {
                StoreError::Invalid { what: format!("{operation} {key}: {message}") }
            }
            _ => return None,
        })
    }

    /// One line for people. Of an answer only code and message are kept: the rest of a refusal of a
    /// signature holds the access key and what was signed.
    pub(super) fn message(&self, text: &str) -> String {
        let message = match (self.status, self.code) {
            (Some(status), Some(code)) => format!("{status} {code} {}", self.detail.unwrap_or_default()),
            (Some(status), None) => format!("status {status}"),
            (None, Some(code)) => format!("{code} {}", self.detail.unwrap_or_default()),
            (None, None) => text.to_owned(),
        };
        let line: String = message.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(MAX_ERROR_TEXT_BYTES).collect()
    }
}

/// The text of the first XML element of that name.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once("</")?;
    Some(content.trim())
}

/// The error with its causes, each once: the client's outer errors repeat some of the inner ones.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    fn status(status: &str, code: &str) -> object_store::Error {
        generic(&format!(
            "Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {status}: \
             <Error><Code>{code}</Code><Message>some words</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>"
        ))
    }

    fn kind(error: &StoreError) -> &'static str {
        match error {
            StoreError::NotFound { .. } => "not found",
            StoreError::Throttled { .. } => "throttled",
            StoreError::Denied { .. } => "denied",
            StoreError::Unavailable { .. } => "unavailable",
            StoreError::Corrupt { .. } => "corrupt",
            StoreError::Invalid { .. } => "invalid",
        }
    }

    #[test]
    fn every_answer_means_something_to_do() {
        let not_found = || object_store::Error::NotFound { path: "k".into(), source: "x".into() };
        let no_bucket = || object_store::Error::NotFound {
            path: "k".into(),
            source: "status code: 404 Not Found: <Code>NoSuchBucket</Code>".into(),
        };
        let forbidden = object_store::Error::PermissionDenied { path: "k".into(), source: "x".into() };
        let unsigned = object_store::Error::Unauthenticated { path: "k".into(), source: "x".into() };
        let cases = [
            (Operation::Get, not_found(), "not found"),
            (Operation::Delete, not_found(), "not found"),
            (Operation::Put, not_found(), "invalid"),
            (Operation::List, not_found(), "invalid"),
            (Operation::Get, no_bucket(), "invalid"),
            (Operation::Put, status("503 Service Unavailable", "SlowDown"), "throttled"),
            (Operation::Put, status("429 Too Many Requests", "TooManyRequests"), "throttled"),
            (Operation::Put, generic("Server returned error response: <Code>SlowDown</Code>"), "throttled"),
            (Operation::Put, forbidden, "denied"),
            (Operation::Put, unsigned, "denied"),
            (
                Operation::Put,
                generic("PUT http://169.254.169.254/latest/api/token status code: 404"),
                "denied",
            ),
            (Operation::List, status("403 Forbidden", "AccessDenied"), "denied"),
            (Operation::List, status("404 Not Found", "x"), "invalid"),
            (Operation::Get, status("400 Bad Request", "ExpiredToken"), "denied"),
            (Operation::Get, status("416 Range Not Satisfiable", "InvalidRange"), "corrupt"),
            (
                Operation::Get,
                generic("Wanted range starting at 9, but object was only 3 bytes long"),
                "corrupt",
            ),
            (Operation::Put, status("400 Bad Request", "BadDigest"), "unavailable"),
            (Operation::Put, status("400 Bad Request", "RequestTimeout"), "unavailable"),
            (Operation::Put, status("409 Conflict", "OperationAborted"), "unavailable"),
            (Operation::Put, status("400 Bad Request", "AuthorizationHeaderMalformed"), "invalid"),
            (Operation::Put, status("413 Payload Too Large", "EntityTooLarge"), "invalid"),
            (Operation::Put, generic("Received redirect without LOCATION, this normally"), "invalid"),
            (Operation::Put, status("500 Internal Server Error", "InternalError"), "unavailable"),
            (Operation::Put, status("502 Bad Gateway", "x"), "unavailable"),
            (Operation::Put, status("504 Gateway Timeout", "x"), "unavailable"),
            (Operation::Put, generic("error sending request: connection refused"), "unavailable"),
        ];
        for (operation, error, expected) in cases {
            let found = classify(operation, "k", &error);
            assert_eq!(kind(&found), expected, "{operation}: {error}");
        }
    }

    #[test]
    fn of_an_answer_only_code_and_message_are_kept() {
        let error = classify(Operation::Put, "k", &status("403 Forbidden", "SignatureDoesNotMatch"));
        assert!(error.to_string().contains("SignatureDoesNotMatch some words"), "{error}");
        assert!(!error.to_string().contains("AKIA"), "{error}");
    }

    #[test]
    fn messages_are_one_short_line() {
        let error = classify(Operation::Put, "k", &generic(&"long\n".repeat(10_000)));
        let StoreError::Unavailable { message, .. } = error else { panic!("{error}") };
        assert!(message.len() <= MAX_ERROR_TEXT_BYTES && !message.contains('\n'));
    }
}
