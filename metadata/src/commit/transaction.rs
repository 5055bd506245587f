//! What a transaction under a registration looks like, and the trace that it leaves. Pure.
//!
//! ```text
//!   compares   brokers/<node id> has its incarnation as create revision   (invariant 5)
//!              heads/<incarnation> is as the transaction before left it
//!              what the one change compares that has the transaction to itself
//!   then       what that change puts and deletes
//!              each independent change, nested with its own compares: it fails alone
//!              commits, whose version counts the transactions of all brokers
//!              log/<incarnation>/<sequence> for each record
//!              heads/<incarnation>
//!   otherwise  reads registration and head: the trace
//! ```

use bytes::Bytes;

use super::session::Session;
use super::settle::{Trace, Verdict};
use crate::backend::{Compare, KeyRange, Op, OpResponse, Txn};
use crate::keys::{Key, Keyspace};

/// How far an incarnation has come. A new one starts with zeros, and has no key yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Sequence number of its last record.
    pub(super) sequence: u64,
    /// How many transactions it has committed, with or without a record.
    pub(super) transactions: u64,
}

impl Head {
    fn encode(self) -> Bytes {
        format!("{} {}", self.sequence, self.transactions).into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (sequence, transactions) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
        Some(Self { sequence: sequence.parse().ok()?, transactions: transactions.parse().ok()? })
    }
}

/// What is committed together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contents<'a> {
    /// Records of the log, in order.
    pub(super) records: &'a [Bytes],
    /// Independent changes: each has its own compares and fails alone.
    pub(super) parts: &'a [Txn],
    /// What must hold for all of it. Only a change that has the transaction to itself has any.
    pub(super) compares: &'a [Compare],
    /// Puts and deletes of the change that has the transaction to itself.
    pub(super) ops: &'a [Op],
}

impl Contents<'_> {
    /// The head after it is committed.
    pub(super) fn head_after(&self, before: Head) -> Head {
        Head { sequence: before.sequence + self.records.len() as u64, transactions: before.transactions + 1 }
    }

    /// The transaction that commits this under `session` whose head is `before`.
    pub(super) fn transaction(&self, keys: &Keyspace, session: Session, before: Head) -> Txn {
        let [registration, head] = trace_keys(keys, session);
        let is_registered = Compare::CreateRevision(registration.clone(), session.incarnation);
        let is_next = match before.transactions {
            0 => Compare::CreateRevision(head.clone(), 0),
            _ => Compare::Value(head.clone(), before.encode()),
        };
        let mut compares = vec![is_registered, is_next];
        compares.extend_from_slice(self.compares);
        let mut then = self.ops.to_vec();
        then.extend(self.parts.iter().cloned().map(Op::Txn));
        then.push(Op::put(keys.encode(&Key::Commits), encode_count(self.records.len())));
        for (sequence, record) in (before.sequence + 1..).zip(self.records) {
            let key = Key::Log { incarnation: session.incarnation, sequence };
            then.push(Op::put(keys.encode(&key), record.clone()));
        }
        then.push(Op::put(head.clone(), self.head_after(before).encode()));
        let otherwise = [registration, head].map(|key| Op::Range(KeyRange::Key(key))).into();
        Txn { compares, then, otherwise }
    }

    /// Which of the parts took place, by the answer to the transaction; `None` for an answer that
    /// cannot be.
    pub(super) fn parts_done(&self, responses: &[OpResponse]) -> Option<Vec<bool>> {
        let answers = responses.get(self.ops.len()..self.ops.len() + self.parts.len())?;
        answers
            .iter()
            .map(|answer| match answer {
                OpResponse::Txn(nested) => Some(nested.succeeded),
                OpResponse::Put | OpResponse::Deleted(_) | OpResponse::Range(_) => None,
            })
            .collect()
    }
}

/// The trace of a transaction: its incarnation's head, and whether that is still registered.
pub(super) struct HeadTrace<'a> {
    pub(super) keys: &'a Keyspace,
    /// Whether anybody still waits for the outcome, under a session that is not over.
    pub(super) is_awaited: &'a (dyn Fn() -> bool + Sync),
    pub(super) session: Session,
    pub(super) before: Head,
    pub(super) after: Head,
}

impl Trace for HeadTrace<'_> {
    fn keys(&self) -> Vec<KeyRange> {
        trace_keys(self.keys, self.session).map(KeyRange::Key).into()
    }

    fn judge(&self, found: &[OpResponse]) -> Option<Verdict> {
        let [OpResponse::Range(registration), OpResponse::Range(head)] = found else { return None };
        let is_registered =
            registration.first().is_some_and(|kv| kv.create_revision == self.session.incarnation);
        let head = match head.first() {
            None => None,
            Some(kv) => Some((Head::decode(&kv.value)?, kv.mod_revision)),
        };
        Some(match head {
            Some((head, revision)) if head == self.after => Verdict::Executed(revision),
            Some((head, _)) if head == self.before && is_registered => Verdict::Pending,
            Some((head, _)) if head == self.before => Verdict::Impossible,
            None if self.before == Head::default() && is_registered => Verdict::Pending,
            // The head of an incarnation that is gone is deleted when it is forgotten.
            None if !is_registered => Verdict::Gone,
            Some(_) | None => Verdict::Foreign,
        })
    }

    fn is_wanted(&self) -> bool {
        (self.is_awaited)()
    }
}

fn trace_keys(keys: &Keyspace, session: Session) -> [Bytes; 2] {
    [Key::Broker(session.node_id), Key::Head(session.incarnation)].map(|key| keys.encode(&key))
}

/// The value of `commits`: how many records the transaction has.
fn encode_count(records: usize) -> Bytes {
    records.to_string().into()
}

/// How many records the transaction has that put `commits`.
pub(crate) fn decode_count(bytes: &[u8]) -> Option<usize> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KeyValue;

    const SESSION: Session = Session { node_id: 1, incarnation: 7 };

    fn kv(create_revision: i64, mod_revision: i64, value: &str) -> Vec<KeyValue> {
        let (key, value) = (Bytes::new(), Bytes::copy_from_slice(value.as_bytes()));
        vec![KeyValue { key, value, create_revision, mod_revision, version: 1, lease: 0 }]
    }

    #[test]
    fn heads_are_read_as_they_were_written_and_nothing_else_is() {
        let head = Head { sequence: 12, transactions: 345 };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        for garbage in ["", "12", "12 ", " 12", "1 2 3", "a b", "-1 2"] {
            assert_eq!(Head::decode(garbage.as_bytes()), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_trace_tells_what_became_of_a_transaction() {
        let keys = Keyspace::new("test").unwrap();
        let [first, second] = [1, 2].map(|transactions| Head { sequence: 1, transactions });
        let judge = |before, after, registered: bool, head: Option<&str>| {
            let trace = HeadTrace { keys: &keys, is_awaited: &|| true, session: SESSION, before, after };
            let registration = if registered { kv(7, 7, "") } else { kv(9, 9, "") };
            let head = head.map_or_else(Vec::new, |head| kv(8, 20, head));
            trace.judge(&[OpResponse::Range(registration), OpResponse::Range(head)]).unwrap()
        };
        for registered in [true, false] {
            assert_eq!(judge(first, second, registered, Some("1 2")), Verdict::Executed(20));
            assert_eq!(judge(first, second, registered, Some("5 9")), Verdict::Foreign);
        }
        assert_eq!(judge(first, second, true, Some("1 1")), Verdict::Pending);
        assert_eq!(judge(first, second, false, Some("1 1")), Verdict::Impossible);
        assert_eq!(judge(first, second, true, None), Verdict::Foreign);
        assert_eq!(judge(first, second, false, None), Verdict::Gone);
        assert_eq!(judge(Head::default(), first, true, None), Verdict::Pending);
        assert_eq!(judge(Head::default(), first, false, None), Verdict::Gone);
    }
}
