//! Deleting many objects with one request (S3's DeleteObjects).
//!
//! The S3 client has that too, but takes the failure of one key for that of all others, and panics
//! if the server names a key that was not asked for. So the request is built and its answer read
//! here, over the same connector.
//!
//! Not every server has this request. One that refuses it is not asked again while this process
//! lives; whoever calls deletes one by one then.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use md5::{Digest, Md5};
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequest, HttpResponse};

use super::answer::{Answer, classify, element, with_causes};
use super::s3_connector::SERVICE;
use crate::error::{Operation, StoreError};
use crate::limits::MAX_DELETE_ANSWER_BYTES;
use crate::path::ObjectKey;

/// What S3 wants to check the request's body with.
const MD5_HEADER: &str = "content-md5";
/// Codes by which a server says that it does not have this request, or not in this form.
const REFUSALS: [&str; 7] = [
    "NotImplemented",
    "MalformedXML",
    "MethodNotAllowed",
    "InvalidRequest",
    "InvalidArgument",
    "UnsupportedOperation",
    "XNotImplemented",
];

/// Sends the request, to servers that take it.
pub(super) struct BulkDelete {
    http: HttpClient,
    url: String,
    region: String,
    credentials: AwsCredentialProvider,
    refused: AtomicBool,
}

impl fmt::Debug for BulkDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkDelete").field("url", &self.url).finish_non_exhaustive()
    }
}

impl BulkDelete {
    /// Deletes in the bucket at this URL.
    pub(super) fn new(
        http: HttpClient,
        bucket_url: &str,
        region: &str,
        credentials: AwsCredentialProvider,
    ) -> Self {
        let (url, region) = (format!("{bucket_url}?delete"), region.to_owned());
        Self { http, url, region, credentials, refused: AtomicBool::new(false) }
    }

    /// Whether the server takes this request, as far as is known by now.
    pub(super) fn is_taken(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// Deletes `keys`, at most [`crate::limits::MAX_DELETE_KEYS`], each behind `prefix`. `None` if
    /// the server does not take this request; nothing was deleted then.
    pub(super) async fn delete(
        &self,
        prefix: &str,
        keys: &[ObjectKey],
    ) -> Option<Vec<Result<(), StoreError>>> {
        if !self.is_taken() {
            return None;
        }
        let asked = match self.send(body(prefix, keys)).await {
            Ok((status, text)) => read(status, &text, prefix, keys),
            Err(why) => Read::All(why),
        };
        match asked {
            Read::Each(results) => Some(results),
            Read::All(why) => Some(keys.iter().map(|key| Err(why.of(key))).collect()),
            Read::Refused(message) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::info!(%message, "the object store deletes objects only one by one");
                }
                None
            }
        }
    }

    async fn send(&self, body: Bytes) -> Result<(u16, String), Failure> {
        let unanswered = |error: &dyn std::error::Error| Failure::Unanswered(with_causes(error));
        let credential = self.credentials.get_credential().await.map_err(Failure::Credentials)?;
        let md5 = HeaderValue::try_from(STANDARD.encode(Md5::digest(&body))).map_err(|e| unanswered(&e))?;
        let mut request = HttpRequest::new(body.into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.parse().map_err(|e| unanswered(&e))?;
        request.headers_mut().insert(MD5_HEADER, md5);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        AwsAuthorizer::new(&credential, SERVICE, &self.region)
            .try_authorize(&mut request, None)
            .map_err(Failure::Credentials)?;
        let answer = self.http.execute(request).await.map_err(|e| unanswered(&e))?;
        let status = answer.status().as_u16();
        Ok((status, text(answer).await?))
    }
}

/// Why a request failed as a whole, before there was an answer to read.
enum Failure {
    /// There is nothing to sign it with.
    Credentials(object_store::Error),
    /// No answer came, or half of one.
    Unanswered(String),
    /// The answer is about none of the keys: status, code, message.
    Answered(Option<u16>, Option<String>, String),
}

impl Failure {
    fn of(&self, key: &ObjectKey) -> StoreError {
        let operation = Operation::Delete;
        let unavailable = |message: &str| StoreError::Unavailable {
            key: key.to_string(),
            operation,
            message: message.to_owned(),
        };
        match self {
            Self::Credentials(error) => classify(operation, key.as_str(), error),
            Self::Unanswered(message) => unavailable(message),
            Self::Answered(status, code, message) => {
                Answer { status: *status, code: code.as_deref(), detail: None }
                    .meaning(operation, key.as_str(), message)
                    .unwrap_or_else(|| unavailable(message))
            }
        }
    }
}

/// What an answer says.
enum Read {
    /// What became of each key.
    Each(Vec<Result<(), StoreError>>),
    /// The same of all keys.
    All(Failure),
    /// The server does not take such a request.
    Refused(String),
}

/// The request's body. Neither keys nor prefixes hold a character that XML would want escaped.
fn body(prefix: &str, keys: &[ObjectKey]) -> Bytes {
    let mut xml = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for key in keys {
        // A string takes everything.
        let _ = write!(xml, "<Object><Key>{prefix}{key}</Key></Object>");
    }
    xml.push_str("</Delete>");
    xml.into()
}

async fn text(answer: HttpResponse) -> Result<String, Failure> {
    let mut stream = answer.into_body().bytes_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.map_err(|error| Failure::Unanswered(with_causes(&error)))?);
        if bytes.len() > MAX_DELETE_ANSWER_BYTES {
            return Err(Failure::Unanswered("the answer is longer than all keys together".to_owned()));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read(status: u16, text: &str, prefix: &str, keys: &[ObjectKey]) -> Read {
    let is_answer = (200..300).contains(&status);
    if !is_answer || !text.contains("<DeleteResult") {
        let code = element(text, "Code");
        let answer =
            Answer { status: (!is_answer).then_some(status), code, detail: element(text, "Message") };
        let message = answer.message("an answer without a result");
        let is_refusal = match (status, code) {
            (405 | 501, _) | (400 | 404, None) => true,
            (400, Some(code)) => REFUSALS.contains(&code),
            // Some servers take it for something else, and answer that.
            _ => is_answer && code.is_none(),
        };
        if is_refusal {
            return Read::Refused(message);
        }
        return Read::All(Failure::Answered(answer.status, code.map(str::to_owned), message));
    }
    let mut told: BTreeMap<&str, Result<(), Answer<'_>>> = BTreeMap::new();
    for deleted in elements(text, "Deleted") {
        told.extend(element(deleted, "Key").map(|key| (key, Ok(()))));
    }
    for error in elements(text, "Error") {
        let answer = Answer { status: None, code: element(error, "Code"), detail: element(error, "Message") };
        told.extend(element(error, "Key").map(|key| (key, Err(answer))));
    }
    let told: Vec<_> = keys.iter().map(|key| told.get(format!("{prefix}{key}").as_str())).collect();
    if told.iter().all(Option::is_none) {
        return Read::Refused("its answer does not say what became of the objects".to_owned());
    }
    Read::Each(keys.iter().zip(told).map(|(key, told)| outcome(key, told)).collect())
}

/// What became of one key.
fn outcome(key: &ObjectKey, told: Option<&Result<(), Answer<'_>>>) -> Result<(), StoreError> {
    let (operation, key) = (Operation::Delete, key.to_string());
    let answer = match told {
        Some(Ok(())) => return Ok(()),
        Some(Err(answer)) => answer,
        None => {
            let message = "the answer does not say what became of it".to_owned();
            return Err(StoreError::Unavailable { key, operation, message });
        }
    };
    let message = answer.message("no reason is given");
    match answer.code {
        Some("NoSuchKey" | "NoSuchVersion") => Ok(()),
        Some("InternalError" | "ServiceUnavailable" | "OperationAborted" | "RequestTimeout") | None => {
            Err(StoreError::Unavailable { key, operation, message })
        }
        Some(_) => Err(answer
            .meaning(operation, &key, &message)
            .unwrap_or_else(|| StoreError::Invalid { what: format!("{operation} {key}: {message}") })),
    }
}

/// The contents of all XML elements of that name.
fn elements<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    text.split(&open).skip(1).filter_map(|rest| rest.split_once(&close)).map(|(content, _)| content).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<ObjectKey> {
        ["wal/a", "wal/b", "wal/c"].map(|key| ObjectKey::parse(key).unwrap()).to_vec()
    }

    fn read_of(status: u16, text: &str) -> Result<Vec<Result<(), StoreError>>, String> {
        match read(status, text, "p/", &keys()) {
            Read::Each(results) => Ok(results),
            Read::All(failure) => Ok(keys().iter().map(|key| Err(failure.of(key))).collect()),
            Read::Refused(message) => Err(message),
        }
    }

    #[test]
    fn the_body_names_every_key_behind_the_prefix() {
        let body = body("p/", &keys());
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.starts_with("<Delete xmlns=") && text.ends_with("</Object></Delete>"), "{text}");
        let named: Vec<_> = elements(text, "Key");
        assert_eq!(named, ["p/wal/a", "p/wal/b", "p/wal/c"]);
    }

    #[test]
    fn each_key_is_told_by_itself() {
        let text = "<?xml version=\"1.0\"?>\n<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Deleted><Key>p/wal/a</Key></Deleted>\
            <Error><Key>p/wal/c</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>\
            <Deleted><Key>p/wal/of-nobody</Key></Deleted>\
            <Error><Key>p/wal/of-nobody-2</Key><Code>InternalError</Code></Error></DeleteResult>";
        let results = read_of(200, text).unwrap();
        assert_eq!(results[0], Ok(()));
        assert!(matches!(&results[1], Err(StoreError::Unavailable { key, .. }) if key == "wal/b"));
        assert!(
            matches!(&results[2], Err(StoreError::Denied { key, message, .. })
                if key == "wal/c" && message == "AccessDenied Access Denied"),
            "{results:?}"
        );
    }

    #[test]
    fn every_code_of_a_key_means_something_to_do() {
        for (code, expected) in [
            ("NoSuchKey", "ok"),
            ("InternalError", "unavailable"),
            ("SlowDown", "throttled"),
            ("AccessDenied", "denied"),
            ("ObjectLocked", "invalid"),
            ("", "invalid"),
        ] {
            let text =
                format!("<DeleteResult><Error><Key>p/wal/a</Key><Code>{code}</Code></Error></DeleteResult>");
            let results = read_of(200, &text).unwrap();
            let found = match &results[0] {
                Ok(()) => "ok",
                Err(StoreError::Unavailable { .. }) => "unavailable",
                Err(StoreError::Throttled { .. }) => "throttled",
                Err(StoreError::Denied { .. }) => "denied",
                Err(StoreError::Invalid { .. }) => "invalid",
                Err(error) => panic!("{error}"),
            };
            assert_eq!(found, expected, "{code}");
        }
        let nameless = "<DeleteResult><Error><Key>p/wal/a</Key></Error></DeleteResult>";
        assert!(matches!(read_of(200, nameless).unwrap()[0], Err(StoreError::Unavailable { .. })));
    }

    #[test]
    fn servers_without_the_request_are_told_from_those_in_trouble() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        for (status, text) in [
            (405, String::new()),
            (405, error("MethodNotAllowed")),
            (501, error("NotImplemented")),
            (400, error("MalformedXML")),
            (400, "what?".to_owned()),
            (404, "no such page".to_owned()),
            (200, String::new()),
            (200, "<DeleteResult/>".to_owned()),
            (200, "<html>welcome</html>".to_owned()),
        ] {
            assert!(read_of(status, &text).is_err(), "{status} {text}");
        }
        for (status, text, is_retryable) in [
            (500, error("InternalError"), true),
            (502, "bad gateway".to_owned(), true),
            (503, error("SlowDown"), true),
            (403, error("AccessDenied"), true),
            (400, error("ExpiredToken"), true),
            (400, error("BadDigest"), true),
            (200, error("InternalError"), true),
            (404, error("NoSuchBucket"), false),
            (400, error("AuthorizationHeaderMalformed"), false),
        ] {
            let results = read_of(status, &text).unwrap();
            assert_eq!(results.len(), 3);
            for result in results {
                let failure = result.unwrap_err();
                assert_eq!(failure.is_retryable(), is_retryable, "{status} {text}: {failure}");
            }
        }
    }

    #[test]
    fn garbage_is_read_without_a_panic() {
        for text in [
            "<DeleteResult><Deleted>",
            "<DeleteResult><Deleted><Key></Deleted></Key>",
            "<DeleteResult><Error><Key>p/wal/a</Error>",
            "<DeleteResult></Error><Error></Error><Error>",
        ] {
            let _ = read_of(200, text);
        }
    }
}
