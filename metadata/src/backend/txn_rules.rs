//! What makes a transaction well-formed and small enough, checked before a store looks at it.
//!
//! etcd itself checks all of this; here are its rules, so that the embedded backend refuses exactly
//! what etcd would, and so that a caller can tell beforehand.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::request::{check_key, check_range};
use super::{BackendError, Compare, KeyRange, Op, Txn};

use crate::limits::{BACKEND_TXN_OPS, ETCD_REQUEST_BYTES};

/// What a compare or a step costs on the wire beside its key and value: tags, lengths, a number, an
/// enum.
const STEP_OVERHEAD_BYTES: usize = 32;

/// Everything about a transaction that means the same for every store.
pub(super) fn check_txn_shape(txn: &Txn) -> Result<(), BackendError> {
    for compare in &txn.compares {
        let (Compare::CreateRevision(key, _) | Compare::ModRevision(key, _) | Compare::Value(key, _)) =
            compare;
        check_key(key)?;
    }
    for op in txn.then.iter().chain(&txn.otherwise) {
        match op {
            Op::Put { key, .. } => check_key(key)?,
            Op::Delete(keys) | Op::Range(keys) => check_range(keys)?,
            Op::Txn(nested) => check_txn_shape(nested)?,
        }
    }
    Ok(())
}

/// The limits that etcd's own settings decide, at their defaults.
pub(super) fn check_txn_limits(txn: &Txn) -> Result<(), BackendError> {
    check_operations(txn, BACKEND_TXN_OPS)?;
    let size = txn_bytes(txn);
    if size > ETCD_REQUEST_BYTES {
        return Err(BackendError::TooLarge(format!(
            "{size} bytes, at most {ETCD_REQUEST_BYTES} are allowed"
        )));
    }
    changed_keys(&txn.then)?;
    changed_keys(&txn.otherwise)?;
    Ok(())
}

/// About how many bytes a transaction takes in a request, and never fewer.
pub fn txn_bytes(txn: &Txn) -> usize {
    let compares = txn.compares.iter().map(|compare| match compare {
        Compare::CreateRevision(key, _) | Compare::ModRevision(key, _) => key.len(),
        Compare::Value(key, value) => key.len() + value.len(),
    });
    let steps = txn.then.iter().chain(&txn.otherwise).map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete(KeyRange::Key(key)) | Op::Range(KeyRange::Key(key)) => key.len(),
        Op::Delete(KeyRange::Span { start, end }) | Op::Range(KeyRange::Span { start, end }) => {
            start.len() + end.len()
        }
        Op::Txn(nested) => txn_bytes(nested),
    });
    compares.chain(steps).map(|bytes| bytes + STEP_OVERHEAD_BYTES).sum()
}

/// etcd's rule: compares and each branch count on their own, and a nested transaction gets what the
/// widest of the three left over.
fn check_operations(txn: &Txn, allowed: usize) -> Result<(), BackendError> {
    let widest = txn.compares.len().max(txn.then.len()).max(txn.otherwise.len());
    let Some(left) = allowed.checked_sub(widest) else {
        return Err(BackendError::TooLarge(format!(
            "{widest} operations, at most {allowed} are allowed here"
        )));
    };
    for op in txn.then.iter().chain(&txn.otherwise) {
        if let Op::Txn(nested) = op {
            check_operations(nested, left)?;
        }
    }
    Ok(())
}

/// What a list of steps may change, whichever branches its nested transactions take.
#[derive(Default)]
struct Changed<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

/// No key may be changed twice in one transaction. One put in one branch of a nested transaction
/// and one in its other branch exclude each other. etcd lets a delete in one nested transaction
/// meet a put in an earlier sibling; here that is refused as well, so that a revision has one event
/// per key.
fn changed_keys(ops: &[Op]) -> Result<Changed<'_>, BackendError> {
    let mut all = Changed::default();
    for op in ops {
        match op {
            Op::Put { key, .. } => {
                merge(&mut all, Changed { puts: BTreeSet::from([key]), deletes: Vec::new() })?;
            }
            Op::Delete(keys) => merge(&mut all, Changed { puts: BTreeSet::new(), deletes: vec![keys] })?,
            Op::Range(_) => {}
            Op::Txn(nested) => {
                let mut either = changed_keys(&nested.then)?;
                let otherwise = changed_keys(&nested.otherwise)?;
                either.puts.extend(otherwise.puts);
                either.deletes.extend(otherwise.deletes);
                merge(&mut all, either)?;
            }
        }
    }
    Ok(all)
}

fn merge<'a>(all: &mut Changed<'a>, more: Changed<'a>) -> Result<(), BackendError> {
    let twice = more
        .puts
        .iter()
        .find(|key| all.puts.contains(*key) || all.deletes.iter().any(|keys| keys.contains(key)));
    let deleted = all.puts.iter().find(|key| more.deletes.iter().any(|keys| keys.contains(key)));
    if let Some(key) = twice.or(deleted) {
        return Err(BackendError::Broken(format!(
            "the key {:?} is changed twice in one transaction",
            String::from_utf8_lossy(key)
        )));
    }
    all.puts.extend(more.puts);
    all.deletes.extend(more.deletes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn puts(count: usize) -> Vec<Op> {
        (0..count).map(|n| Op::put(format!("k{n}"), "v")).collect()
    }

    #[test]
    fn operations_of_each_kind_count_on_their_own() {
        let compares = (0..128).map(|n| Compare::ModRevision(format!("k{n}").into(), 0)).collect();
        let full = Txn { compares, then: puts(128), otherwise: puts(128) };
        assert_eq!(check_txn_limits(&full), Ok(()));
        let over = Txn { then: puts(129), ..Txn::default() };
        assert!(matches!(check_txn_limits(&over), Err(BackendError::TooLarge(_))));
    }

    #[test]
    fn a_nested_transaction_gets_what_is_left() {
        let nested = |count| Txn {
            then: vec![Op::Txn(Txn { then: puts(count), ..Txn::default() })],
            ..Txn::default()
        };
        assert_eq!(check_txn_limits(&nested(127)), Ok(()));
        assert!(matches!(check_txn_limits(&nested(128)), Err(BackendError::TooLarge(_))));
    }

    #[test]
    fn a_key_may_change_once() {
        let txn = |then| Txn { then, ..Txn::default() };
        let all = || Op::Delete(KeyRange::prefix("a"));
        let refused = [
            vec![Op::put("a", "1"), Op::put("a", "2")],
            vec![Op::put("a", "1"), all()],
            vec![all(), Op::put("a1", "1")],
            vec![Op::put("a", "1"), Op::Txn(txn(vec![Op::put("a", "2")]))],
            vec![Op::Txn(txn(vec![Op::put("a", "2")])), Op::Txn(txn(vec![all()]))],
        ];
        for ops in refused {
            assert!(matches!(check_txn_limits(&txn(ops.clone())), Err(BackendError::Broken(_))), "{ops:?}");
        }
        let either =
            Txn { then: vec![Op::put("a", "1")], otherwise: vec![Op::put("a", "2")], ..Txn::default() };
        for ops in [vec![all(), all()], vec![Op::Txn(either)], vec![Op::put("b", "1"), all()]] {
            assert_eq!(check_txn_limits(&txn(ops)), Ok(()));
        }
    }
}
