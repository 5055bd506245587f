//! What can go wrong between this broker and its objects. An error says which object, and what to
//! do about it.

use std::fmt;

use crate::path::{KeyError, ObjectKey};

/// What was asked of a store. Its name is the `operation` label of every metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// Write one whole object.
    Put,
    /// Read one object or a range of it.
    Get,
    /// Delete one object.
    Delete,
    /// List one page of keys.
    List,
}

impl Operation {
    /// All operations, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Put, Self::Get, Self::Delete, Self::List];

    /// The operation's name in metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a store could not do what it was asked.
///
/// `key` names the object, or the prefix of a listing, without the store's own prefix.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist. The server answered; this is no sign of trouble.
    #[error("object {key} does not exist")]
    NotFound {
        /// The object.
        key: String,
    },
    /// The server asks for fewer requests (SlowDown, 503, 429). It did not do this one.
    #[error("the object store asks to slow down at {operation} {key}: {message}")]
    Throttled {
        /// The object.
        key: String,
        /// What was asked.
        operation: Operation,
        /// What the server said.
        message: String,
    },
    /// The credentials do not allow it. Worth trying again for a while: credentials are rotated and
    /// policies spread.
    #[error("the object store denied {operation} {key}: {message}")]
    Denied {
        /// The object.
        key: String,
        /// What was asked.
        operation: Operation,
        /// What the server said.
        message: String,
    },
    /// No answer, half an answer, or a failure of the server. **A PUT or DELETE may have
    /// happened.**
    #[error("the object store is unavailable at {operation} {key}: {message}")]
    Unavailable {
        /// The object.
        key: String,
        /// What was asked.
        operation: Operation,
        /// What was seen.
        message: String,
    },
    /// The object is not what was written: truncated, flipped bytes, of another format. Trying
    /// again does not help.
    #[error("object {key} is corrupt: {what}")]
    Corrupt {
        /// The object.
        key: String,
        /// What is wrong with it, and where.
        what: String,
    },
    /// The request or the configuration cannot work (no such bucket, wrong region, a bad range).
    /// Permanent.
    #[error("the object store refused the request: {what}")]
    Invalid {
        /// What is wrong, in a sentence for the operator.
        what: String,
    },
}

impl StoreError {
    /// The error for damage in an object.
    pub fn corrupt(key: &ObjectKey, what: impl Into<String>) -> Self {
        Self::Corrupt { key: key.to_string(), what: what.into() }
    }

    /// The error for what cannot work.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Denied { .. } | Self::Unavailable { .. } => true,
            Self::NotFound { .. } | Self::Corrupt { .. } | Self::Invalid { .. } => false,
        }
    }

    /// The object (or the prefix of a listing) that this is about.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::NotFound { key }
            | Self::Throttled { key, .. }
            | Self::Denied { key, .. }
            | Self::Unavailable { key, .. }
            | Self::Corrupt { key, .. } => Some(key),
            Self::Invalid { .. } => None,
        }
    }
}

impl From<KeyError> for StoreError {
    fn from(error: KeyError) -> Self {
        Self::Invalid { what: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_listed_in_order() {
        for (position, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, position);
        }
    }

    #[test]
    fn an_error_names_its_object_and_says_whether_to_try_again() {
        let key = "wal/x".to_owned();
        let operation = Operation::Get;
        let message = "m".to_owned();
        let retryable = [
            StoreError::Throttled { key: key.clone(), operation, message: message.clone() },
            StoreError::Denied { key: key.clone(), operation, message: message.clone() },
            StoreError::Unavailable { key: key.clone(), operation, message },
        ];
        let permanent =
            [StoreError::NotFound { key: key.clone() }, StoreError::Corrupt { key, what: "cut".to_owned() }];
        for error in &retryable {
            assert!(error.is_retryable());
        }
        for error in &permanent {
            assert!(!error.is_retryable());
        }
        for error in retryable.iter().chain(&permanent) {
            assert_eq!(error.key(), Some("wal/x"));
            assert!(error.to_string().contains("wal/x"), "{error}");
        }
    }
}
