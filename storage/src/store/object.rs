//! The one backend: any `object_store`, which is S3, a folder, or memory.
//!
//! It adds a prefix, and holds the client to this crate's contract: exactly the range that was
//! asked for, keys in order, deleting what is absent is no error.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutOptions, PutPayload,
};

use super::answer::classify;
use super::config::{StoreConfig, StoreUrl};
use super::s3_delete::BulkDelete;
use super::{ObjectMeta, Payload, Store, folder, s3};
use crate::error::{Operation, StoreError};
use crate::limits::{
    BULK_DELETES_AT_ONCE, COPIED_PIECE_BELOW_BYTES, COPIED_PIECES_BUFFER_BYTES, DELETES_AT_ONCE,
    MAX_DELETE_KEYS, MAX_LIST_PAGE,
};
use crate::path::{KeyError, ObjectKey, check_list_prefix, normalize_prefix};

/// A store on top of an [`ObjectStore`].
#[derive(Debug)]
pub struct ObjectStoreBackend {
    inner: Arc<dyn ObjectStore>,
    /// Empty, or ending with a slash.
    prefix: String,
    /// Deletes many objects with one request, where there is such a request.
    bulk: Option<Arc<BulkDelete>>,
    /// Whether the client lists keys in their order, so that a listing may stop at the end of a
    /// page.
    lists_in_order: bool,
}

impl ObjectStoreBackend {
    /// Opens what `config` names. A folder is made if absent; S3 is not asked for anything yet.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let own = normalize_prefix(&config.prefix)?;
        match &config.url {
            StoreUrl::S3 { bucket, prefix } => {
                // The joined prefix is what has to keep the rules, its length above all.
                let prefix = normalize_prefix(&format!("{}{own}", normalize_prefix(prefix)?))?;
                let (inner, bulk) = s3::open(config, bucket)?;
                Ok(Self { inner, prefix, bulk: Some(bulk), lists_in_order: true })
            }
            StoreUrl::File { path } => {
                let inner = Arc::new(folder::open(path, config.fsync)?);
                Ok(Self { inner, prefix: own, bulk: None, lists_in_order: false })
            }
            StoreUrl::Memory => Ok(Self { prefix: own, ..Self::memory() }),
        }
    }

    /// A store of its own in memory, for tests.
    pub fn memory() -> Self {
        Self { inner: Arc::new(InMemory::new()), prefix: String::new(), bulk: None, lists_in_order: true }
    }

    /// A view of the same objects under another prefix, as another cluster of the same bucket has
    /// it.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, KeyError> {
        let prefix = normalize_prefix(prefix)?;
        let (inner, bulk) = (Arc::clone(&self.inner), self.bulk.clone());
        Ok(Self { inner, prefix, bulk, lists_in_order: self.lists_in_order })
    }

    fn locate(&self, key: &str) -> Result<Path, StoreError> {
        Path::parse(format!("{}{key}", self.prefix)).map_err(|error| StoreError::invalid(error.to_string()))
    }

    /// Turns what was listed into a key of ours; `None` for what lies beside our objects and cannot
    /// be one.
    fn listed(&self, meta: &object_store::ObjectMeta) -> Option<ObjectMeta> {
        let key = meta.location.as_ref().strip_prefix(&self.prefix)?;
        Some(ObjectMeta { key: ObjectKey::parse(key).ok()?, size: meta.size })
    }
}

#[async_trait]
impl Store for ObjectStoreBackend {
    async fn put(&self, key: &ObjectKey, payload: Payload) -> Result<(), StoreError> {
        let location = self.locate(key.as_str())?;
        let mut options = PutOptions::default();
        options.extensions.insert(payload.checksum());
        let payload = PutPayload::from_iter(payload.into_pieces());
        match self.inner.put_opts(&location, payload, options).await {
            Ok(_) => Ok(()),
            Err(error) => Err(classify(Operation::Put, key.as_str(), &error)),
        }
    }

    async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let (found, wanted) = self.begin_get(key, range).await?;
        collect(key, found, wanted).await
    }

    async fn get_pieces(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        let (found, wanted) = self.begin_get(key, range).await?;
        if matches!(found.payload, GetResultPayload::Stream(_)) {
            return collect_pieces(key, found, wanted).await;
        }
        Ok(vec![collect(key, found, wanted).await?])
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let location = self.locate(key.as_str())?;
        match self.inner.delete(&location).await {
            Ok(()) => Ok(()),
            Err(error) => match classify(Operation::Delete, key.as_str(), &error) {
                StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn delete_many(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        let requests: Vec<_> =
            keys.chunks(MAX_DELETE_KEYS).map(|keys| self.delete_chunk(keys).boxed()).collect();
        stream::iter(requests).buffered(BULK_DELETES_AT_ONCE).flat_map(stream::iter).collect().await
    }

    fn keys_per_delete(&self) -> usize {
        // Without a network one call is as good as one request.
        if self.bulk.as_ref().is_none_or(|bulk| bulk.is_taken()) { MAX_DELETE_KEYS } else { 1 }
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&ObjectKey>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        check_list_prefix(prefix)?;
        let limit = limit.min(MAX_LIST_PAGE);
        let whole = self.locate(prefix.trim_end_matches('/'))?;
        let within = (!whole.as_ref().is_empty()).then_some(&whole);
        let mut stream = match start_after {
            Some(key) => self.inner.list_with_offset(within, &self.locate(key.as_str())?),
            None => self.inner.list(within),
        };
        let mut page = Vec::new();
        while page.len() < limit || !self.lists_in_order {
            match stream.next().await {
                Some(Ok(meta)) => page.extend(self.listed(&meta)),
                Some(Err(error)) => return Err(classify(Operation::List, prefix, &error)),
                None => break,
            }
        }
        page.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        page.truncate(limit);
        Ok(page)
    }
}

impl ObjectStoreBackend {
    /// Deletes at most as many objects as one request takes; one by one where there is no such
    /// request.
    async fn delete_chunk(&self, keys: &[ObjectKey]) -> Vec<Result<(), StoreError>> {
        if let Some(bulk) = &self.bulk
            && let Some(results) = bulk.delete(&self.prefix, keys).await
        {
            return results;
        }
        let deletes: Vec<_> = keys.iter().map(|key| self.delete(key)).collect();
        stream::iter(deletes).buffered(DELETES_AT_ONCE).collect().await
    }

    /// Sends a GET; gives its answer, whose body is still to come, and how many bytes that must
    /// have.
    async fn begin_get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<(GetResult, u64), StoreError> {
        if range.as_ref().is_some_and(Range::is_empty) {
            return Err(StoreError::invalid(format!("an empty range of {key} was asked for")));
        }
        let location = self.locate(key.as_str())?;
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let found = match self.inner.get_opts(&location, options).await {
            Ok(found) => found,
            Err(error) => return Err(classify(Operation::Get, key.as_str(), &error)),
        };
        let wanted = range.unwrap_or(0..found.meta.size);
        if found.range != wanted {
            let what = format!("it has {} bytes, bytes {wanted:?} were asked for", found.meta.size);
            return Err(StoreError::corrupt(key, what));
        }
        Ok((found, wanted.end - wanted.start))
    }
}

/// The error for an answer that is not as long as it must be.
fn cut(key: &ObjectKey, got: usize, wanted: u64) -> StoreError {
    StoreError::Unavailable {
        key: key.to_string(),
        operation: Operation::Get,
        message: format!("the answer has {got} bytes instead of {wanted}"),
    }
}

/// The pieces of an answer as they come, never more than were asked for. Small ones are copied
/// together: each is a part of a buffer that the HTTP client reads into, and would keep all of it
/// in memory.
async fn collect_pieces(key: &ObjectKey, found: GetResult, wanted: u64) -> Result<Vec<Bytes>, StoreError> {
    let mut stream = found.into_stream();
    let (mut pieces, mut got) = (Vec::new(), 0);
    let mut small = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| classify(Operation::Get, key.as_str(), &error))?;
        let missing = wanted.saturating_sub(got as u64);
        got += piece.len();
        if piece.len() as u64 > missing {
            return Err(cut(key, got, wanted));
        }
        if piece.len() >= COPIED_PIECE_BELOW_BYTES {
            push_whole(&mut pieces, &mut small);
            pieces.push(piece);
            continue;
        }
        if small.capacity() - small.len() < piece.len() {
            push_whole(&mut pieces, &mut small);
            let room = usize::try_from(missing).unwrap_or(usize::MAX).min(COPIED_PIECES_BUFFER_BYTES);
            small = BytesMut::with_capacity(room);
        }
        small.extend_from_slice(&piece);
    }
    push_whole(&mut pieces, &mut small);
    if got as u64 == wanted { Ok(pieces) } else { Err(cut(key, got, wanted)) }
}

/// Adds what was copied, if there is something.
fn push_whole(pieces: &mut Vec<Bytes>, small: &mut BytesMut) {
    if !small.is_empty() {
        pieces.push(std::mem::take(small).freeze());
    }
}

/// The bytes of an answer in one buffer of the right size, which is all that is allocated whatever
/// the server sends.
async fn collect(key: &ObjectKey, found: GetResult, wanted: u64) -> Result<Bytes, StoreError> {
    let fail = |error: &object_store::Error| classify(Operation::Get, key.as_str(), error);
    let wanted_bytes =
        usize::try_from(wanted).map_err(|_| StoreError::invalid("a range beyond the memory"))?;
    if !matches!(found.payload, GetResultPayload::Stream(_)) {
        let bytes = found.bytes().await.map_err(|error| fail(&error))?;
        return if bytes.len() == wanted_bytes { Ok(bytes) } else { Err(cut(key, bytes.len(), wanted)) };
    }
    let mut stream = found.into_stream();
    let mut buffer = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| fail(&error))?;
        if buffer.is_empty() {
            if piece.len() == wanted_bytes {
                return Ok(piece);
            }
            buffer.reserve(wanted_bytes);
        }
        if piece.len() > wanted_bytes - buffer.len() {
            return Err(cut(key, buffer.len() + piece.len(), wanted));
        }
        buffer.extend_from_slice(&piece);
    }
    if buffer.len() == wanted_bytes { Ok(buffer.freeze()) } else { Err(cut(key, buffer.len(), wanted)) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::conformance;

    struct TempFolder(std::path::PathBuf);

    impl TempFolder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strandline-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for TempFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn memory_conforms() {
        conformance::run(&ObjectStoreBackend::memory()).await;
    }

    #[tokio::test]
    async fn folder_conforms() {
        let folder = TempFolder::new("conforms");
        let mut config = StoreConfig::new(StoreUrl::File { path: folder.0.clone() });
        config.prefix = "some/cluster".into();
        conformance::run(&ObjectStoreBackend::open(&config).unwrap()).await;
    }

    #[tokio::test]
    async fn a_folder_hides_what_a_crash_left_and_what_is_not_ours() {
        let folder = TempFolder::new("leftovers");
        let config = StoreConfig::new(StoreUrl::File { path: folder.0.clone() });
        let store = ObjectStoreBackend::open(&config).unwrap();
        let key = ObjectKey::parse("wal/a").unwrap();
        store.put(&key, Bytes::from_static(b"whole").into()).await.unwrap();
        fs::write(folder.0.join("wal/b#1"), "half an obj").unwrap();
        fs::write(folder.0.join("wal/not a key"), "x").unwrap();
        let listed = store.list("wal/", None, 10).await.unwrap();
        assert_eq!(listed, [ObjectMeta { key, size: 5 }]);
    }

    #[tokio::test]
    async fn deleted_objects_leave_no_folders_behind() {
        let folder = TempFolder::new("cleanup");
        let store =
            ObjectStoreBackend::open(&StoreConfig::new(StoreUrl::File { path: folder.0.clone() })).unwrap();
        let keys = ["wal/0/1-1", "wal/1/1-2", "wal/1/1-3"].map(|key| ObjectKey::parse(key).unwrap());
        for key in &keys {
            store.put(key, Bytes::from_static(b"x").into()).await.unwrap();
        }
        store.delete(&keys[0]).await.unwrap();
        store.delete(&keys[1]).await.unwrap();
        assert!(!folder.0.join("wal/0").exists());
        assert_eq!(store.get(&keys[2], None).await.unwrap(), "x");
        store.delete(&keys[2]).await.unwrap();
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        store.put(&keys[0], Payload::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_survives_being_opened_again() {
        let folder = TempFolder::new("again");
        let config = StoreConfig::new(StoreUrl::File { path: folder.0.clone() });
        let key = ObjectKey::parse("wal/a").unwrap();
        ObjectStoreBackend::open(&config).unwrap().put(&key, Bytes::from_static(b"x").into()).await.unwrap();
        let found = ObjectStoreBackend::open(&config).unwrap().get(&key, None).await.unwrap();
        assert_eq!(found, "x");
    }

    #[tokio::test]
    async fn a_truncated_file_is_an_error_that_names_the_object() {
        let folder = TempFolder::new("truncated");
        let config = StoreConfig::new(StoreUrl::File { path: folder.0.clone() });
        let store = ObjectStoreBackend::open(&config).unwrap();
        let key = ObjectKey::parse("wal/a").unwrap();
        store.put(&key, Bytes::from_static(b"0123456789").into()).await.unwrap();
        fs::write(folder.0.join("wal/a"), "0123").unwrap();
        for range in [2..10, 4..5, 6..10] {
            let error = store.get(&key, Some(range.clone())).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{range:?}: {error}");
            assert_eq!(error.key(), Some("wal/a"));
        }
        assert_eq!(store.get(&key, Some(1..4)).await.unwrap(), "123", "what is there is served");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_refused() {
        let config = StoreConfig::new(StoreUrl::File { path: "/proc/nowhere".into() });
        let refused = ObjectStoreBackend::open(&config);
        assert!(matches!(refused, Err(StoreError::Invalid { what }) if what.contains("/proc/nowhere")));
    }

    #[tokio::test]
    async fn clusters_in_one_bucket_do_not_see_each_other() {
        let one = ObjectStoreBackend::memory().with_prefix("clusters/one").unwrap();
        let two = one.with_prefix("clusters/two").unwrap();
        let key = ObjectKey::parse("wal/a").unwrap();
        one.put(&key, Bytes::from_static(b"1").into()).await.unwrap();
        assert!(matches!(two.get(&key, None).await, Err(StoreError::NotFound { .. })));
        assert_eq!(two.list("", None, 10).await.unwrap(), []);
        assert_eq!(one.list("", None, 10).await.unwrap().len(), 1);
    }
}
