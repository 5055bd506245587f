//! What people and tools want to know of the store, beyond what brokers ask: how many keys there
//! are, in another order, how large they are, what hangs on a lease.

use std::cmp::Ordering;

use bytes::Bytes;

use super::Mvcc;
use crate::backend::{KeyRange, KeyValue};

/// What is looked for.
#[derive(Clone, Debug)]
pub(in super::super) struct Select {
    /// In which keys; `None` is a range that has none.
    pub(in super::super) keys: Option<KeyRange>,
    /// As of this revision; `None` is the newest.
    pub(in super::super) at: Option<i64>,
    /// At most so many keys; 0 is no limit.
    pub(in super::super) limit: usize,
    /// No values.
    pub(in super::super) keys_only: bool,
    /// No keys either.
    pub(in super::super) count_only: bool,
    /// Another order than that of the keys.
    pub(in super::super) order: Option<Order>,
    /// Mod revisions that are wanted: from and to, 0 for any.
    pub(in super::super) mod_revisions: (i64, i64),
    /// Create revisions that are wanted: from and to, 0 for any.
    pub(in super::super) create_revisions: (i64, i64),
    /// An answer with more bytes of keys and values is refused.
    pub(in super::super) max_bytes: usize,
}

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Order {
    pub(in super::super) by: OrderBy,
    pub(in super::super) descending: bool,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum OrderBy {
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// What was found.
#[derive(Debug)]
pub(in super::super) struct Selected {
    /// The store's revision.
    pub(in super::super) revision: i64,
    pub(in super::super) kvs: Vec<KeyValue>,
    /// Whether the limit left something out.
    pub(in super::super) more: bool,
    /// Keys of the range, whatever the limit and the revisions that are wanted.
    pub(in super::super) count: usize,
}

/// Why nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum SelectError {
    Compacted,
    Future,
    TooLarge,
}

/// Bytes of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Sizes {
    /// Of all versions that are kept.
    pub(in super::super) all: usize,
    /// Of what is there now.
    pub(in super::super) live: usize,
}

impl Select {
    fn wants(&self, kv: &KeyValue) -> bool {
        let within = |(from, to): (i64, i64), at: i64| at >= from && (to == 0 || at <= to);
        within(self.mod_revisions, kv.mod_revision) && within(self.create_revisions, kv.create_revision)
    }
}

impl Order {
    fn compare(self, a: &KeyValue, b: &KeyValue) -> Ordering {
        let ascending = match self.by {
            OrderBy::Key => a.key.cmp(&b.key),
            OrderBy::Version => a.version.cmp(&b.version),
            OrderBy::CreateRevision => a.create_revision.cmp(&b.create_revision),
            OrderBy::ModRevision => a.mod_revision.cmp(&b.mod_revision),
            OrderBy::Value => a.value.cmp(&b.value),
        };
        if self.descending { ascending.reverse() } else { ascending }
    }
}

impl Mvcc {
    /// Looks for keys.
    pub(in super::super) fn select(&self, select: &Select) -> Result<Selected, SelectError> {
        let at = select.at.unwrap_or(self.revision);
        if at > self.revision {
            return Err(SelectError::Future);
        }
        if at < self.oldest {
            return Err(SelectError::Compacted);
        }
        let mut count = 0;
        let mut found: Vec<&KeyValue> = Vec::new();
        for kv in select.keys.iter().flat_map(|keys| self.live(keys, at)) {
            count += 1;
            if !select.count_only && select.wants(kv) {
                found.push(kv);
            }
        }
        if let Some(order) = select.order {
            found.sort_by(|a, b| order.compare(a, b));
        }
        let more = select.limit > 0 && found.len() > select.limit;
        if more {
            found.truncate(select.limit);
        }
        let mut bytes = 0;
        let mut kvs = Vec::with_capacity(found.len());
        for kv in found {
            let value = if select.keys_only { Bytes::new() } else { kv.value.clone() };
            bytes += PER_KEY_BYTES + kv.key.len() + value.len();
            if bytes > select.max_bytes {
                return Err(SelectError::TooLarge);
            }
            kvs.push(KeyValue { value, ..kv.clone() });
        }
        Ok(Selected { revision: self.revision, kvs, more, count })
    }

    /// The keys that hang on a lease.
    pub(in super::super) fn lease_keys(&self, lease: i64) -> impl Iterator<Item = &Bytes> {
        self.leases.get(&lease).into_iter().flat_map(|lease| &lease.keys)
    }

    /// How much there is. Looks at everything.
    pub(in super::super) fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for (key, versions) in &self.keys {
            for version in versions {
                sizes.all += key.len() + version.value.as_ref().map_or(0, |kv| kv.value.len());
            }
            if let Some(kv) = versions.last().and_then(|newest| newest.value.as_ref()) {
                sizes.live += key.len() + kv.value.len();
            }
        }
        sizes
    }
}

/// What a key takes in an answer beside itself and its value: revisions, version, lease, tags.
const PER_KEY_BYTES: usize = 48;
