//! What the journal remembers: one record for each change of the store, and its bytes.
//!
//! Numbers are little-endian. A key or value is its length (u32) and its bytes.
//!
//! | tag | record | fields |
//! |---|---|---|
//! | 1 | [`Record::Committed`] | revision i64, count u32, changes |
//! | 2 | [`Record::Granted`] | lease i64, ttl_s i64 |
//! | 3 | [`Record::Ended`] | lease i64, revision i64 |
//! | 4 | [`Record::Compacted`] | revision i64 |
//! | 5 | [`Record::Base`] | oldest i64, last_lease i64 |
//! | 6 | [`Record::BaseKey`] | create_revision i64, mod_revision i64, version i64, lease i64, key, value |
//! | 7 | [`Record::BaseEvents`] | count u32, changes |
//! | 8 | [`Record::BaseEnd`] | revision i64 |
//!
//! A change is tag 1 (lease i64, key, value) for a put and tag 2 (key) for a deletion.
//!
//! Tags 5 to 8 are a snapshot, with which a rewritten journal begins: a `Base`, the leases
//! (`Granted`), the keys as of `oldest` (`BaseKey`), what happened at `oldest` (`BaseEvents`), what
//! happened since (`Committed`), a `BaseEnd`.
#![deny(clippy::indexing_slicing)]

use bytes::{BufMut, Bytes};

use crate::backend::{Event, KeyValue};

/// One change of the store, enough to make it again; or a part of a snapshot.
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
    /// A snapshot begins.
    Base {
        /// The oldest revision that can be read.
        oldest: i64,
        /// The newest lease id that was given out.
        last_lease: i64,
    },
    /// A key as it was at the oldest revision.
    BaseKey(KeyValue),
    /// What happened at the oldest revision, so that a watch may begin there.
    BaseEvents(Vec<Change>),
    /// A snapshot is complete.
    BaseEnd {
        /// The revision that the store has with it.
        revision: i64,
    },
}

/// One key's part of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes },
}

/// Bytes that no version of this program has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of the journal")]
pub(super) struct Garbage;

impl Change {
    /// The change that led to this event.
    pub(super) fn of(event: &Event) -> Self {
        match event {
            Event::Put(kv) => Self::Put { key: kv.key.clone(), value: kv.value.clone(), lease: kv.lease },
            Event::Delete { key, .. } => Self::Delete { key: key.clone() },
        }
    }
}

impl Record {
    /// Appends the record's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Committed { revision, changes } => {
                out.put_u8(1);
                out.put_i64_le(*revision);
                put_changes(out, changes);
            }
            Self::Granted { lease, ttl_s } => put_numbers(out, 2, &[*lease, *ttl_s]),
            Self::Ended { lease, revision } => put_numbers(out, 3, &[*lease, *revision]),
            Self::Compacted { revision } => put_numbers(out, 4, &[*revision]),
            Self::Base { oldest, last_lease } => put_numbers(out, 5, &[*oldest, *last_lease]),
            Self::BaseKey(kv) => {
                put_numbers(out, 6, &[kv.create_revision, kv.mod_revision, kv.version, kv.lease]);
                put_bytes(out, &kv.key);
                put_bytes(out, &kv.value);
            }
            Self::BaseEvents(changes) => {
                out.put_u8(7);
                put_changes(out, changes);
            }
            Self::BaseEnd { revision } => put_numbers(out, 8, &[*revision]),
        }
    }

    /// Takes one record off the front of `input`, which must not be empty.
    pub(super) fn decode(input: &mut &[u8]) -> Result<Self, Garbage> {
        Ok(match take_u8(input)? {
            1 => Self::Committed { revision: take_i64(input)?, changes: take_changes(input)? },
            2 => Self::Granted { lease: take_i64(input)?, ttl_s: take_i64(input)? },
            3 => Self::Ended { lease: take_i64(input)?, revision: take_i64(input)? },
            4 => Self::Compacted { revision: take_i64(input)? },
            5 => Self::Base { oldest: take_i64(input)?, last_lease: take_i64(input)? },
            6 => Self::BaseKey(KeyValue {
                create_revision: take_i64(input)?,
                mod_revision: take_i64(input)?,
                version: take_i64(input)?,
                lease: take_i64(input)?,
                key: take_bytes(input)?,
                value: take_bytes(input)?,
            }),
            7 => Self::BaseEvents(take_changes(input)?),
            8 => Self::BaseEnd { revision: take_i64(input)? },
            _ => return Err(Garbage),
        })
    }
}

fn put_numbers(out: &mut Vec<u8>, tag: u8, numbers: &[i64]) {
    out.put_u8(tag);
    for number in numbers {
        out.put_i64_le(*number);
    }
}

fn put_changes(out: &mut Vec<u8>, changes: &[Change]) {
    put_length(out, changes.len());
    for change in changes {
        match change {
            Change::Put { key, value, lease } => {
                put_numbers(out, 1, &[*lease]);
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Change::Delete { key } => {
                out.put_u8(2);
                put_bytes(out, key);
            }
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

/// Keys and values are limited to the size of a request, and changes to what fits in memory.
fn put_length(out: &mut Vec<u8>, length: usize) {
    debug_assert!(u32::try_from(length).is_ok());
    out.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
}

fn take_u8(input: &mut &[u8]) -> Result<u8, Garbage> {
    let (first, rest) = input.split_first().ok_or(Garbage)?;
    *input = rest;
    Ok(*first)
}

fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], Garbage> {
    let (first, rest) = input.split_first_chunk().ok_or(Garbage)?;
    *input = rest;
    Ok(*first)
}

fn take_i64(input: &mut &[u8]) -> Result<i64, Garbage> {
    Ok(i64::from_le_bytes(take_array(input)?))
}

fn take_length(input: &mut &[u8]) -> Result<usize, Garbage> {
    usize::try_from(u32::from_le_bytes(take_array(input)?)).map_err(|_| Garbage)
}

fn take_bytes(input: &mut &[u8]) -> Result<Bytes, Garbage> {
    let length = take_length(input)?;
    let (first, rest) = input.split_at_checked(length).ok_or(Garbage)?;
    *input = rest;
    // A copy: a slice would keep the whole file in memory for as long as the key lives.
    Ok(Bytes::copy_from_slice(first))
}

fn take_changes(input: &mut &[u8]) -> Result<Vec<Change>, Garbage> {
    let count = take_length(input)?;
    // No allocation by the length alone.
    let mut changes = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        changes.push(match take_u8(input)? {
            1 => Change::Put { lease: take_i64(input)?, key: take_bytes(input)?, value: take_bytes(input)? },
            2 => Change::Delete { key: take_bytes(input)? },
            _ => return Err(Garbage),
        });
    }
    Ok(changes)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "the bytes of a test are its own")]
mod tests {
    use super::*;

    fn examples() -> Vec<Record> {
        let changes = vec![
            Change::Put { key: "k".into(), value: "value".into(), lease: 7 },
            Change::Delete { key: "gone".into() },
        ];
        let kv = KeyValue {
            key: "k".into(),
            value: Bytes::new(),
            create_revision: 3,
            mod_revision: 9,
            version: 4,
            lease: 0,
        };
        vec![
            Record::Committed { revision: 12, changes: changes.clone() },
            Record::Granted { lease: 1, ttl_s: 30 },
            Record::Ended { lease: 1, revision: 13 },
            Record::Compacted { revision: 11 },
            Record::Base { oldest: 11, last_lease: 2 },
            Record::BaseKey(kv),
            Record::BaseEvents(changes),
            Record::BaseEnd { revision: 13 },
        ]
    }

    fn bytes(record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(&mut out);
        out
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let all: Vec<u8> = examples().iter().flat_map(bytes).collect();
        let mut input = &all[..];
        for record in examples() {
            assert_eq!(Record::decode(&mut input), Ok(record));
        }
        assert!(input.is_empty());
    }

    #[test]
    fn the_bytes_stay_what_they_are() {
        let put = Change::Put { key: "k".into(), value: "v".into(), lease: 2 };
        let record =
            Record::Committed { revision: 258, changes: vec![put, Change::Delete { key: "d".into() }] };
        let expected = [
            &[1, 2, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0][..],
            &[1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'k', 1, 0, 0, 0, b'v'],
            &[2, 1, 0, 0, 0, b'd'],
        ];
        assert_eq!(bytes(&record), expected.concat());
        let ended = bytes(&Record::Ended { lease: 1, revision: 3 });
        assert_eq!(ended, [3, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn garbage_is_refused() {
        for record in examples() {
            let whole = bytes(&record);
            for length in 0..whole.len() {
                assert_eq!(Record::decode(&mut &whole[..length]), Err(Garbage), "{record:?} cut at {length}");
            }
        }
        let lying = [&[1][..], &[0; 8], &[0xff; 4], &[2, 1, 0, 0, 0, b'k']].concat();
        for garbage in [&[0][..], &[9], &[0xff; 40], &lying] {
            assert_eq!(Record::decode(&mut &garbage[..]), Err(Garbage));
        }
    }
}
