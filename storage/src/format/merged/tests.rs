use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::batch::tests::batch_of;
use super::super::batch::{VerifiedBatch, crc32c, verify};
use super::super::segment::{Index, Part, SegmentBuilder, SegmentVersion, check_identity, read_index};
use super::*;
use crate::store::ObjectStoreBackend;

const ID: ObjectId = ObjectId::merge(0x102, 0x304, 0x0506_0708);
const DENSE: MergeFlags = MergeFlags { compacted: false };
const COMPACTED: MergeFlags = MergeFlags { compacted: true };

/// A batch of `payload_bytes` with these two fields.
fn batch(payload_bytes: usize, last_offset_delta: i32, max_timestamp: i64) -> Bytes {
    let mut batch = batch_of(payload_bytes as u64, payload_bytes.min(2000)).to_vec();
    batch.resize(BATCH_HEADER_BYTES + payload_bytes, 7);
    let length = i32::try_from(batch.len() - 12).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[23..27].copy_from_slice(&last_offset_delta.to_be_bytes());
    batch[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
    let crc = crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch.into()
}

fn push(builder: &mut MergeBuilder, batch: &Bytes, base_offset: i64) -> Result<(), MergeError> {
    builder.push_pieces(&BatchHeader::parse(batch).unwrap(), [batch].into_iter(), base_offset)
}

/// The batch as it lies in a merged object.
fn patched(batch: &Bytes, base_offset: i64) -> Vec<u8> {
    [&base_offset.to_be_bytes()[..], &batch[8..12], &[0; 4], &batch[16..]].concat()
}

/// One record (no key, value "hello"), as in the tests of batches.
const BATCH: [u8; 73] = [
    0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 61, 0, 0, 0, 3, 2, 0x1b, 0x9d, 0x24, 0x58, 0, 0x10, 0, 0, 0, 0, 0, 0, 1,
    0x8b, 0xcf, 0xe5, 0x68, 0x00, 0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x00, 0, 0, 0, 0, 0, 0, 0x03, 0xe9, 0, 5,
    0, 0, 0, 9, 0, 0, 0, 1, 22, 0, 0, 0, 1, 10, b'h', b'e', b'l', b'l', b'o', 0,
];

fn golden() -> Merged {
    let mut builder = MergeBuilder::new(ID);
    let batch = Bytes::from_static(&BATCH);
    builder.begin([1; 16], 0, DENSE).unwrap();
    push(&mut builder, &batch, 0x10).unwrap();
    push(&mut builder, &batch, 0x11).unwrap();
    builder.begin([1; 16], 7, COMPACTED).unwrap();
    push(&mut builder, &batch, 0x1234_5678).unwrap();
    builder.finish().unwrap()
}

/// The bytes of [`golden`]. If this test breaks, the format changed: objects already written become
/// unreadable. All checksums were computed by other means than the code under test.
fn golden_bytes() -> Vec<u8> {
    let batch = |base_offset: [u8; 8]| [&base_offset[..], &BATCH[8..12], &[0; 4], &BATCH[16..]].concat();
    let timestamp = [0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0x00];
    [
        &batch([0, 0, 0, 0, 0, 0, 0, 0x10])[..],
        &batch([0, 0, 0, 0, 0, 0, 0, 0x11]),
        &batch([0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]),
        // Sparse index of partition 0: offset 0x10, position 0, timestamp
        &[0, 0, 0, 0, 0, 0, 0, 0x10],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &timestamp,
        // and of partition 7: offset 0x12345678, position 146, timestamp
        &[0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78],
        &[0, 0, 0, 0, 0, 0, 0, 146],
        &timestamp,
        // (topic 0101…, partition 0), CRC-32C, position 0, length 146
        &[1; 16],
        &[0, 0, 0, 0],
        &CRCS[0],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 146],
        // offsets 0x10 to 0x12, timestamp, 2 batches, no flags
        &[0, 0, 0, 0, 0, 0, 0, 0x10],
        &[0, 0, 0, 0, 0, 0, 0, 0x12],
        &timestamp,
        &[0, 0, 0, 2],
        &[0, 0, 0, 0],
        // sparse index at 219, of 1 entry
        &[0, 0, 0, 0, 0, 0, 0, 219],
        &[0, 0, 0, 1],
        // (topic 0101…, partition 7), CRC-32C, position 146, length 73
        &[1; 16],
        &[0, 0, 0, 7],
        &CRCS[1],
        &[0, 0, 0, 0, 0, 0, 0, 146],
        &[0, 0, 0, 0, 0, 0, 0, 73],
        // offsets 0x12345678 to 0x12345679, timestamp, 1 batch, compacted
        &[0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78],
        &[0, 0, 0, 0, 0x12, 0x34, 0x56, 0x79],
        &timestamp,
        &[0, 0, 0, 1],
        &[0, 0, 0, 1],
        // sparse index at 243, of 1 entry
        &[0, 0, 0, 0, 0, 0, 0, 243],
        &[0, 0, 0, 1],
        // incarnation, number, salt
        &[0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 5, 6, 7, 8],
        // indexes at 219, of 216 bytes, 2 ranges, version 1, kind 2, CRC-32
        &[0, 0, 0, 0, 0, 0, 0, 219],
        &[0, 0, 0, 216],
        &[0, 0, 0, 2],
        &[0, 1, 0, 2],
        &CRCS[2],
        b"STRNDLSG",
    ]
    .concat()
}

/// Of the two ranges (CRC-32C), and of index and footer (CRC-32).
const CRCS: [[u8; 4]; 3] = [[0x94, 0x75, 0x65, 0x52], [0xb7, 0x67, 0xb6, 0x13], [0xeb, 0x83, 0xff, 0x71]];

#[test]
fn golden_bytes_are_written() {
    let merged = golden();
    assert_eq!(merged.payload.concat(), golden_bytes());
    assert_eq!(merged.size, golden_bytes().len() as u64);
    assert_eq!(merged.payload.checksum(), Crc32c::known(0x3f36_0f44, 487));
}

#[test]
fn golden_bytes_are_read() {
    let bytes = golden_bytes();
    let index = MergedIndex::parse(&bytes, bytes.len() as u64).unwrap();
    let first = MergedRange {
        topic_id: [1; 16],
        partition: 0,
        crc: u32::from_be_bytes(CRCS[0]),
        position: 0,
        length: 146,
        first_offset: 0x10,
        end_offset: 0x12,
        max_timestamp: 1_700_000_000_000,
        batches: 2,
        flags: DENSE,
        sparse: (0, 1),
    };
    let second = MergedRange {
        partition: 7,
        crc: u32::from_be_bytes(CRCS[1]),
        position: 146,
        length: 73,
        first_offset: 0x1234_5678,
        end_offset: 0x1234_5679,
        batches: 1,
        flags: COMPACTED,
        sparse: (1, 1),
        ..first
    };
    assert_eq!((index.id(), index.ranges()), (ID, &[first, second][..]));
    assert_eq!(golden().ranges, [first, second]);
    let entry = SparseEntry { base_offset: 0x1234_5678, position: 146, max_timestamp: 1_700_000_000_000 };
    assert_eq!(index.sparse(&second), [entry]);
    for (range, batches) in [(first, &bytes[..146]), (second, &bytes[146..219])] {
        let pieces = [Bytes::copy_from_slice(&batches[..9]), Bytes::copy_from_slice(&batches[9..])];
        assert_eq!(index.verify(&range, &pieces), Ok(()));
        assert!(index.verify(&range, &pieces[..1]).is_err());
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = golden_bytes();
    let index = MergedIndex::parse(&bytes, bytes.len() as u64).unwrap();
    for position in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << bit;
            let found = MergedIndex::parse(&damaged, damaged.len() as u64);
            if position >= 219 {
                assert!(found.is_err(), "byte {position}, bit {bit}");
                continue;
            }
            // What is in the data, the checksum of its range finds.
            assert_eq!(found.as_ref(), Ok(&index));
            let verified = index.ranges().iter().map(|range| {
                let from = usize::try_from(range.position).unwrap();
                let to = from + usize::try_from(range.length).unwrap();
                index.verify(range, &[Bytes::copy_from_slice(&damaged[from..to])])
            });
            assert_eq!(verified.filter(Result::is_err).count(), 1, "byte {position}, bit {bit}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let bytes = golden_bytes();
    for length in 0..bytes.len() {
        assert!(MergedIndex::parse(&bytes[..length], length as u64).is_err(), "{length} bytes");
        let rest = MergedIndex::parse(&bytes[length + 1..], bytes.len() as u64);
        assert_eq!(rest.is_err(), length + 1 > 219, "without the first {length} bytes");
    }
    assert!(MergedIndex::parse(&bytes, bytes.len() as u64 + 1).is_err(), "a size that is not the object's");
}

#[test]
fn newer_versions_and_kinds_are_called_that() {
    let bytes = golden_bytes();
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        let at = bytes.len() - at;
        bytes[at] = value;
        MergedIndex::parse(&bytes, bytes.len() as u64).unwrap_err()
    };
    let version = FormatError::Version { kind: ObjectKind::Merge, version: 9, latest: 1 };
    assert_eq!(with(15, 9), version);
    assert_eq!(version.to_string(), "its format version is 9, this program knows 1 to 1 of a merged object");
    assert_eq!(with(13, 3), FormatError::Kind(3));
    // The fields of the footer that tell the kind are where they always were: whoever knows write
    // objects only finds a kind that it does not know, in a version that it does.
    assert_eq!(bytes[bytes.len() - 16..][..4], [0, 1, 0, 2]);
}

#[tokio::test]
async fn each_kind_refuses_the_other_one() {
    let merged = golden_bytes();
    let size = merged.len() as u64;
    assert_eq!(Index::parse(&merged, size), Err(FormatError::OtherKind(ObjectKind::Merge)));
    let other = ObjectId { kind: ObjectKind::Write, ..ID };
    let mut builder = SegmentBuilder::new(other, SegmentVersion::V1);
    builder.push([1; 16], 0, [Part::of(Bytes::from_static(&BATCH))]).unwrap();
    let old = builder.finish().payload.concat();
    let old_size = old.len() as u64;
    assert_eq!(MergedIndex::parse(&old, old_size), Err(FormatError::OtherKind(ObjectKind::Write)));
    // By the footer alone, with and without an identity of its own.
    assert_eq!(check_identity(&merged, size, ID), Ok(()));
    assert_eq!(check_identity(&merged, size, other), Err(FormatError::Identity(ID)));
    assert_eq!(check_identity(&old, old_size, other), Ok(()));
    assert_eq!(check_identity(&old, old_size, ID), Err(FormatError::OtherKind(ObjectKind::Write)));
    let store = ObjectStoreBackend::memory();
    store.put(&other.key(), Bytes::from(merged).into()).await.unwrap();
    let error = read_index(&store, &other.key(), size).await.unwrap_err();
    assert!(error.to_string().contains("says that it is a merged object, which it should not be"), "{error}");
}

#[tokio::test]
async fn an_object_in_the_place_of_another_one_is_refused() {
    let store = ObjectStoreBackend::memory();
    let size = golden_bytes().len() as u64;
    let wrong = ObjectId { number: 9, ..ID };
    for id in [ID, wrong] {
        store.put(&id.key(), Bytes::from(golden_bytes()).into()).await.unwrap();
    }
    assert_eq!(MergedIndex::read(&store, &ID.key(), size).await.unwrap().id(), ID);
    let error = MergedIndex::read(&store, &wrong.key(), size).await.unwrap_err();
    assert!(error.to_string().contains(&format!("says that it is {ID}")), "{error}");
    assert_eq!(error.key(), Some(wrong.key().as_str()));
}

#[tokio::test]
async fn an_index_is_read_from_the_store_however_large_it_is() {
    for partitions in [0_u16, 1, 1000, 1213, 1214, 5000] {
        let mut builder = MergeBuilder::new(ID);
        for partition in 0..partitions {
            builder.begin([3; 16], partition.into(), DENSE).unwrap();
            push(&mut builder, &Bytes::from_static(&BATCH), 5).unwrap();
        }
        let merged = builder.finish().unwrap();
        let store = ObjectStoreBackend::memory();
        store.put(&ID.key(), merged.payload).await.unwrap();
        let index = MergedIndex::read(&store, &ID.key(), merged.size).await.unwrap();
        assert_eq!(index.ranges(), merged.ranges, "{partitions} partitions");
        assert_eq!(
            index.range([3; 16], i32::from(partitions / 2)),
            merged.ranges.get(usize::from(partitions / 2))
        );
        assert_eq!(index.range([3; 16], partitions.into()), None);
        for told in [merged.size - 1, merged.size - 50, merged.size + 1] {
            let error = MergedIndex::read(&store, &ID.key(), told).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
    }
}

#[test]
fn offsets_must_be_dense_unless_compacted() {
    let batch = batch(100, 4, 0);
    for (flags, base_offset, is_taken) in [
        (DENSE, 15, true),
        (DENSE, 16, false),
        (DENSE, 14, false),
        (DENSE, 10, false),
        (COMPACTED, 15, true),
        (COMPACTED, 16, true),
        (COMPACTED, i64::MAX - 5, true),
        (COMPACTED, 14, false),
        (COMPACTED, 0, false),
    ] {
        let mut builder = MergeBuilder::new(ID);
        builder.begin([1; 16], 3, flags).unwrap();
        push(&mut builder, &batch, 10).unwrap();
        let pushed = push(&mut builder, &batch, base_offset);
        let topic_id = u128::from_be_bytes([1; 16]);
        let refused = MergeError::Offset { topic_id, partition: 3, expected: 15, found: base_offset };
        assert_eq!(pushed, if is_taken { Ok(()) } else { Err(refused) });
        assert!(refused.to_string().contains(&format!("at offset {base_offset} where 15 is the next")));
        // What was refused left nothing behind.
        let merged = builder.finish().unwrap();
        assert_eq!(merged.ranges[0].batches, 1 + u32::from(is_taken));
        MergedIndex::parse(&merged.payload.concat(), merged.size).unwrap();
    }
}

#[test]
fn what_cannot_be_built_is_refused_with_the_reason() {
    let sent = batch(100, 4, 0);
    let header = BatchHeader::parse(&sent).unwrap();
    let mut builder = MergeBuilder::new(ID);
    assert_eq!(push(&mut builder, &sent, 0), Err(MergeError::NoPartition));
    builder.begin([1; 16], 3, DENSE).unwrap();
    for (topic, partition) in [([1; 16], 3), ([1; 16], 2), ([0; 16], 4)] {
        let refused = builder.begin(topic, partition, DENSE);
        assert!(matches!(refused, Err(MergeError::PartitionOrder { .. })), "{refused:?}");
    }
    for (base_offset, is_taken) in
        [(-1, false), (i64::MIN, false), (i64::MAX - 4, false), (i64::MAX - 5, true)]
    {
        assert_eq!(push(&mut builder, &sent, base_offset).is_ok(), is_taken, "{base_offset}");
    }
    for (pieces, length) in
        [(vec![sent.slice(1..)], 160), (vec![], 0), (vec![sent.clone(), sent.clone()], 322)]
    {
        let refused = builder.push_pieces(&header, pieces.iter(), 0);
        assert_eq!(refused, Err(MergeError::Length { expected: 161, actual: length }));
    }
    assert_eq!(builder.data_bytes(), 161);
    let wrong = MergeBuilder::new(ObjectId { kind: ObjectKind::Write, ..ID }).finish();
    assert!(matches!(wrong, Err(MergeError::Id(_))));
}

#[test]
fn an_object_has_at_most_so_many_bytes_and_ranges() {
    let large = batch(100 << 20, 0, 0);
    let mut builder = MergeBuilder::new(ID);
    builder.begin([1; 16], 0, DENSE).unwrap();
    push(&mut builder, &large, 0).unwrap();
    push(&mut builder, &large, 1).unwrap();
    assert_eq!(push(&mut builder, &large, 2), Err(MergeError::TooManyBytes));
    let merged = builder.finish().unwrap();
    assert_eq!(merged.ranges[0].length, 2 * large.len() as u64);
    let mut builder = MergeBuilder::new(ID);
    for partition in (0..).take(MAX_MERGED_RANGES) {
        builder.begin([1; 16], partition, DENSE).unwrap();
        push(&mut builder, &Bytes::from_static(&BATCH), 0).unwrap();
    }
    assert_eq!(builder.begin([2; 16], 0, DENSE), Err(MergeError::TooManyRanges));
    let merged = builder.finish().unwrap();
    let index = MergedIndex::parse(&merged.payload.concat(), merged.size).unwrap();
    assert_eq!(index.ranges().len(), MAX_MERGED_RANGES);
    assert!(index.memory_bytes() < 8 << 20, "{}", index.memory_bytes());
}

#[test]
fn a_partition_without_batches_leaves_no_range() {
    let mut builder = MergeBuilder::new(ID);
    builder.begin([1; 16], 0, DENSE).unwrap();
    builder.begin([1; 16], 1, COMPACTED).unwrap();
    push(&mut builder, &Bytes::from_static(&BATCH), 5).unwrap();
    builder.begin([1; 16], 2, DENSE).unwrap();
    let merged = builder.finish().unwrap();
    assert_eq!(merged.ranges.iter().map(|range| range.partition).collect::<Vec<_>>(), [1]);
    MergedIndex::parse(&merged.payload.concat(), merged.size).unwrap();
    let empty = MergeBuilder::new(ID).finish().unwrap();
    assert_eq!(empty.size, LONGEST_FOOTER_BYTES as u64);
    assert_eq!(MergedIndex::parse(&empty.payload.concat(), empty.size).unwrap().ranges(), []);
}

#[test]
fn large_batches_are_not_copied() {
    let large = batch(COALESCE_BELOW_BYTES, 0, 0);
    let cut = batch(3 * COALESCE_BELOW_BYTES, 0, 0);
    let pieces = [cut.slice(..20), cut.slice(20..20_000), cut.slice(20_000..)];
    let mut builder = MergeBuilder::new(ID);
    builder.begin([0; 16], 0, DENSE).unwrap();
    push(&mut builder, &batch(10, 0, 0), 0).unwrap();
    push(&mut builder, &large, 1).unwrap();
    builder.push_pieces(&verify(&cut).unwrap(), pieces.iter(), 2).unwrap();
    let merged = builder.finish().unwrap();
    let sent = merged.payload.pieces();
    let starts = [&large[21..], &cut[21..], &cut[20_000..]].map(<[u8]>::as_ptr);
    for start in starts {
        assert!(sent.iter().any(|piece| piece.as_ptr() == start), "a large piece was copied");
    }
    assert_eq!(sent.len(), 6, "small ones, large, a head, two of the cut one, the index");
    assert_eq!(merged.payload.checksum(), Crc32c::of(&merged.payload.concat()));
}

/// A batch as it should be found.
struct Pushed {
    base_offset: i64,
    end_offset: i64,
    max_timestamp: i64,
    position: u64,
    bytes: Vec<u8>,
}

/// A partition, and whether it is compacted.
type Begun = ([u8; 16], i32, MergeFlags);

/// Builds an object of random batches, and says what each partition has in it.
fn random_object(rng: &mut StdRng) -> (Merged, Vec<(Begun, Vec<Pushed>)>) {
    let mut builder = MergeBuilder::new(ID);
    let mut content = Vec::new();
    let (mut topic, mut partition) = (0, -1);
    for _ in 0..rng.random_range(1..6) {
        if rng.random_bool(0.3) {
            (topic, partition) = (topic + 1, -1);
        }
        partition += rng.random_range(1..1000);
        let flags = MergeFlags { compacted: rng.random_bool(0.5) };
        builder.begin([topic; 16], partition, flags).unwrap();
        let mut offset = rng.random_range(0..1_000_000);
        let mut pushed = Vec::new();
        let most = if rng.random_bool(0.7) { 1_500 } else { 1_000_000 };
        for _ in 0..rng.random_range(1..30) {
            if flags.compacted && rng.random_bool(0.4) {
                offset += rng.random_range(1..100);
            }
            let delta = rng.random_range(0..50);
            let max_timestamp = rng.random_range(-1..1000);
            let sent = batch(rng.random_range(0..most), delta, max_timestamp);
            let position = builder.data_bytes();
            let header = verify(&sent).unwrap();
            let at = rng.random_range(0..=sent.len());
            let pieces = [sent.slice(..at), sent.slice(at..)];
            builder.push_pieces(&header, pieces.iter(), offset).unwrap();
            let (base_offset, end_offset) = (offset, offset + i64::from(delta) + 1);
            let bytes = patched(&sent, base_offset);
            pushed.push(Pushed { base_offset, end_offset, max_timestamp, position, bytes });
            offset = end_offset;
        }
        content.push((([topic; 16], partition, flags), pushed));
    }
    (builder.finish().unwrap(), content)
}

#[test]
fn what_is_built_is_found_by_offset_and_by_time() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (merged, content) = random_object(&mut rng);
        let bytes = merged.payload.concat();
        assert_eq!(bytes.len() as u64, merged.size);
        assert_eq!(merged.payload.checksum(), Crc32c::of(&bytes), "seed {seed}");
        let index = MergedIndex::parse(&bytes, merged.size).unwrap();
        assert_eq!(index.ranges(), merged.ranges);
        assert_eq!(index.ranges().len(), content.len());
        for (&(topic, partition, flags), batches) in content.iter().map(|(key, batches)| (key, batches)) {
            let range = *index.range(topic, partition).unwrap();
            let (first, last) = (batches.first().unwrap(), batches.last().unwrap());
            let whole = batches.iter().map(|b| &b.bytes[..]).collect::<Vec<_>>().concat();
            assert_eq!((range.position, range.length), (first.position, whole.len() as u64));
            assert_eq!((range.first_offset, range.end_offset), (first.base_offset, last.end_offset));
            assert_eq!((range.flags, range.batches as usize), (flags, batches.len()));
            assert_eq!(range.max_timestamp, batches.iter().map(|b| b.max_timestamp).max().unwrap());
            assert_eq!(range.crc, crc32c(&whole), "seed {seed}");
            let at = usize::try_from(range.position).unwrap();
            assert!(bytes[at..at + whole.len()] == whole, "seed {seed}");
            check_sparse(&index, &range, batches);
            check_locate(&mut rng, &index, &range, batches);
        }
        assert_eq!(index.locate([99; 16], 0, 0, 1), None);
        assert_eq!(index.locate_time([99; 16], 0, 0), None);
    }
}

/// An entry for the first batch, and for each that begins a MiB or more behind the one before.
fn check_sparse(index: &MergedIndex, range: &MergedRange, batches: &[Pushed]) {
    let mut expected: Vec<SparseEntry> = Vec::new();
    let mut max_timestamp = i64::MIN;
    for batch in batches {
        max_timestamp = max_timestamp.max(batch.max_timestamp);
        match expected.last_mut() {
            Some(entry) if batch.position - entry.position < MERGE_INDEX_INTERVAL_BYTES => {
                entry.max_timestamp = max_timestamp;
            }
            _ => expected.push(SparseEntry {
                base_offset: batch.base_offset,
                position: batch.position,
                max_timestamp,
            }),
        }
    }
    assert_eq!(index.sparse(range), expected);
}

fn check_locate(rng: &mut StdRng, index: &MergedIndex, range: &MergedRange, batches: &[Pushed]) {
    let MergedRange { topic_id, partition, .. } = *range;
    let end = range.position + range.length;
    let cuts: Vec<u64> = index.sparse(range).iter().map(|entry| entry.position).chain([end]).collect();
    let is_cut = |span: &Span| cuts.contains(&span.position) && cuts.contains(&(span.position + span.bytes));
    for _ in 0..100 {
        let offset = rng.random_range(range.first_offset - 3..range.end_offset + 3);
        let max_bytes = [0, 1, 500_000, 1 << 20, 5 << 20, u64::MAX][rng.random_range(0..6)];
        let found = index.locate(topic_id, partition, offset, max_bytes);
        let expected = batches.iter().find(|b| b.end_offset > offset);
        let expected = expected.filter(|b| range.flags.compacted || b.base_offset <= offset);
        let (Some(span), Some(batch)) = (found, expected) else {
            assert_eq!((found.is_none(), expected.is_none()), (true, true), "offset {offset}");
            continue;
        };
        let batch_end = batch.position + batch.bytes.len() as u64;
        let span_end = span.position + span.bytes;
        assert!(is_cut(&span) && span.position <= batch.position && batch_end <= span_end);
        assert!(span_end >= batch.position.saturating_add(max_bytes).min(end));
        let at_start = batches.iter().find(|b| b.position == span.position).unwrap();
        assert_eq!(span.base_offset, at_start.base_offset);
        // No later cut would have done, and not much less: what is read in vain is the way to the
        // batch, and what lies between two cuts.
        assert!(
            cuts.iter()
                .all(|cut| *cut <= span.position || *cut > batch.position || offset < batch.base_offset)
        );
        let spare = 3 * (MERGE_INDEX_INTERVAL_BYTES + 1_000_100) + max_bytes.min(range.length);
        assert!(span.bytes <= spare, "{span:?} for {max_bytes}");
    }
    for timestamp in [-2, -1, 0, 300, 700, 950, 999, 1000] {
        let found = index.locate_time(topic_id, partition, timestamp);
        let expected = batches.iter().find(|b| b.max_timestamp >= timestamp);
        let (Some(span), Some(batch)) = (found, expected) else {
            assert_eq!((found.is_none(), expected.is_none()), (true, true), "timestamp {timestamp}");
            continue;
        };
        assert!(is_cut(&span) && span.position <= batch.position);
        assert!(batch.position + batch.bytes.len() as u64 <= span.position + span.bytes);
        let inside = cuts.iter().filter(|cut| **cut > span.position && **cut < span.position + span.bytes);
        assert_eq!(inside.count(), 0, "it is one part");
    }
}

#[test]
fn a_read_from_a_cut_gets_what_it_asks_for_and_no_more_than_to_the_next_cut() {
    const MIB: u64 = 1 << 20;
    let mut builder = MergeBuilder::new(ID);
    builder.begin([1; 16], 0, DENSE).unwrap();
    let sent = batch(256 * 1024 - BATCH_HEADER_BYTES, 9, 5);
    for number in 0..64 {
        push(&mut builder, &sent, number * 10).unwrap();
    }
    let merged = builder.finish().unwrap();
    let index = MergedIndex::parse(&merged.payload.concat(), merged.size).unwrap();
    for (offset, max_bytes, base_offset, mibs) in [
        (0, MIB, 0, 1),
        (0, MIB + 1, 0, 2),
        (40, MIB, 40, 1),
        // Somewhere in the second MiB: the batch may be the last one before the third.
        (41, 1, 40, 1),
        (41, MIB, 40, 2),
        (639, MIB, 600, 1),
        (639, u64::MAX, 600, 1),
        (0, u64::MAX, 0, 16),
    ] {
        let expected =
            Span { base_offset, position: base_offset.cast_unsigned() / 40 * MIB, bytes: mibs * MIB };
        assert_eq!(index.locate([1; 16], 0, offset, max_bytes), Some(expected), "{offset}, {max_bytes}");
    }
}

/// Entries that lie, under a CRC that is right: what a bug, not a broken disk, would write.
#[test]
fn an_index_that_contradicts_itself_is_refused() {
    type Lie = fn(&mut MergeBuilder);
    let lies: [Lie; 20] = [
        |b| b.ranges.swap(0, 1),
        |b| b.ranges[1].partition = 0,
        |b| b.ranges[0].length -= 1,
        |b| b.ranges[1].length = u64::MAX,
        |b| b.ranges[1].position += 1,
        |b| {
            b.ranges.pop();
        },
        |b| b.ranges[0].first_offset = -1,
        |b| b.ranges[0].first_offset += 1,
        |b| b.ranges[0].end_offset = b.ranges[0].first_offset,
        |b| b.ranges[0].batches = 0,
        |b| b.ranges[0].batches = 3,
        |b| b.ranges[0].max_timestamp += 1,
        |b| b.ranges[0].sparse.1 = 0,
        |b| b.ranges[0].sparse.1 = 2,
        |b| b.ranges[1].sparse.0 = 0,
        |b| b.ranges[1].sparse.1 = 2,
        |b| b.sparse[0].base_offset += 1,
        |b| b.sparse[1].position += 1,
        |b| b.sparse[1].max_timestamp += 1,
        |b| b.sparse.push(b.sparse[1]),
    ];
    for (case, lie) in lies.into_iter().enumerate() {
        let mut builder = MergeBuilder::new(ID);
        for partition in 0..2 {
            builder.begin([1; 16], partition, DENSE).unwrap();
            push(&mut builder, &Bytes::from_static(&BATCH), 8).unwrap();
        }
        builder.end_range();
        lie(&mut builder);
        // As `finish` would, with the position of the data's real end.
        let mut tail = BytesMut::new();
        for entry in &builder.sparse {
            tail.put_i64(entry.base_offset);
            tail.put_u64(entry.position);
            tail.put_i64(entry.max_timestamp);
        }
        for range in &builder.ranges {
            put_range(&mut tail, range, 146);
        }
        let count = u32::try_from(builder.ranges.len()).unwrap();
        put_footer(&mut tail, Layout::Merge(MergedVersion::V1), ID, 146, count);
        let found = MergedIndex::parse(&tail, 146 + tail.len() as u64);
        assert!(found.is_err(), "case {case}: {found:?}");
    }
}

#[test]
fn garbage_is_refused_without_a_panic() {
    for seed in 0..5000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..400)];
        rng.fill(&mut bytes[..]);
        let ranges = rng.random_range(0..4_u32);
        let index_bytes = ranges * 108 + rng.random_range(0..3) * 24;
        let length = bytes.len();
        if rng.random_bool(0.8) && length >= index_bytes as usize + LONGEST_FOOTER_BYTES {
            // A footer that fits, under a CRC that is right.
            let data = length - index_bytes as usize - LONGEST_FOOTER_BYTES;
            let mut tail = BytesMut::from(&bytes[data..length - LONGEST_FOOTER_BYTES]);
            put_footer(&mut tail, Layout::Merge(MergedVersion::V1), ID, data as u64, ranges);
            bytes[data..].copy_from_slice(&tail);
            let found = MergedIndex::parse(&bytes, length as u64);
            assert_eq!(found.is_ok(), ranges == 0 && index_bytes == 0 && data == 0, "seed {seed}");
        } else {
            assert!(MergedIndex::parse(&bytes, length as u64).is_err(), "seed {seed}");
        }
    }
}

#[test]
fn checksums_of_verified_batches_are_taken_as_they_are() {
    let sent = VerifiedBatch::new(batch(200_000, 0, 0)).unwrap();
    let mut damaged = sent.bytes().to_vec();
    damaged[100_000] ^= 1;
    let damaged = Bytes::from(damaged);
    let mut builder = MergeBuilder::new(ID);
    builder.begin([1; 16], 0, DENSE).unwrap();
    push(&mut builder, &damaged, 0).unwrap();
    let merged = builder.finish().unwrap();
    let stored = Crc32c::of(&merged.payload.concat());
    assert_ne!(merged.payload.checksum(), stored, "a store that checks refuses what changed in memory");
}
