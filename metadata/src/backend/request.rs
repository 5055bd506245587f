//! What makes a range or a watch well-formed, checked before a store looks at it: no request may
//! reach etcd whose meaning there differs from the one of [`KeyRange`].

use super::{BackendError, KeyRange};

/// A range that etcd would read differently than [`KeyRange::contains`] does (an empty end is one
/// key there, an end of `\0` is the whole rest of the keyspace) is refused.
pub(super) fn check_range(keys: &KeyRange) -> Result<(), BackendError> {
    let (KeyRange::Key(first) | KeyRange::Span { start: first, .. }) = keys;
    check_key(first)?;
    match keys {
        KeyRange::Span { start, end } if start >= end => {
            Err(BackendError::Broken(format!("the key range {keys:?} ends before it starts")))
        }
        KeyRange::Key(_) | KeyRange::Span { .. } => Ok(()),
    }
}

/// Revisions start at 1; etcd takes 0 for "now", which nobody here asks for that way.
pub(super) fn check_revision(revision: i64) -> Result<(), BackendError> {
    if revision >= 1 { Ok(()) } else { Err(BackendError::Broken(format!("there is no revision {revision}"))) }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), BackendError> {
    if key.is_empty() { Err(BackendError::Broken("a key is empty".to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_ranges_are_refused() {
        let span =
            |start: &'static str, end: &'static str| KeyRange::Span { start: start.into(), end: end.into() };
        for keys in
            [KeyRange::key(""), span("", "b"), span("a", ""), span("a", "\0"), span("b", "a"), span("a", "a")]
        {
            assert!(check_range(&keys).is_err(), "{keys:?}");
        }
        assert_eq!(check_range(&span("a", "b")), Ok(()));
    }
}
