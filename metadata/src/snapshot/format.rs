//! The bytes of a snapshot: a manifest object and, once the state is large, chunk objects. `LOG.md`
//! specifies them.
//!
//! Topics are spread over chunks by the first byte of their id, so a topic that did not change
//! leaves its chunk as it was, and the next snapshot refers to the same object. A chunk brings its
//! own table of objects for the same reason: indices into a common table would change with every
//! commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use prost::Message;
use strandline_storage::path::ObjectId;
use uuid::Uuid;

use crate::limits::{LEVELS, SNAPSHOT_CHUNK_RANGES, SNAPSHOT_CHUNKS, SNAPSHOT_OBJECTS_PER_SLICE};
use crate::record::{ObjectRef, topic_id};
use crate::state::{
    AbortedTransaction, CheckpointDigest, FEATURE_LEVEL, ForgottenProducer, ForgottenProducers, Incarnation,
    Marker, Object, OpenTransaction, Partition, PartitionParts, Producer, Range, SeenBatch, State,
    StateParts, Topic, TransactionVersion, TransactionalProducer, object_id, object_ref,
};
use crate::turns::Turns;

/// The format that this build writes.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The object is missing, cut or changed: the previous snapshot must serve.
    #[error("snapshot object {object} is damaged: {what}")]
    Damaged {
        /// Key of the object.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// The object was written by a newer build.
    #[error("snapshot object {object} has format {format}, this build knows {SNAPSHOT_FORMAT}")]
    Newer {
        /// Key of the object.
        object: String,
        /// Its format.
        format: u32,
    },
    /// The store could not be reached for now.
    #[error("snapshot object {object} cannot be read or written now: {why}")]
    Unavailable {
        /// Key of the object.
        object: String,
        /// What the store said.
        why: String,
    },
}

/// The manifest: everything but the topics, and where the chunks are.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Manifest {
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    #[prost(int64, tag = "2")]
    pub(super) revision: i64,
    #[prost(fixed64, tag = "3")]
    pub(super) digest: u64,
    #[prost(uint32, tag = "4")]
    pub(super) feature_level: u32,
    #[prost(int64, tag = "5")]
    pub(super) producer_ids_end: i64,
    #[prost(int64, tag = "6")]
    pub(super) producer_ids_forgotten_below: i64,
    #[prost(message, repeated, tag = "7")]
    pub(super) incarnations: Vec<IncarnationEntry>,
    #[prost(message, repeated, tag = "8")]
    pub(super) objects: Vec<ObjectEntry>,
    #[prost(message, repeated, tag = "9")]
    pub(super) dead: Vec<DeadEntry>,
    #[prost(message, repeated, tag = "10")]
    pub(super) checkpoints: Vec<CheckpointEntry>,
    #[prost(message, repeated, tag = "11")]
    pub(super) chunks: Vec<ChunkRef>,
    #[prost(int64, tag = "12")]
    pub(super) commits: i64,
    #[prost(int64, tag = "13")]
    pub(super) written_at_ms: i64,
    /// Of revision, digest, commits and time: who reads a manifest that etcd does not name has no
    /// other checksum of it. 0 in manifests of builds that did not know these.
    #[prost(fixed64, tag = "14")]
    pub(super) stamp_sum: u64,
    #[prost(message, repeated, tag = "15")]
    pub(super) transactional: Vec<TransactionalEntry>,
    /// `transaction.version`; absent while it was never changed.
    #[prost(uint32, optional, tag = "16")]
    pub(super) transaction_version: Option<u32>,
    #[prost(uint32, tag = "17")]
    pub(super) transaction_version_changes: u32,
}

/// What a snapshot says beside the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStamp {
    /// How many transactions the log had, the snapshot's checkpoint included; 0 if not known.
    pub commits: i64,
    /// Wall clock of the writer, ms since 1970; 0 if not known.
    pub written_at_ms: i64,
}

impl SnapshotStamp {
    /// The checksum that a manifest of this revision and digest has of it. Never 0.
    fn sum(self, revision: i64, digest: u64) -> u64 {
        let Self { commits, written_at_ms } = self;
        checksum(format!("{revision} {digest} {commits} {written_at_ms}").as_bytes()).max(1)
    }
}

impl Manifest {
    /// Each incarnation's last sequence number.
    pub(super) fn heads(&self) -> impl Iterator<Item = (i64, u64)> {
        self.incarnations.iter().map(|i| (i.incarnation, i.head))
    }

    /// The keys of the objects that its chunks are in.
    pub(super) fn objects_needed(&self) -> impl Iterator<Item = String> {
        self.chunks.iter().map(|c| c.object.clone()).filter(|object| !object.is_empty())
    }

    /// What it says beside the state, if that is undamaged; nothing of it is known of older ones.
    pub(super) fn stamp(&self, object: &str) -> Result<Option<SnapshotStamp>, SnapshotError> {
        let stamp = SnapshotStamp { commits: self.commits, written_at_ms: self.written_at_ms };
        match self.stamp_sum {
            0 => Ok(None),
            sum if sum == stamp.sum(self.revision, self.digest) => Ok(Some(stamp)),
            _ => Err(damaged(object, "the checksum of its stamp is wrong")),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct IncarnationEntry {
    #[prost(int64, tag = "1")]
    incarnation: i64,
    #[prost(uint64, tag = "2")]
    head: u64,
    #[prost(message, optional, tag = "3")]
    open_object: Option<ObjectRef>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectEntry {
    #[prost(message, optional, tag = "1")]
    object: Option<ObjectRef>,
    #[prost(uint64, tag = "2")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeadEntry {
    #[prost(message, optional, tag = "1")]
    object: Option<ObjectRef>,
    #[prost(int64, tag = "2")]
    revision: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct CheckpointEntry {
    #[prost(int64, tag = "1")]
    revision: i64,
    #[prost(fixed64, tag = "2")]
    digest: u64,
}

/// Where a chunk is: an object of its own, or, if `object` is empty, in `inline`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ChunkRef {
    #[prost(string, tag = "1")]
    pub(super) object: String,
    #[prost(uint64, tag = "2")]
    pub(super) bytes: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) checksum: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) inline: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(message, repeated, tag = "1")]
    objects: Vec<ObjectRef>,
    #[prost(message, repeated, tag = "2")]
    topics: Vec<TopicEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct TopicEntry {
    #[prost(bytes = "vec", tag = "1")]
    topic_id: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    partitions: Vec<PartitionEntry>,
}

/// A partition; its ranges are columns.
#[derive(Clone, PartialEq, Message)]
struct PartitionEntry {
    #[prost(int64, tag = "1")]
    log_start: i64,
    #[prost(int64, tag = "2")]
    end: i64,
    #[prost(int64, repeated, tag = "3")]
    base_offset: Vec<i64>,
    #[prost(int64, repeated, tag = "4")]
    offsets: Vec<i64>,
    #[prost(uint32, repeated, tag = "5")]
    object: Vec<u32>,
    #[prost(uint64, repeated, tag = "6")]
    position: Vec<u64>,
    #[prost(uint64, repeated, tag = "7")]
    bytes: Vec<u64>,
    #[prost(sint64, repeated, tag = "8")]
    max_timestamp_ms: Vec<i64>,
    #[prost(uint32, repeated, tag = "9")]
    batches: Vec<u32>,
    #[prost(message, repeated, tag = "10")]
    producers: Vec<ProducerEntry>,
    #[prost(message, repeated, tag = "11")]
    forgotten: Vec<ForgottenEntry>,
    #[prost(int64, tag = "12")]
    forgotten_below: i64,
    /// A range's level, and 4 more if it is compacted. Left out if all are 0.
    #[prost(uint32, repeated, tag = "13")]
    marks: Vec<u32>,
    #[prost(message, repeated, tag = "14")]
    open: Vec<OpenEntry>,
    #[prost(message, repeated, tag = "15")]
    markers: Vec<MarkerEntry>,
    #[prost(message, repeated, tag = "16")]
    aborted: Vec<AbortedEntry>,
}

/// An open transaction in a partition.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct OpenEntry {
    #[prost(int64, tag = "1")]
    first_offset: i64,
    #[prost(int64, tag = "2")]
    producer_id: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MarkerEntry {
    #[prost(int64, tag = "1")]
    offset: i64,
    #[prost(int64, tag = "2")]
    producer_id: i64,
    #[prost(int32, tag = "3")]
    epoch: i32,
    #[prost(bool, tag = "4")]
    committed: bool,
    #[prost(int64, tag = "5")]
    time_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct AbortedEntry {
    #[prost(int64, tag = "1")]
    marker: i64,
    #[prost(int64, tag = "2")]
    producer_id: i64,
    #[prost(int64, tag = "3")]
    first_offset: i64,
    #[prost(int64, tag = "4")]
    last_stable: i64,
}

/// The producer of a transactional id.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TransactionalEntry {
    #[prost(string, tag = "1")]
    transactional_id: String,
    #[prost(int64, tag = "2")]
    producer_id: i64,
    #[prost(int32, tag = "3")]
    epoch: i32,
    #[prost(uint32, tag = "4")]
    timeout_ms: u32,
    #[prost(uint64, tag = "5")]
    number: u64,
    #[prost(message, optional, tag = "6")]
    open: Option<TransactionEntry>,
    #[prost(bool, optional, tag = "7")]
    outcome: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct TransactionEntry {
    #[prost(int64, tag = "1")]
    since_ms: i64,
    #[prost(message, repeated, tag = "2")]
    topics: Vec<TransactionTopicEntry>,
}

/// Partitions of a transaction, as columns.
#[derive(Clone, PartialEq, Message)]
struct TransactionTopicEntry {
    #[prost(bytes = "vec", tag = "1")]
    topic_id: Vec<u8>,
    #[prost(uint32, repeated, tag = "2")]
    partition: Vec<u32>,
    /// First offset of the transaction there, + 1; 0 while nothing is written.
    #[prost(int64, repeated, tag = "3")]
    first: Vec<i64>,
}

/// What [`PartitionEntry::marks`] has in addition to the level of a range that is compacted.
const COMPACTED_MARK: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct ForgottenEntry {
    #[prost(int64, tag = "1")]
    producer_id: i64,
    #[prost(int32, tag = "2")]
    epoch: i32,
    #[prost(int32, tag = "3")]
    last: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ProducerEntry {
    #[prost(int64, tag = "1")]
    producer_id: i64,
    #[prost(int32, tag = "2")]
    epoch: i32,
    #[prost(int32, repeated, tag = "3")]
    first: Vec<i32>,
    #[prost(uint32, repeated, tag = "4")]
    count: Vec<u32>,
    #[prost(int64, repeated, tag = "5")]
    base_offset: Vec<i64>,
}

/// The checksum of snapshot objects: CRC-64/NVME.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// The encoded manifest of a state whose chunks are these. A message of protobuf may be encoded in
/// pieces, one behind the other, so the lists that may be long are encoded in turns; each piece is
/// decoded again and compared.
pub(super) async fn encode_manifest(
    state: &State,
    stamp: SnapshotStamp,
    chunks: impl Iterator<Item = &ChunkRef>,
    turns: &mut Turns,
) -> Result<Vec<u8>, SnapshotError> {
    let incarnations = state.incarnations().iter().map(|(&incarnation, i)| IncarnationEntry {
        incarnation,
        head: i.head,
        open_object: i.open_object.as_ref().map(object_ref),
    });
    let mut bytes = Vec::new();
    let transaction_version = state.transaction_version();
    append(
        &mut bytes,
        &Manifest {
            format: SNAPSHOT_FORMAT,
            revision: state.revision(),
            digest: state.digest(),
            feature_level: state.feature_level(),
            producer_ids_end: state.producer_ids_end(),
            producer_ids_forgotten_below: state.producer_ids_forgotten_below(),
            incarnations: incarnations.collect(),
            commits: stamp.commits,
            written_at_ms: stamp.written_at_ms,
            stamp_sum: stamp.sum(state.revision(), state.digest()),
            transaction_version: Some(transaction_version)
                .filter(|version| version.changes > 0)
                .map(|version| version.version),
            transaction_version_changes: transaction_version.changes,
            ..Manifest::default()
        },
    )?;
    let mut objects =
        state.objects().iter().map(|(id, o)| ObjectEntry { object: Some(object_ref(id)), bytes: o.bytes });
    loop {
        let objects: Vec<ObjectEntry> = objects.by_ref().take(SNAPSHOT_OBJECTS_PER_SLICE).collect();
        if objects.is_empty() {
            break;
        }
        append(&mut bytes, &Manifest { objects, ..Manifest::default() })?;
        turns.spend(SNAPSHOT_OBJECTS_PER_SLICE).await;
    }
    let mut dead =
        state.dead().iter().map(|(id, &revision)| DeadEntry { object: Some(object_ref(id)), revision });
    loop {
        let dead: Vec<DeadEntry> = dead.by_ref().take(SNAPSHOT_OBJECTS_PER_SLICE).collect();
        if dead.is_empty() {
            break;
        }
        append(&mut bytes, &Manifest { dead, ..Manifest::default() })?;
        turns.spend(SNAPSHOT_OBJECTS_PER_SLICE).await;
    }
    let mut transactional = state.transactional().iter();
    loop {
        let producers: Vec<_> =
            transactional.by_ref().take(SNAPSHOT_OBJECTS_PER_SLICE).map(transactional_entry).collect();
        if producers.is_empty() {
            break;
        }
        append(&mut bytes, &Manifest { transactional: producers, ..Manifest::default() })?;
        turns.spend(SNAPSHOT_OBJECTS_PER_SLICE).await;
    }
    let checkpoints = state.checkpoints().iter();
    let checkpoints =
        checkpoints.map(|c| CheckpointEntry { revision: c.revision, digest: c.digest }).collect();
    append(&mut bytes, &Manifest { checkpoints, chunks: chunks.cloned().collect(), ..Manifest::default() })?;
    Ok(bytes)
}

fn transactional_entry((&producer_id, producer): (&i64, &TransactionalProducer)) -> TransactionalEntry {
    TransactionalEntry {
        transactional_id: producer.transactional_id.to_string(),
        producer_id,
        epoch: i32::from(producer.epoch),
        timeout_ms: producer.timeout_ms,
        number: producer.number,
        outcome: producer.outcome,
        open: producer.open.as_ref().map(|open| {
            let mut topics: Vec<TransactionTopicEntry> = Vec::new();
            for (&(topic_id, partition), first) in &open.partitions {
                if topics.last().is_none_or(|topic| topic.topic_id != topic_id.as_bytes()) {
                    let topic_id = topic_id.as_bytes().to_vec();
                    topics.push(TransactionTopicEntry { topic_id, ..Default::default() });
                }
                if let Some(topic) = topics.last_mut() {
                    topic.partition.push(partition);
                    topic.first.push(first.map_or(0, |first| first + 1));
                }
            }
            TransactionEntry { since_ms: open.since_ms, topics }
        }),
    }
}

fn transactional(entry: &TransactionalEntry) -> Option<TransactionalProducer> {
    let open = match &entry.open {
        None => None,
        Some(open) => {
            let mut partitions = OrdMap::new();
            for topic in &open.topics {
                let id = topic_id(&topic.topic_id).ok()?;
                if topic.partition.len() != topic.first.len() {
                    return None;
                }
                for (partition, first) in topic.partition.iter().zip(&topic.first) {
                    partitions.insert((id, *partition), first.checked_sub(1).filter(|first| *first >= 0));
                }
            }
            Some(OpenTransaction { partitions, since_ms: open.since_ms })
        }
    };
    Some(TransactionalProducer {
        transactional_id: entry.transactional_id.as_str().into(),
        epoch: i16::try_from(entry.epoch).ok()?,
        timeout_ms: entry.timeout_ms,
        number: entry.number,
        outcome: entry.outcome,
        open,
    })
}

/// Encodes a piece of the manifest, and makes sure that it can be read.
fn append(bytes: &mut Vec<u8>, piece: &Manifest) -> Result<(), SnapshotError> {
    let encoded = piece.encode_to_vec();
    if Manifest::decode(&encoded[..]).ok().as_ref() != Some(piece) {
        return Err(damaged("that is being written", "its manifest does not read back"));
    }
    bytes.extend(encoded);
    Ok(())
}

/// The topics of one chunk.
pub(super) type TopicsOfChunk<'a> = Vec<(&'a Uuid, &'a Topic)>;

/// Into how many chunks a state is cut.
pub(super) fn chunk_count(state: &State) -> u64 {
    (state.range_count() / SNAPSHOT_CHUNK_RANGES).next_power_of_two().clamp(1, SNAPSHOT_CHUNKS)
}

/// The topics of a state, by the chunk that holds them.
pub(super) fn chunked(state: &State) -> BTreeMap<u64, TopicsOfChunk<'_>> {
    let count = chunk_count(state);
    let mut chunks: BTreeMap<u64, TopicsOfChunk<'_>> = BTreeMap::new();
    for (id, topic) in state.topics() {
        let chunk = u64::from(id.as_bytes()[0]) * count / SNAPSHOT_CHUNKS;
        chunks.entry(chunk).or_default().push((id, topic));
    }
    chunks
}

/// The bytes of a chunk, which read back as these topics. The same topics give the same bytes.
pub(super) async fn encode_chunk(
    topics: &TopicsOfChunk<'_>,
    turns: &mut Turns,
) -> Result<Vec<u8>, SnapshotError> {
    let mut chunk = Chunk::default();
    let mut indices: BTreeMap<ObjectId, u32> = BTreeMap::new();
    for (id, topic) in topics {
        let mut entry = TopicEntry { topic_id: id.as_bytes().to_vec(), partitions: Vec::new() };
        for partition in topic.partitions() {
            entry.partitions.push(columns(partition, &mut chunk.objects, &mut indices));
            turns.spend(1 + partition.ranges().len() + partition.producers().len()).await;
            turns.spend(partition.markers().len() + partition.aborted().len()).await;
        }
        chunk.topics.push(entry);
    }
    let bytes = chunk.encode_to_vec();
    turns.spend(chunk.objects.len()).await;
    let mut decoded = decode_chunk("that is being written", &bytes)?.into_iter();
    for (id, topic) in topics {
        let is_same =
            decoded.next().is_some_and(|(decoded_id, decoded)| decoded_id == **id && decoded == **topic);
        if !is_same {
            return Err(damaged("that is being written", "a chunk does not read back"));
        }
        turns.spend(topic.partitions().len()).await;
    }
    Ok(bytes)
}

/// A partition as it is stored; objects that the chunk does not name yet are added to `objects`.
fn columns(
    partition: &Partition,
    objects: &mut Vec<ObjectRef>,
    indices: &mut BTreeMap<ObjectId, u32>,
) -> PartitionEntry {
    let (log_start, end) = (partition.log_start(), partition.end());
    let mut columns = PartitionEntry { log_start, end, ..Default::default() };
    for range in partition.ranges().iter() {
        let next = u32::try_from(objects.len()).unwrap_or(u32::MAX);
        let index = *indices.entry(range.object).or_insert_with(|| {
            objects.push(object_ref(&range.object));
            next
        });
        columns.base_offset.push(range.base_offset);
        columns.offsets.push(range.end_offset - range.base_offset);
        columns.object.push(index);
        columns.position.push(range.position);
        columns.bytes.push(range.bytes);
        columns.max_timestamp_ms.push(range.max_timestamp_ms);
        columns.batches.push(range.batches);
        let compacted = if range.compacted { COMPACTED_MARK } else { 0 };
        columns.marks.push(u32::from(range.level) | compacted);
    }
    if columns.marks.iter().all(|mark| *mark == 0) {
        columns.marks.clear();
    }
    for (&producer_id, producer) in partition.producers() {
        columns.producers.push(ProducerEntry {
            producer_id,
            epoch: i32::from(producer.epoch),
            first: producer.batches.iter().map(|b| b.first).collect(),
            count: producer.batches.iter().map(|b| b.count).collect(),
            base_offset: producer.batches.iter().map(|b| b.base_offset).collect(),
        });
    }
    columns.forgotten_below = partition.forgotten().below();
    columns.forgotten = partition
        .forgotten()
        .noted()
        .iter()
        .map(|(&producer_id, p)| ForgottenEntry { producer_id, epoch: i32::from(p.epoch), last: p.last })
        .collect();
    let open = partition.open_transactions().iter();
    columns.open =
        open.map(|(&first_offset, &producer_id)| OpenEntry { first_offset, producer_id }).collect();
    let marker = |(&offset, marker): (&i64, &Marker)| {
        let Marker { producer_id, epoch, committed, time_ms } = *marker;
        MarkerEntry { offset, producer_id, epoch: i32::from(epoch), committed, time_ms }
    };
    columns.markers = partition.markers().iter().map(marker).collect();
    let aborted = |(&marker, aborted): (&i64, &AbortedTransaction)| {
        let AbortedTransaction { producer_id, first_offset, last_stable } = *aborted;
        AbortedEntry { marker, producer_id, first_offset, last_stable }
    };
    columns.aborted = partition.aborted().iter().map(aborted).collect();
    columns
}

/// Reads a manifest's bytes.
pub(super) fn parse_manifest(object: &str, bytes: &[u8]) -> Result<Manifest, SnapshotError> {
    let manifest = Manifest::decode(bytes).map_err(|e| damaged(object, &e.to_string()))?;
    if manifest.format > SNAPSHOT_FORMAT {
        return Err(SnapshotError::Newer { object: object.to_owned(), format: manifest.format });
    }
    if manifest.format == 0 {
        return Err(damaged(object, "it has no format"));
    }
    Ok(manifest)
}

pub(super) fn damaged(object: &str, what: &str) -> SnapshotError {
    SnapshotError::Damaged { object: object.to_owned(), what: what.to_owned() }
}

/// The topics of a chunk.
fn decode_chunk(object: &str, bytes: &[u8]) -> Result<Vec<(Uuid, Topic)>, SnapshotError> {
    let wrong = |what: &str| damaged(object, what);
    let chunk = Chunk::decode(bytes).map_err(|e| wrong(&e.to_string()))?;
    let ids = chunk.objects.iter().map(object_id).collect::<Result<Vec<ObjectId>, _>>();
    let ids = ids.map_err(|e| wrong(&e.to_string()))?;
    let mut topics = Vec::with_capacity(chunk.topics.len());
    for entry in &chunk.topics {
        let id = topic_id(&entry.topic_id).map_err(|e| wrong(&e.to_string()))?;
        let partitions = entry
            .partitions
            .iter()
            .map(|p| partition(p, &ids).map(Arc::new).ok_or_else(|| wrong("a partition does not add up")))
            .collect::<Result<Vector<_>, _>>()?;
        topics.push((id, Topic { partitions }));
    }
    Ok(topics)
}

/// Puts a state together from a manifest and its chunks' bytes. What does not add up is an error: a
/// snapshot that contradicts itself must not become the truth.
pub(super) fn assemble(
    object: &str,
    manifest: &Manifest,
    chunks: &[Vec<u8>],
) -> Result<State, SnapshotError> {
    let wrong = |what: &str| damaged(object, what);
    let mut topics = OrdMap::new();
    for bytes in chunks {
        for (id, topic) in decode_chunk(object, bytes)? {
            if topics.insert(id, topic).is_some() {
                return Err(wrong("a topic occurs twice"));
            }
        }
    }
    let mut objects = OrdMap::new();
    for entry in &manifest.objects {
        let id = named(object, entry.object.as_ref())?;
        objects.insert(id, Object { bytes: entry.bytes, ranges: 0 });
    }
    let mut dead = OrdMap::new();
    for entry in &manifest.dead {
        let id = named(object, entry.object.as_ref())?;
        dead.insert(id, entry.revision);
    }
    let mut incarnations = OrdMap::new();
    for entry in &manifest.incarnations {
        let open_object = entry.open_object.as_ref().map(|open| named(object, Some(open))).transpose()?;
        incarnations.insert(entry.incarnation, Incarnation { head: entry.head, open_object });
    }
    let mut producers = OrdMap::new();
    for entry in &manifest.transactional {
        let producer = transactional(entry).ok_or_else(|| wrong("a transactional id does not add up"))?;
        producers.insert(entry.producer_id, producer);
    }
    let checkpoints: VecDeque<CheckpointDigest> = manifest
        .checkpoints
        .iter()
        .map(|c| CheckpointDigest { revision: c.revision, digest: c.digest })
        .collect();
    if manifest.feature_level > FEATURE_LEVEL {
        return Err(wrong(&format!(
            "its feature level is {}, this build knows {FEATURE_LEVEL}",
            manifest.feature_level
        )));
    }
    State::from_parts(StateParts {
        revision: manifest.revision,
        digest: manifest.digest,
        feature_level: manifest.feature_level,
        incarnations,
        topics,
        objects,
        dead,
        producer_ids_end: manifest.producer_ids_end,
        producer_ids_forgotten_below: manifest.producer_ids_forgotten_below,
        checkpoints,
        transactional: producers,
        transaction_version: manifest.transaction_version.map_or_else(
            TransactionVersion::default,
            |version| TransactionVersion { version, changes: manifest.transaction_version_changes },
        ),
    })
    .map_err(|what| wrong(&what))
}

/// The object that an entry of a manifest names.
fn named(manifest: &str, object: Option<&ObjectRef>) -> Result<ObjectId, SnapshotError> {
    let object = object.ok_or_else(|| damaged(manifest, "an object has no id"))?;
    object_id(object).map_err(|error| damaged(manifest, &error.to_string()))
}

fn partition(columns: &PartitionEntry, ids: &[ObjectId]) -> Option<Partition> {
    let count = columns.base_offset.len();
    let lengths = [
        columns.offsets.len(),
        columns.object.len(),
        columns.position.len(),
        columns.bytes.len(),
        columns.max_timestamp_ms.len(),
        columns.batches.len(),
    ];
    if lengths.iter().any(|&l| l != count) || ![0, count].contains(&columns.marks.len()) {
        return None;
    }
    let mark = |i| columns.marks.get(i).copied().unwrap_or(0);
    let mut ranges = Vec::with_capacity(count);
    for i in 0..count {
        ranges.push(Range {
            base_offset: columns.base_offset[i],
            end_offset: columns.base_offset[i].checked_add(columns.offsets[i])?,
            object: *ids.get(usize::try_from(columns.object[i]).ok()?)?,
            position: columns.position[i],
            bytes: columns.bytes[i],
            max_timestamp_ms: columns.max_timestamp_ms[i],
            batches: columns.batches[i],
            level: level(mark(i) & !COMPACTED_MARK)?,
            compacted: mark(i) & COMPACTED_MARK != 0,
        });
    }
    // Sums of bytes are kept, and what a snapshot says is not trusted to add up.
    columns.bytes.iter().try_fold(0_u64, |sum, bytes| sum.checked_add(*bytes))?;
    let mut producers = OrdMap::new();
    for entry in &columns.producers {
        let epoch = i16::try_from(entry.epoch).ok()?;
        if entry.first.len() != entry.count.len() || entry.first.len() != entry.base_offset.len() {
            return None;
        }
        let batches = (0..entry.first.len())
            .map(|i| SeenBatch {
                first: entry.first[i],
                count: entry.count[i],
                base_offset: entry.base_offset[i],
            })
            .collect();
        producers.insert(entry.producer_id, Arc::new(Producer { epoch, batches }));
    }
    let mut noted = OrdMap::new();
    for entry in &columns.forgotten {
        let epoch = i16::try_from(entry.epoch).ok()?;
        noted.insert(entry.producer_id, ForgottenProducer { epoch, last: entry.last });
    }
    let mut markers = OrdMap::new();
    for entry in &columns.markers {
        let MarkerEntry { offset, producer_id, epoch, committed, time_ms } = *entry;
        let epoch = i16::try_from(epoch).ok()?;
        markers.insert(offset, Marker { producer_id, epoch, committed, time_ms });
    }
    let aborted = columns.aborted.iter().map(|entry| {
        let AbortedEntry { marker, producer_id, first_offset, last_stable } = *entry;
        (marker, AbortedTransaction { producer_id, first_offset, last_stable })
    });
    Some(Partition::from_parts(PartitionParts {
        log_start: columns.log_start,
        end: columns.end,
        ranges: ranges.into_iter().collect(),
        producers,
        forgotten: ForgottenProducers { noted, below: columns.forgotten_below },
        open: columns.open.iter().map(|open| (open.first_offset, open.producer_id)).collect(),
        markers,
        aborted: aborted.collect(),
    }))
}

fn level(number: u32) -> Option<u8> {
    u8::try_from(number).ok().filter(|level| usize::from(*level) < LEVELS)
}
