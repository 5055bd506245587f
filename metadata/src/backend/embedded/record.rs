//! What the journal remembers: one record for each change of the store.

use bytes::Bytes;

use crate::backend::Event;

/// One change of the store, enough to make it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A transaction changed keys.
    Committed {
        /// The revision that it made.
        revision: i64,
        /// What it changed, each key at most once.
        changes: Vec<Change>,
    },
    /// A lease was made.
    Granted {
        /// Its id.
        lease: i64,
        /// The seconds that it has after each keep-alive.
        ttl_s: i64,
    },
    /// A lease ended, and with it its keys.
    Ended {
        /// Its id.
        lease: i64,
        /// The store's revision afterwards.
        revision: i64,
    },
    /// History was forgotten.
    Compacted {
        /// The oldest revision that is left.
        revision: i64,
    },
}

/// One key's part of a [`Record::Committed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes },
}

impl Change {
    /// The change that led to this event.
    pub(super) fn of(event: &Event) -> Self {
        match event {
            Event::Put(kv) => Self::Put { key: kv.key.clone(), value: kv.value.clone(), lease: kv.lease },
            Event::Delete { key, .. } => Self::Delete { key: key.clone() },
        }
    }
}
