//! Object keys, and the only place that builds or parses one.
//!
//! | kind | key | why |
//! |---|---|---|
//! | write object | `wal/<salt>/<incarnation>-<number>` | salt: 8 hex digits, so that a bucket spreads over prefixes |
//! | merged object | `merge/<salt>/<incarnation>-<number>` | as above |
//! | snapshot | `snapshot/<hash>/<revision>-<name>` | hash: 8 hex digits of the rest, for the same reason |
//! | marker | `bucket/<bucket id>` | says whose bucket this is; etcd names the id |
//! | beacon | `beacon` | one, written again and again: how far the log had come |
//!
//! Keys are relative: a store puts its own prefix (`<operator's prefix>/<cluster id>/`) before
//! every one of them. They consist of letters, digits and `._=-`, in segments joined by `/`, so
//! that they mean the same in S3, in a folder and in a URL.

use std::fmt;
use std::sync::Arc;

use crate::limits::{MAX_KEY_BYTES, MAX_PREFIX_BYTES};

/// The first segment of every write object's key.
const WAL: &str = "wal";
/// The first segment of every merged object's key.
const MERGE: &str = "merge";
/// The first segment of every snapshot object's key.
const SNAPSHOT: &str = "snapshot";
/// The first segment of a bucket's marker.
const MARKER: &str = "bucket";
/// The key of the beacon.
const BEACON: &str = "beacon";

/// The two kinds of objects that hold record batches. Ids sort by kind first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum ObjectKind {
    /// Written by a flush, with batches as producers sent them (`wal/…`).
    #[default]
    Write,
    /// Written by a merge, with batches at their real offsets (`merge/…`).
    Merge,
}

impl ObjectKind {
    /// The first segment of the keys of such objects.
    const fn segment(self) -> &'static str {
        match self {
            Self::Write => WAL,
            Self::Merge => MERGE,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write object",
            Self::Merge => "merged object",
        })
    }
}

/// The name of an object that holds batches: its kind, which incarnation of which broker wrote it,
/// and as which of its objects.
///
/// `number` is never reused by an incarnation for the same kind, and etcd never reuses an
/// incarnation, so a key is never reused either, with or without conditional writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    /// What wrote it. Each kind counts for itself.
    pub kind: ObjectKind,
    /// The create revision of the writer's registration. Never negative.
    pub incarnation: i64,
    /// Counts the objects of that kind and incarnation.
    pub number: u64,
    /// Spreads keys over the bucket. Any value does; it is part of the name.
    pub salt: u32,
}

impl ObjectId {
    /// The id of a write object.
    pub const fn write(incarnation: i64, number: u64, salt: u32) -> Self {
        Self { kind: ObjectKind::Write, incarnation, number, salt }
    }

    /// The id of a merged object.
    pub const fn merge(incarnation: i64, number: u64, salt: u32) -> Self {
        Self { kind: ObjectKind::Merge, incarnation, number, salt }
    }

    /// The key under which the object lies.
    pub fn key(&self) -> ObjectKey {
        ObjectKey(self.to_string().into())
    }
}

impl fmt::Display for ObjectId {
    /// As its key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, incarnation, number, salt } = self;
        write!(f, "{}/{salt:08x}/{incarnation}-{number}", kind.segment())
    }
}

/// A valid key, relative to a store's prefix. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// What every write object's key begins with.
    pub const WAL_PREFIX: &'static str = "wal/";
    /// What every merged object's key begins with.
    pub const MERGE_PREFIX: &'static str = "merge/";
    /// What every snapshot object's key begins with.
    pub const SNAPSHOT_PREFIX: &'static str = "snapshot/";

    /// The key of a snapshot object: `name` tells apart what is written at one revision.
    pub fn snapshot(revision: i64, name: &str) -> Result<Self, KeyError> {
        let tail = format!("{revision}-{name}");
        let hash = crc32fast::hash(tail.as_bytes());
        if revision < 0 || name.contains('/') {
            return Err(KeyError {
                key: tail,
                what: "a snapshot needs a revision and a name of one segment",
            });
        }
        Self::parse(&format!("{SNAPSHOT}/{hash:08x}/{tail}"))
    }

    /// The key of the marker of the bucket with this id, which is one segment.
    pub fn marker(bucket_id: &str) -> Result<Self, KeyError> {
        if bucket_id.contains('/') {
            return Err(KeyError { key: bucket_id.to_owned(), what: "a bucket's id is one segment" });
        }
        Self::parse(&format!("{MARKER}/{bucket_id}"))
    }

    /// The key of the beacon: the only object that is written more than once.
    pub fn beacon() -> Self {
        Self(BEACON.into())
    }

    /// Takes any key that keeps the rules of this module.
    pub fn parse(key: &str) -> Result<Self, KeyError> {
        check(key, MAX_KEY_BYTES)?;
        Ok(Self(key.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The write object or merged object that this key names, if it names one.
    pub fn as_object(&self) -> Option<ObjectId> {
        let (first, rest) = self.as_str().split_once('/')?;
        let kind = [ObjectKind::Write, ObjectKind::Merge].into_iter().find(|kind| kind.segment() == first)?;
        let (salt, tail) = rest.split_once('/')?;
        let (incarnation, number) = tail.split_once('-')?;
        let id = ObjectId {
            kind,
            incarnation: incarnation.parse().ok()?,
            number: number.parse().ok()?,
            salt: u32::from_str_radix(salt, 16).ok()?,
        };
        // One name, one key: what is not written as `key` writes it ("+1", "01", "FF") is something
        // else.
        (id.key() == *self).then_some(id)
    }

    /// Whether this is a key of a kind that this module knows.
    pub fn is_known(&self) -> bool {
        let is_marker = || match self.as_str().split_once('/') {
            Some((MARKER, id)) => !id.contains('/'),
            _ => false,
        };
        self.as_object().is_some() || self.as_snapshot().is_some() || self.as_str() == BEACON || is_marker()
    }

    /// The revision and the name in a snapshot object's key, if it is one.
    pub fn as_snapshot(&self) -> Option<(i64, &str)> {
        let (_, tail) = self.as_str().strip_prefix(Self::SNAPSHOT_PREFIX)?.split_once('/')?;
        let (revision, name) = tail.split_once('-')?;
        let revision = revision.parse().ok()?;
        (Self::snapshot(revision, name).ok()? == *self).then_some((revision, name))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({})", self.0)
    }
}

/// A key, or a prefix of keys, that breaks the rules.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key:?} is not an object key: {what}")]
pub struct KeyError {
    /// What was given.
    pub key: String,
    /// The rule that it breaks.
    pub what: &'static str,
}

/// Brings a store's prefix into the form that is put before keys: empty, or segments each followed
/// by `/`.
pub fn normalize_prefix(prefix: &str) -> Result<String, KeyError> {
    let trimmed = prefix.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    check(trimmed, MAX_PREFIX_BYTES)?;
    Ok(format!("{trimmed}/"))
}

/// Checks a prefix to list: empty, or whole segments, each followed by `/`.
pub fn check_list_prefix(prefix: &str) -> Result<(), KeyError> {
    match prefix.strip_suffix('/') {
        _ if prefix.is_empty() => Ok(()),
        Some(segments) => check(segments, MAX_KEY_BYTES),
        None => Err(KeyError { key: prefix.to_owned(), what: "a prefix ends with a slash" }),
    }
}

fn check(key: &str, max_bytes: usize) -> Result<(), KeyError> {
    let fail = |what| Err(KeyError { key: key.chars().take(64).collect(), what });
    if key.len() > max_bytes {
        return fail("it is too long");
    }
    if key.starts_with('/') {
        return fail("it is absolute");
    }
    for segment in key.split('/') {
        match segment {
            "" => return fail("it has an empty segment"),
            "." | ".." => return fail("it has a relative segment"),
            _ => {}
        }
        if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._=-".contains(&byte)) {
            return fail("it has a character other than letters, digits and ._=-");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ObjectId = ObjectId::write(4711, 12, 0x00ab_cdef);
    const MERGED: ObjectId = ObjectId { kind: ObjectKind::Merge, ..ID };

    #[test]
    fn a_write_object_has_this_very_key() {
        assert_eq!(ID.key().as_str(), "wal/00abcdef/4711-12");
        assert_eq!(ID.to_string(), "wal/00abcdef/4711-12");
        assert_eq!(ID.key().as_object(), Some(ID));
    }

    #[test]
    fn a_merged_object_has_this_very_key() {
        assert_eq!(MERGED.key().as_str(), "merge/00abcdef/4711-12");
        assert_eq!(MERGED.to_string(), "merge/00abcdef/4711-12");
        assert_eq!(MERGED.key().as_object(), Some(MERGED));
        assert_eq!(ObjectId::merge(4711, 12, 0x00ab_cdef), MERGED);
    }

    #[test]
    fn ids_sort_by_kind_first() {
        assert!(ObjectId::write(i64::MAX, u64::MAX, u32::MAX) < ObjectId::merge(0, 0, 0));
        assert_eq!(ObjectKind::default(), ObjectKind::Write);
    }

    #[test]
    fn the_largest_numbers_come_back() {
        for kind in [ObjectKind::Write, ObjectKind::Merge] {
            let id = ObjectId { kind, incarnation: i64::MAX, number: u64::MAX, salt: u32::MAX };
            assert_eq!(id.key().as_object(), Some(id));
        }
    }

    #[test]
    fn a_snapshot_has_this_very_key() {
        let key = ObjectKey::snapshot(99, "state-1").unwrap();
        assert_eq!(key.as_str(), format!("snapshot/{:08x}/99-state-1", crc32fast::hash(b"99-state-1")));
        assert_eq!(key.as_snapshot(), Some((99, "state-1")));
        assert_eq!(key.as_object(), None);
        assert_eq!(ID.key().as_snapshot(), None);
    }

    #[test]
    fn snapshot_names_are_one_valid_segment() {
        for (revision, name) in [(-1, "a"), (1, "a/b"), (1, "a b"), (1, "ä")] {
            assert!(ObjectKey::snapshot(revision, name).is_err(), "{revision} {name}");
        }
    }

    #[test]
    fn marker_and_beacon_have_these_very_keys() {
        let marker = ObjectKey::marker("0a1b").unwrap();
        assert_eq!((marker.as_str(), ObjectKey::beacon().as_str()), ("bucket/0a1b", "beacon"));
        let snapshot = ObjectKey::snapshot(9, "manifest").unwrap();
        for known in [marker, ObjectKey::beacon(), ID.key(), MERGED.key(), snapshot] {
            assert!(known.is_known(), "{known}");
        }
        for other in ["bucket", "bucket/a/b", "beacon/1", "wal/1", "merge/1", "snapshot/1-manifest"] {
            assert!(!ObjectKey::parse(other).unwrap().is_known(), "{other}");
        }
        assert!(ObjectKey::marker("a/b").is_err() && ObjectKey::marker("").is_err());
    }

    #[test]
    fn what_only_looks_like_an_object_with_batches_is_none() {
        for key in [
            "wal/00abcdef/4711",
            "wal/00ABCDEF/4711-12",
            "wal/abcdef/4711-12",
            "wal/00abcdef/04711-12",
            "wal/00abcdef/4711-012",
            "wal/00abcdef/4711-12-1",
            "wal/00abcdef/4711-12/x",
            "wal/00abcdef/99999999999999999999-1",
            "wal/4711-12",
            "merge/4711-12",
            "merge/00abcdef/4711-012",
            "merge/00ABCDEF/4711-12",
            "merged/00abcdef/4711-12",
            "Merge/00abcdef/4711-12",
            "snapshot/00abcdef/4711-12",
        ] {
            assert_eq!(ObjectKey::parse(key).unwrap().as_object(), None, "{key}");
        }
    }

    #[test]
    fn keys_that_could_mean_something_else_are_refused() {
        let long = "a".repeat(MAX_KEY_BYTES + 1);
        for key in
            ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/./b", "a b", "a%2fb", "a\\b", "ä", "a#1", &long]
        {
            assert!(ObjectKey::parse(key).is_err(), "{key}");
        }
    }

    #[test]
    fn prefixes_are_brought_into_one_form() {
        assert_eq!(normalize_prefix("").unwrap(), "");
        assert_eq!(normalize_prefix("/").unwrap(), "");
        assert_eq!(normalize_prefix("a/b").unwrap(), "a/b/");
        assert_eq!(normalize_prefix("/a/b/").unwrap(), "a/b/");
        assert!(normalize_prefix("a/../b").is_err());
        assert!(check_list_prefix("").is_ok());
        assert!(check_list_prefix("wal/").is_ok());
        assert!(check_list_prefix("wal").is_err());
        assert!(check_list_prefix("wal//").is_err());
    }
}
