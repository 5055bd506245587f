//! What every store must do, whatever it is built on. Backends and decorators alike are held to it.
//!
//! The store given must be empty, and reliable: a store with faults is tested through
//! [`super::Retrying`].

use bytes::Bytes;

use super::{ObjectMeta, Store};
use crate::error::StoreError;
use crate::limits::{MAX_DELETE_KEYS, MAX_LIST_PAGE};
use crate::path::{ObjectId, ObjectKey};

/// Runs the whole suite.
///
/// # Panics
///
/// Where the store breaks its contract.
pub async fn run(store: &dyn Store) {
    an_empty_store_has_nothing(store).await;
    what_was_put_is_there(store).await;
    ranges_are_exact(store).await;
    a_put_replaces_the_whole_object(store).await;
    pieces_become_one_object(store).await;
    large_objects_come_back(store).await;
    deleting_is_idempotent(store).await;
    many_are_deleted_and_nothing_else(store).await;
    pages_are_in_key_order(store).await;
    a_page_is_bounded(store).await;
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::parse(name).expect("the suite's keys are valid")
}

async fn put(store: &dyn Store, name: &str, bytes: &'static [u8]) {
    store.put(&key(name), Bytes::from_static(bytes).into()).await.expect("a put");
}

async fn names(store: &dyn Store, prefix: &str, start_after: Option<&str>, limit: usize) -> Vec<String> {
    let after = start_after.map(key);
    let page = store.list(prefix, after.as_ref(), limit).await.expect("a listing");
    page.into_iter().map(|meta| meta.key.to_string()).collect()
}

async fn an_empty_store_has_nothing(store: &dyn Store) {
    assert_eq!(store.list("", None, 10).await.expect("a listing"), []);
    assert_eq!(store.list("wal/", None, 10).await.expect("a listing"), []);
    let missing = store.get(&key("wal/none"), None).await;
    assert_eq!(missing, Err(StoreError::NotFound { key: "wal/none".into() }));
    let missing = store.get_pieces(&key("wal/none"), Some(0..1)).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
    let missing = store.get(&key("wal/none"), Some(0..1)).await;
    assert_eq!(missing, Err(StoreError::NotFound { key: "wal/none".into() }));
}

async fn what_was_put_is_there(store: &dyn Store) {
    let wal = ObjectId::write(7, 1, 0xff).key();
    store.put(&wal, Bytes::from_static(b"some bytes").into()).await.expect("a put");
    assert_eq!(store.get(&wal, None).await.expect("a get"), "some bytes");
    let listed = store.list("wal/", None, 10).await.expect("a listing");
    assert_eq!(listed, [ObjectMeta { key: wal.clone(), size: 10 }]);
    put(store, "odd/a=b_c.d-e", b"odd").await;
    assert_eq!(store.get(&key("odd/a=b_c.d-e"), None).await.expect("a get"), "odd");
    put(store, "odd/empty", b"").await;
    assert_eq!(store.get(&key("odd/empty"), None).await.expect("a get"), "");
    for name in ["odd/a=b_c.d-e", "odd/empty"] {
        store.delete(&key(name)).await.expect("a delete");
    }
    store.delete(&wal).await.expect("a delete");
}

async fn ranges_are_exact(store: &dyn Store) {
    let name = key("ranges/a");
    put(store, "ranges/a", b"0123456789").await;
    for (range, expected) in [(0..10, "0123456789"), (0..1, "0"), (3..7, "3456"), (9..10, "9")] {
        let found = store.get(&name, Some(range.clone())).await.expect("a get");
        let pieces = store.get_pieces(&name, Some(range.clone())).await.expect("a get in pieces");
        assert_eq!(pieces.concat(), found, "{range:?}");
        assert_eq!(found, expected, "{range:?}");
    }
    for range in [0..11, 9..11, 10..11, 100..200] {
        store.get_pieces(&name, Some(range.clone())).await.expect_err("the range is not there");
        let error = store.get(&name, Some(range.clone())).await.expect_err("the range is not there");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{range:?}: {error}");
        assert_eq!(error.key(), Some("ranges/a"), "{range:?}: {error}");
    }
    let nothing = store.get(&name, Some(4..4)).await;
    assert!(matches!(nothing, Err(StoreError::Invalid { .. })), "{nothing:?}");
    store.delete(&name).await.expect("a delete");
}

async fn a_put_replaces_the_whole_object(store: &dyn Store) {
    let name = key("again/a");
    put(store, "again/a", b"first and longer").await;
    put(store, "again/a", b"second").await;
    put(store, "again/a", b"second").await;
    assert_eq!(store.get(&name, None).await.expect("a get"), "second");
    store.delete(&name).await.expect("a delete");
}

async fn pieces_become_one_object(store: &dyn Store) {
    let name = key("pieces/a");
    let pieces = ["a", "", "bc", "def"].map(|piece| Bytes::from_static(piece.as_bytes()));
    store.put(&name, pieces.to_vec().into()).await.expect("a put");
    assert_eq!(store.get(&name, None).await.expect("a get"), "abcdef");
    assert_eq!(store.get(&name, Some(2..5)).await.expect("a get"), "cde");
    store.delete(&name).await.expect("a delete");
}

async fn large_objects_come_back(store: &dyn Store) {
    const PIECE: usize = 256 * 1024;
    let name = key("large/a");
    let pieces: Vec<Bytes> = (0..24_u8).map(|piece| Bytes::from(vec![piece; PIECE])).collect();
    let whole = pieces.concat();
    store.put(&name, pieces.into()).await.expect("a put");
    assert!(store.get(&name, None).await.expect("a get") == whole, "other bytes came back");
    let (from, to) = (PIECE - 1, 3 * PIECE + 1);
    let found = store.get(&name, Some(from as u64..to as u64)).await.expect("a get");
    assert!(whole.get(from..to).is_some_and(|expected| found == expected), "another range came back");
    store.delete(&name).await.expect("a delete");
}

async fn deleting_is_idempotent(store: &dyn Store) {
    let name = key("gone/a");
    put(store, "gone/a", b"x").await;
    store.delete(&name).await.expect("a delete");
    store.delete(&name).await.expect("deleting what is gone");
    store.delete(&key("gone/never")).await.expect("deleting what never was");
    assert_eq!(store.get(&name, None).await, Err(StoreError::NotFound { key: "gone/a".into() }));
}

async fn many_are_deleted_and_nothing_else(store: &dyn Store) {
    assert_eq!(store.delete_many(&[]).await, [], "of no keys there is nothing to tell");
    assert!((1..=MAX_DELETE_KEYS).contains(&store.keys_per_delete()));
    for name in ["some/a", "some/b", "some/c", "some/stays"] {
        put(store, name, b"x").await;
    }
    // What is gone, never was, or comes twice is deleted as well.
    let gone = ["some/a", "some/never", "some/c", "some/b", "some/a"].map(key);
    for _ in 0..2 {
        assert_eq!(store.delete_many(&gone).await, vec![Ok(()); gone.len()]);
        assert_eq!(names(store, "some/", None, 10).await, ["some/stays"]);
    }
    assert_eq!(store.delete_many(&[key("some/stays")]).await, [Ok(())]);
    // More than one request takes.
    let total = MAX_DELETE_KEYS + 2;
    let many: Vec<ObjectKey> = (0..total).map(|number| key(&format!("many/{number:05}"))).collect();
    for key in many.iter().step_by(100).chain(many.last()) {
        store.put(key, Bytes::from_static(b"x").into()).await.expect("a put");
    }
    assert_eq!(store.delete_many(&many).await, vec![Ok(()); total]);
    assert_eq!(store.list("", None, 10).await.expect("a listing"), []);
}

async fn pages_are_in_key_order(store: &dyn Store) {
    // Byte order of whole keys: '-' and '.' come before '/', digits before letters, capitals before
    // small ones.
    let sorted = ["l/A", "l/a-/x", "l/a.b", "l/a/1", "l/a/2/z", "l/a/20", "l/a0", "l/b"];
    for name in sorted.iter().rev() {
        put(store, name, b"x").await;
    }
    put(store, "l-beside", b"x").await;
    put(store, "la", b"x").await;
    assert_eq!(names(store, "l/", None, 100).await, sorted);
    assert_eq!(names(store, "l/a/", None, 100).await, sorted[3..6]);
    assert_eq!(names(store, "", None, 100).await, [&["l-beside"], &sorted[..], &["la"]].concat());
    assert_eq!(names(store, "l/", None, 3).await, sorted[..3]);
    assert_eq!(names(store, "l/", Some("l/a.b"), 3).await, sorted[3..6]);
    assert_eq!(names(store, "l/", Some("l/a/1x"), 100).await, sorted[4..], "after a key that does not exist");
    assert!(names(store, "l/", Some("l/b"), 3).await.is_empty());
    assert!(store.list("l", None, 3).await.is_err(), "half a segment is no prefix");
    for name in sorted.iter().chain(&["l-beside", "la"]) {
        store.delete(&key(name)).await.expect("a delete");
    }
}

async fn a_page_is_bounded(store: &dyn Store) {
    let total = MAX_LIST_PAGE + 5;
    let expected: Vec<String> = (0..total).map(|number| format!("many/{number:05}")).collect();
    for name in &expected {
        store.put(&key(name), Bytes::from_static(b"x").into()).await.expect("a put");
    }
    let first = names(store, "many/", None, usize::MAX).await;
    assert_eq!(first, expected[..MAX_LIST_PAGE]);
    let second = names(store, "many/", first.last().map(String::as_str), usize::MAX).await;
    assert_eq!(second, expected[MAX_LIST_PAGE..]);
    for name in &expected {
        store.delete(&key(name)).await.expect("a delete");
    }
    assert_eq!(store.list("", None, 10).await.expect("a listing"), [], "the suite leaves nothing behind");
}
