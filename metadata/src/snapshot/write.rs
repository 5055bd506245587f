//! Writing a snapshot, in turns, and only what has changed since the last one.
//!
//! The writer keeps the state that it wrote last, which costs little: states share what has not
//! changed. A chunk whose partitions are still the same ones is not even encoded. What is encoded
//! is decoded again at once and compared with the state, and what was put is read back: a snapshot
//! that cannot be read is noticed while the log that it would replace is still there.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::Store;

use super::format::{self, ChunkRef, SnapshotError, SnapshotStamp, TopicsOfChunk, checksum, damaged};
use super::{MANIFEST, by_checksum, failed, get, read_manifest};
use crate::invariants;
use crate::limits::SNAPSHOT_INLINE_BYTES;
use crate::state::State;
use crate::turns::Turns;
use crate::values::SnapshotRef;

/// Writes one snapshot after the other.
#[derive(Debug, Default)]
pub struct SnapshotWriter {
    last: Option<LastSnapshot>,
}

/// What was written last.
#[derive(Debug)]
struct LastSnapshot {
    manifest: String,
    state: State,
    /// The chunks that are objects of their own, by the topics that they hold.
    chunks: BTreeMap<u64, ChunkRef>,
}

/// A chunk of the snapshot that is being written.
enum Chunk {
    /// It is stored already.
    Stored(ChunkRef),
    /// It is encoded and must be stored.
    Encoded(Vec<u8>),
}

impl SnapshotWriter {
    /// Writes a snapshot of `state` and reads it back. Chunks of `previous`, a snapshot that is
    /// listed, are used again where nothing has changed.
    pub async fn write(
        &mut self,
        store: &dyn Store,
        state: &State,
        stamp: SnapshotStamp,
        previous: Option<&SnapshotRef>,
    ) -> Result<SnapshotRef, SnapshotError> {
        let mut turns = Turns::default();
        invariants::check_in_turns(state, &mut turns)
            .await
            .map_err(|violation| damaged("of this broker's state", &violation.to_string()))?;
        let topics = format::chunked(state);
        // What is not listed any more may have been deleted.
        let last = self.last.as_ref().filter(|last| previous.is_some_and(|p| p.object == last.manifest));
        let chunks = encode(last, state, &topics, &mut turns).await?;
        let refs = if chunks.values().map(Chunk::bytes).sum::<u64>() <= SNAPSHOT_INLINE_BYTES {
            inline(&topics, &mut turns).await?
        } else {
            // Where this writer has not written the one before, what is the same is told by
            // checksums.
            put_chunks(store, state.revision(), chunks, previous.filter(|_| last.is_none())).await?
        };
        let manifest = format::encode_manifest(state, stamp, refs.values(), &mut turns).await?;
        let sum = checksum(&manifest);
        let manifest = Bytes::from(manifest);
        let written = SnapshotRef {
            revision: state.revision(),
            object: put(store, state.revision(), MANIFEST, manifest.clone()).await?,
            bytes: manifest.len() as u64,
            checksum: format!("{sum:016x}"),
            digest: format!("{:016x}", state.digest()),
        };
        read_back(store, &written, &manifest, refs.values()).await?;
        let stored = refs.into_iter().filter(|(_, chunk)| !chunk.object.is_empty()).collect();
        let (manifest, state) = (written.object.clone(), state.clone());
        self.last = Some(LastSnapshot { manifest, state, chunks: stored });
        Ok(written)
    }
}

/// The chunks of a state, encoded unless they are stored already.
async fn encode(
    last: Option<&LastSnapshot>,
    state: &State,
    topics: &BTreeMap<u64, TopicsOfChunk<'_>>,
    turns: &mut Turns,
) -> Result<BTreeMap<u64, Chunk>, SnapshotError> {
    let last = last.filter(|last| format::chunk_count(&last.state) == format::chunk_count(state));
    let before = last.map(|last| format::chunked(&last.state)).unwrap_or_default();
    let mut chunks = BTreeMap::new();
    for (&number, topics) in topics {
        let stored = last.and_then(|last| last.chunks.get(&number));
        let is_same = before.get(&number).is_some_and(|before| is_same(before, topics));
        let chunk = match stored {
            Some(stored) if is_same => Chunk::Stored(stored.clone()),
            _ => Chunk::Encoded(format::encode_chunk(topics, turns).await?),
        };
        chunks.insert(number, chunk);
    }
    Ok(chunks)
}

impl Chunk {
    fn bytes(&self) -> u64 {
        match self {
            Self::Stored(stored) => stored.bytes,
            Self::Encoded(bytes) => bytes.len() as u64,
        }
    }
}

/// Whether these are the same partitions, unchanged.
fn is_same(before: &TopicsOfChunk<'_>, now: &TopicsOfChunk<'_>) -> bool {
    before.len() == now.len()
        && before.iter().zip(now).all(|((before_id, before), (id, topic))| {
            before_id == id
                && before.partitions().len() == topic.partitions().len()
                && before.partitions().iter().zip(topic.partitions()).all(|(a, b)| Arc::ptr_eq(a, b))
        })
}

/// A small state: all chunks in the manifest itself.
async fn inline(
    topics: &BTreeMap<u64, TopicsOfChunk<'_>>,
    turns: &mut Turns,
) -> Result<BTreeMap<u64, ChunkRef>, SnapshotError> {
    let mut refs = BTreeMap::new();
    for (&number, topics) in topics {
        let inline = format::encode_chunk(topics, turns).await?;
        let (bytes, checksum) = (inline.len() as u64, checksum(&inline));
        refs.insert(number, ChunkRef { object: String::new(), bytes, checksum, inline });
    }
    Ok(refs)
}

async fn put_chunks(
    store: &dyn Store,
    revision: i64,
    chunks: BTreeMap<u64, Chunk>,
    previous: Option<&SnapshotRef>,
) -> Result<BTreeMap<u64, ChunkRef>, SnapshotError> {
    let reusable = match previous {
        None => BTreeMap::new(),
        // A previous snapshot that cannot be read is no reason not to write a good one.
        Some(previous) => read_manifest(store, previous).await.map(|m| by_checksum(&m)).unwrap_or_default(),
    };
    let mut refs = BTreeMap::new();
    for (number, chunk) in chunks {
        let chunk = match chunk {
            Chunk::Stored(stored) => stored,
            Chunk::Encoded(encoded) => {
                let (bytes, checksum) = (encoded.len() as u64, checksum(&encoded));
                let object = match reusable.get(&(checksum, bytes)) {
                    Some(object) => object.clone(),
                    None => put(store, revision, &format!("chunk{number}"), encoded.into()).await?,
                };
                ChunkRef { object, bytes, checksum, inline: Vec::new() }
            }
        };
        refs.insert(number, chunk);
    }
    Ok(refs)
}

/// Whether the store has what was put, and still has what is used again.
async fn read_back(
    store: &dyn Store,
    written: &SnapshotRef,
    manifest: &Bytes,
    chunks: impl Iterator<Item = &ChunkRef>,
) -> Result<(), SnapshotError> {
    if get(store, &written.object).await? != *manifest {
        return Err(damaged(&written.object, "it does not read back as it was written"));
    }
    for chunk in chunks.filter(|chunk| !chunk.object.is_empty()) {
        let bytes = get(store, &chunk.object).await?;
        if bytes.len() as u64 != chunk.bytes || checksum(&bytes) != chunk.checksum {
            return Err(damaged(&chunk.object, "it does not read back as it was written"));
        }
    }
    Ok(())
}

async fn put(store: &dyn Store, revision: i64, name: &str, bytes: Bytes) -> Result<String, SnapshotError> {
    let key = ObjectKey::snapshot(revision, name).map_err(|e| damaged(name, &e.to_string()))?;
    store.put(&key, bytes.into()).await.map_err(|e| failed(key.as_str(), &e))?;
    Ok(key.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use strandline_storage::store::ObjectStoreBackend;
    use uuid::Uuid;

    use super::*;
    use crate::record::{Body, Flush, FlushBatch, FlushPartition, FlushTopic, Record, TopicCreated};
    use crate::snapshot;
    use crate::state::Position;

    const STAMP: SnapshotStamp = SnapshotStamp { commits: 1, written_at_ms: 2 };

    /// Topics whose ids differ in the byte that picks a chunk.
    fn topic(number: u8) -> Vec<u8> {
        Uuid::from_u128(u128::from(number) << 120).as_bytes().to_vec()
    }

    struct Log {
        state: State,
        sequence: u64,
    }

    impl Log {
        fn apply(&mut self, body: &Body) {
            self.sequence += 1;
            let revision = 10 + i64::try_from(self.sequence).unwrap();
            let at = Position { revision, sequence: self.sequence, incarnation: 1 };
            let record = Record::new(0, body.clone());
            self.state.apply(at, &record, body).unwrap();
        }

        /// An object of its own for a batch of each of these topics.
        fn flush(&mut self, topics: impl Iterator<Item = u8>) {
            let batches = vec![FlushBatch { offsets: 1, bytes: 1_000_000, ..FlushBatch::default() }];
            let topics = topics.map(|number| FlushTopic {
                topic_id: topic(number),
                partitions: vec![FlushPartition { partition: 0, position: 0, batches: batches.clone() }],
            });
            let (object_number, topics) = (self.sequence, topics.collect());
            self.apply(&Body::Flush(Flush { object_number, object_bytes: 1, topics, ..Flush::default() }));
        }
    }

    async fn written_at(store: &dyn Store, snapshot: &SnapshotRef) -> usize {
        let keys = snapshot::list(store).await.unwrap();
        keys.iter().filter(|key| snapshot::snapshot_revision(key) == Some(snapshot.revision)).count()
    }

    #[tokio::test]
    async fn chunks_that_did_not_change_are_used_again() {
        let store = ObjectStoreBackend::memory();
        let mut log = Log { state: State::default(), sequence: 0 };
        let topics = (0..=255).step_by(16);
        for number in topics.clone() {
            log.apply(&Body::TopicCreated(TopicCreated { topic_id: topic(number), partitions: 1 }));
        }
        for _ in 0..2_000 {
            log.flush(topics.clone());
        }
        let mut writer = SnapshotWriter::default();
        let first = writer.write(&store, &log.state, STAMP, None).await.unwrap();
        let chunks = written_at(&store, &first).await - 1;
        assert!(chunks > 4, "{chunks} chunks");

        log.flush([0].into_iter());
        let second = writer.write(&store, &log.state, STAMP, Some(&first)).await.unwrap();
        assert_eq!(written_at(&store, &second).await, 2, "the chunk of the topic, and the manifest");
        assert_eq!(snapshot::read(&store, &second).await.unwrap(), log.state);

        // A writer that has not written the one before finds out by the checksums.
        log.flush([16].into_iter());
        let third = SnapshotWriter::default().write(&store, &log.state, STAMP, Some(&second)).await.unwrap();
        assert_eq!(written_at(&store, &third).await, 2);
        // One whose last snapshot is not listed trusts nothing of it.
        let fourth = writer.write(&store, &log.state, STAMP, Some(&third)).await.unwrap();
        assert_eq!(snapshot::read(&store, &fourth).await.unwrap(), log.state);
    }

    #[tokio::test]
    async fn a_state_that_contradicts_itself_is_not_written() {
        let store = ObjectStoreBackend::memory();
        let mut log = Log { state: State::default(), sequence: 0 };
        log.apply(&Body::TopicCreated(TopicCreated { topic_id: topic(0), partitions: 1 }));
        log.flush([0].into_iter());
        log.state.objects.clear();
        let refused = SnapshotWriter::default().write(&store, &log.state, STAMP, None).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::Damaged { .. }), "{refused}");
        assert!(snapshot::list(&store).await.unwrap().is_empty());
    }
}
