//! Which bucket holds the cluster's objects: etcd names a bucket by an id, and the bucket has a
//! marker under that id which names the cluster. A broker whose `store_url` leads elsewhere finds
//! no marker, and refuses to start.
//!
//! ```text
//!   etcd has `bucket`? ── yes ─▶ marker of that id in the bucket? ── yes ─▶ names this cluster ─▶ go on
//!        │ no                              │ no: wrong bucket
//!        ▼
//!   the log is empty, or needs an object that is in this bucket? ── no: wrong bucket
//!        │ yes
//!        ▼
//!   put a marker under a new id ─▶ create `bucket`, if it is absent ─▶ from the beginning
//! ```
//!
//! Each broker puts its marker before it proposes the id, and under an id of its own: so when two
//! brokers of a new cluster start on two buckets, one of them finds that the other's marker is not
//! in its own. A cluster of an older build has neither key nor marker; that its bucket is the right
//! one is shown by the snapshot that it was read from, or by an object that records lie in.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use strandline_storage::error::StoreError;
use strandline_storage::path::{ObjectId, ObjectKey};
use strandline_storage::store::Store;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::backend::{Backend, BackendError, Compare, KeyRange, Op, OpResponse, RangeRequest, Txn};
use crate::keys::{Key, Keyspace};
use crate::limits::LOAD_PATIENCE;
use crate::replica::View;
use crate::values::{BucketValue, VALUE_FORMAT, Value, ValueError};

/// Live objects that are looked for before a bucket is called the wrong one.
const OBJECTS_LOOKED_FOR: usize = 3;
/// Pause before a store that denies a marker is asked again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// The content of a marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    cluster_id: String,
}

/// Why a bucket cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// The metadata store does not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// `bucket` cannot be read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The bucket does not answer.
    #[error(transparent)]
    Store(StoreError),
    /// The bucket is not the one that holds the cluster's objects.
    #[error(
        "this is not the bucket of cluster {cluster_id}: {what}. Nothing is served. Correct store_url (or s3_endpoint); \
         if the objects were moved here on purpose, all of them must be here, the marker too: see `strandline recover`"
    )]
    Wrong {
        /// The cluster's id.
        cluster_id: String,
        /// What shows it.
        what: String,
    },
}

impl BucketError {
    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend(error) => !matches!(error, BackendError::Denied(_)),
            Self::Store(error) => error.is_retryable(),
            Self::Value(_) | Self::Wrong { .. } => false,
        }
    }
}

/// What joins a cluster to its bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'a> {
    /// The metadata store.
    pub backend: &'a dyn Backend,
    /// Its keys.
    pub keys: &'a Keyspace,
    /// The bucket, below the cluster's prefix.
    pub store: &'a dyn Store,
    /// The cluster's id, as etcd says.
    pub cluster_id: &'a str,
}

impl Bucket<'_> {
    /// Checks the marker of the bucket that etcd names. `false` if etcd names none yet: then
    /// [`Self::bind`] decides once the state is known.
    ///
    /// # Errors
    ///
    /// [`BucketError::Wrong`] if this is another bucket. A store that is ill may deny what it has,
    /// so it is asked for [`LOAD_PATIENCE`] before that is said.
    pub async fn check(&self) -> Result<bool, BucketError> {
        let until = Instant::now() + LOAD_PATIENCE;
        loop {
            match self.check_once().await {
                Err(error @ BucketError::Wrong { .. }) if Instant::now() < until => {
                    warn!(%error, "the bucket's marker is not found; asking again");
                    sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// The same, asked once.
    ///
    /// # Errors
    ///
    /// As [`Self::check`].
    pub async fn check_once(&self) -> Result<bool, BucketError> {
        let Some(id) = self.named().await? else { return Ok(false) };
        match self.marker(&id).await? {
            Some(marker) if marker.cluster_id == self.cluster_id => Ok(true),
            Some(marker) => Err(self.wrong(format!("its marker names cluster {}", marker.cluster_id))),
            None => Err(self.wrong(format!("it has no marker bucket/{id}"))),
        }
    }

    /// Takes a bucket that etcd does not name yet for the cluster's own, if what was read of the
    /// cluster shows that it is.
    ///
    /// # Errors
    ///
    /// [`BucketError::Wrong`] if the cluster has objects and they are not here.
    pub async fn bind(&self, view: &View, rng: &mut (dyn Rng + Send)) -> Result<(), BucketError> {
        let until = Instant::now() + LOAD_PATIENCE;
        while !self.check().await? {
            if !self.has_objects_of(view).await? {
                if Instant::now() < until {
                    sleep(PAUSE).await;
                    continue;
                }
                return Err(self.wrong("the log is not empty, and its objects are not here".to_owned()));
            }
            self.claim(rng).await?;
        }
        Ok(())
    }

    /// Makes the bucket the cluster's own, whatever etcd names: an operator says so.
    ///
    /// # Errors
    ///
    /// If one of both does not answer.
    pub async fn rebind(&self, rng: &mut (dyn Rng + Send)) -> Result<(), BucketError> {
        let key = self.keys.encode(&Key::Bucket);
        let forget = Txn { then: vec![Op::Delete(KeyRange::Key(key))], ..Txn::default() };
        self.backend.txn(forget).await?;
        self.claim(rng).await
    }

    /// Puts a marker and proposes its id; another broker's proposal may have been first.
    async fn claim(&self, rng: &mut (dyn Rng + Send)) -> Result<(), BucketError> {
        let bucket_id = format!("{:016x}{:016x}", rng.random::<u64>(), rng.random::<u64>());
        let marker = Marker { format: VALUE_FORMAT, cluster_id: self.cluster_id.to_owned() };
        let marker = serde_json::to_vec(&marker).unwrap_or_default();
        let object = key_of(&bucket_id)?;
        self.store.put(&object, bytes::Bytes::from(marker).into()).await.map_err(BucketError::Store)?;
        let key = self.keys.encode(&Key::Bucket);
        let value = BucketValue { format: VALUE_FORMAT, bucket_id: bucket_id.clone() };
        let propose = Txn {
            compares: vec![Compare::CreateRevision(key.clone(), 0)],
            then: vec![Op::put(key.clone(), value.encode())],
            otherwise: vec![Op::Range(KeyRange::Key(key))],
        };
        let proposed = self.backend.txn(propose).await?;
        let own = |kvs: &Vec<_>| {
            kvs.first().is_some_and(|kv: &crate::backend::KeyValue| kv.value == value.encode())
        };
        match proposed.responses.first() {
            _ if proposed.succeeded => info!(bucket_id, "the bucket is marked as the cluster's own"),
            // The first sending of this very proposal may have been executed.
            Some(OpResponse::Range(kvs)) if own(kvs) => {}
            _ => {
                // It says nothing that is wrong, and nobody looks for it.
                let _ = self.store.delete(&object).await;
            }
        }
        Ok(())
    }

    /// The id of the bucket that etcd names.
    async fn named(&self) -> Result<Option<String>, BucketError> {
        let keys = KeyRange::Key(self.keys.encode(&Key::Bucket));
        let read = RangeRequest { keys, revision: None, limit: 1, keys_only: false };
        let found = self.backend.range(read).await?;
        let value = found.kvs.first().map(|kv| BucketValue::decode(&kv.value)).transpose()?;
        Ok(value.map(|value| value.bucket_id))
    }

    async fn marker(&self, id: &str) -> Result<Option<Marker>, BucketError> {
        match self.store.get(&key_of(id)?, None).await {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(marker) => Ok(Some(marker)),
                Err(error) => Err(self.wrong(format!("its marker cannot be read: {error}"))),
            },
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(BucketError::Store(error)),
        }
    }

    /// Whether the bucket holds what the cluster has written, if it has written anything.
    ///
    /// # Errors
    ///
    /// If the bucket does not answer.
    pub async fn has_objects_of(&self, view: &View) -> Result<bool, BucketError> {
        // The state was read from one of them.
        if view.snapshots.as_ref().is_some_and(|s| !s.snapshots.is_empty()) {
            return Ok(true);
        }
        let live: Vec<ObjectId> =
            view.state.objects().keys().rev().take(OBJECTS_LOOKED_FOR).copied().collect();
        for id in &live {
            match self.store.get(&id.key(), Some(0..1)).await {
                Ok(_) => return Ok(true),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(BucketError::Store(error)),
            }
        }
        Ok(live.is_empty())
    }

    fn wrong(&self, what: String) -> BucketError {
        BucketError::Wrong { cluster_id: self.cluster_id.to_owned(), what }
    }
}

fn key_of(bucket_id: &str) -> Result<ObjectKey, BucketError> {
    ObjectKey::marker(bucket_id).map_err(|error| BucketError::Store(error.into()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use strandline_storage::store::ObjectStoreBackend;

    use super::*;
    use crate::backend::embedded::Embedded;
    use crate::state::{Object, State};

    fn keys() -> Keyspace {
        Keyspace::new("test").unwrap()
    }

    async fn bind(
        backend: &Embedded,
        store: &ObjectStoreBackend,
        view: &View,
        seed: u64,
    ) -> Result<(), BucketError> {
        let keys = keys();
        let bucket = Bucket { backend, keys: &keys, store, cluster_id: "c" };
        bucket.bind(view, &mut StdRng::seed_from_u64(seed)).await
    }

    fn with_object(id: ObjectId) -> View {
        let mut state = State::default();
        state.objects.insert(id, Object { bytes: 1, ranges: 0 });
        View { state, ..View::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_cluster_takes_the_bucket_and_no_other_one_afterwards() {
        let (backend, store) = (Embedded::in_memory(), ObjectStoreBackend::memory());
        let empty = View::default();
        bind(&backend, &store, &empty, 1).await.unwrap();
        bind(&backend, &store, &empty, 2).await.unwrap();
        assert_eq!(store.list("bucket/", None, 10).await.unwrap().len(), 1, "one marker");
        let other = ObjectStoreBackend::memory();
        let refused = bind(&backend, &other, &empty, 3).await.unwrap_err();
        assert!(matches!(refused, BucketError::Wrong { .. }) && !refused.is_retryable(), "{refused}");
        assert!(other.list("", None, 10).await.unwrap().is_empty(), "nothing is written to it");
        // A marker that was copied with another cluster's objects.
        let keys = keys();
        let foreign = Bucket { backend: &backend, keys: &keys, store: &store, cluster_id: "d" };
        assert!(matches!(foreign.check().await, Err(BucketError::Wrong { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_brokers_that_found_a_cluster_on_two_buckets_one_is_refused() {
        let backend = Embedded::in_memory();
        let stores = [ObjectStoreBackend::memory(), ObjectStoreBackend::memory()];
        let empty = View::default();
        let both = tokio::join!(bind(&backend, &stores[0], &empty, 1), bind(&backend, &stores[1], &empty, 2));
        assert_eq!(u8::from(both.0.is_ok()) + u8::from(both.1.is_ok()), 1, "{both:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_cluster_is_known_by_its_objects() {
        let id = ObjectId::write(1, 1, 1);
        let (backend, store) = (Embedded::in_memory(), ObjectStoreBackend::memory());
        let refused = bind(&backend, &store, &with_object(id), 1).await;
        assert!(matches!(refused, Err(BucketError::Wrong { .. })), "{refused:?}");
        store.put(&id.key(), bytes::Bytes::from_static(b"x").into()).await.unwrap();
        bind(&backend, &store, &with_object(id), 1).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_may_move_a_cluster_to_another_bucket() {
        let (backend, store) = (Embedded::in_memory(), ObjectStoreBackend::memory());
        bind(&backend, &store, &View::default(), 1).await.unwrap();
        let (other, keys) = (ObjectStoreBackend::memory(), keys());
        let moved = Bucket { backend: &backend, keys: &keys, store: &other, cluster_id: "c" };
        moved.rebind(&mut StdRng::seed_from_u64(2)).await.unwrap();
        assert_eq!(moved.check().await, Ok(true));
        assert!(bind(&backend, &store, &View::default(), 3).await.is_err());
    }
}
