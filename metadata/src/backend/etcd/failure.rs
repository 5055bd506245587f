//! What a failed call to etcd means: whether it was executed is the question that everything else
//! hangs on.
//!
//! etcd's answers are told apart by their text, which is part of its API (`rpctypes`): one gRPC
//! code stands for "no leader", which comes before a request is looked at, and for "request timed
//! out", which comes after it was handed to raft and may still be executed. What is not known here
//! counts as "may have been executed".

use std::error::Error as _;

use tonic::{Code, ConnectError, Status};

use crate::backend::BackendError;

/// Why a call brought no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Certainly not executed: never sent, or turned away at the door.
    NotExecuted(String),
    /// Sent, and may have been executed, or may still be.
    Lost(String),
    /// Executed, but the answer is larger than this client takes.
    AnswerTooLarge(String),
    /// Not executed: the token is missing, too old or unknown to this member.
    Token(String),
    /// Not executed: the lease that it names does not exist.
    LeaseGone,
    /// etcd has answered, and the answer is no.
    Refused(BackendError),
}

impl Failure {
    /// What it means for a call that changes nothing: it may always be tried again.
    pub(super) fn of_read(self) -> BackendError {
        match self {
            Self::NotExecuted(why) | Self::Lost(why) => BackendError::Unavailable(why),
            Self::AnswerTooLarge(why) => BackendError::TooLarge(why),
            Self::Token(why) => BackendError::Denied(why),
            Self::LeaseGone => BackendError::LeaseGone(0),
            Self::Refused(error) => error,
        }
    }

    /// What it means for a call that changes something. `lease` is the lease that it names, if it
    /// names one.
    #[cfg(feature = "log")]
    pub(super) fn of_write(self, lease: i64) -> BackendError {
        match self {
            Self::Lost(why) | Self::AnswerTooLarge(why) => BackendError::OutcomeUnknown(why),
            Self::LeaseGone => BackendError::LeaseGone(lease),
            Self::NotExecuted(_) | Self::Token(_) | Self::Refused(_) => self.of_read(),
        }
    }

    /// Whether another endpoint may do better.
    pub(super) fn is_doubt(&self) -> bool {
        match self {
            Self::NotExecuted(_) | Self::Lost(_) => true,
            Self::AnswerTooLarge(_) | Self::Token(_) | Self::LeaseGone | Self::Refused(_) => false,
        }
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => of_status(&status),
            etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => {
                Self::Refused(BackendError::Broken(error.to_string()))
            }
            other => Self::Lost(other.to_string()),
        }
    }
}

/// What etcd, or the connection to it, says.
pub(super) fn of_status(status: &Status) -> Failure {
    let text = status.message();
    let said = || text.to_owned();
    let is = |known: &str| text.contains(known);
    // A status that was made on this side carries what caused it; one that etcd sent does not.
    if status.source().is_some() {
        return of_transport(status);
    }
    match status.code() {
        Code::Unauthenticated => Failure::Token(said()),
        Code::PermissionDenied => Failure::Refused(BackendError::Denied(said())),
        Code::InvalidArgument if is_about_token(text) => Failure::Token(said()),
        Code::InvalidArgument if is("authentication failed") => {
            Failure::Refused(BackendError::Denied(said()))
        }
        Code::InvalidArgument if is("too many operations") || is("too large") => {
            Failure::Refused(BackendError::TooLarge(said()))
        }
        Code::OutOfRange if is("has been compacted") => {
            Failure::Refused(BackendError::Compacted { oldest: 0 })
        }
        // The one message of this code that comes from this side, and after execution.
        Code::OutOfRange if is("decoded message length") => Failure::AnswerTooLarge(said()),
        Code::ResourceExhausted if is("database space exceeded") => Failure::Refused(BackendError::NoSpace),
        Code::ResourceExhausted if is("larger than max") => Failure::Refused(BackendError::TooLarge(said())),
        Code::ResourceExhausted if is("too many requests") => Failure::NotExecuted(said()),
        Code::NotFound if is("lease not found") => Failure::LeaseGone,
        Code::Unavailable if is("no leader") || is("not capable") => Failure::NotExecuted(said()),
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::DataLoss => Failure::Refused(BackendError::Broken(format!("{:?}: {text}", status.code()))),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Failure::Lost(format!("{:?}: {text}", status.code())),
    }
}

/// Whether etcd wants another token than the one it got. It looks at that before anything else.
pub(super) fn is_about_token(text: &str) -> bool {
    ["auth token", "user name is empty", "auth store is old"].iter().any(|known| text.contains(known))
}

/// Of everything that can happen to a connection, only this is certain: without a connection,
/// nothing was sent.
fn of_transport(status: &Status) -> Failure {
    let mut why = status.message().to_owned();
    let mut cause = status.source();
    let mut connected = true;
    while let Some(error) = cause {
        connected &= !error.is::<ConnectError>();
        let text = error.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        cause = error.source();
    }
    if connected { Failure::Lost(why) } else { Failure::NotExecuted(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "log")]
    fn write(code: Code, text: &str) -> BackendError {
        of_status(&Status::new(code, text)).of_write(7)
    }

    #[cfg(feature = "log")]
    #[test]
    fn what_may_have_been_executed_is_never_called_unavailable() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unavailable, "transport is closing"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Unknown, "raft proposal dropped"),
            (Code::Internal, "stream terminated by RST_STREAM"),
            (Code::Cancelled, "operation was canceled"),
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes",
            ),
        ] {
            assert!(matches!(write(code, text), BackendError::OutcomeUnknown(_)), "{text}");
        }
    }

    #[test]
    fn a_read_may_always_be_tried_again() {
        for text in ["etcdserver: request timed out", "etcdserver: leader changed", "etcdserver: no leader"] {
            let error = of_status(&Status::new(Code::Unavailable, text)).of_read();
            assert!(matches!(error, BackendError::Unavailable(_)), "{text}");
        }
    }

    #[cfg(feature = "log")]
    #[test]
    fn answers_of_etcd_have_their_meaning() {
        assert!(matches!(write(Code::Unavailable, "etcdserver: no leader"), BackendError::Unavailable(_)));
        assert!(matches!(
            write(Code::ResourceExhausted, "etcdserver: too many requests"),
            BackendError::Unavailable(_)
        ));
        assert_eq!(
            write(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            BackendError::NoSpace
        );
        assert!(matches!(
            write(Code::InvalidArgument, "etcdserver: request is too large"),
            BackendError::TooLarge(_)
        ));
        assert!(matches!(
            write(Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            BackendError::TooLarge(_)
        ));
        assert!(matches!(
            write(Code::ResourceExhausted, "grpc: received message larger than max (9 vs. 4)"),
            BackendError::TooLarge(_)
        ));
        assert!(matches!(
            write(Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            BackendError::Broken(_)
        ));
        assert!(matches!(
            write(Code::PermissionDenied, "etcdserver: permission denied"),
            BackendError::Denied(_)
        ));
        assert!(matches!(
            write(Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            BackendError::Denied(_)
        ));
        assert_eq!(
            write(Code::NotFound, "etcdserver: requested lease not found"),
            BackendError::LeaseGone(7)
        );
        assert_eq!(
            write(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            BackendError::Compacted { oldest: 0 }
        );
    }

    #[test]
    fn old_tokens_are_told_from_wrong_passwords() {
        for (code, text) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        ] {
            assert!(matches!(of_status(&Status::new(code, text)), Failure::Token(_)), "{text}");
        }
    }
}
