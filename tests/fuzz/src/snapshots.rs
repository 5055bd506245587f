//! Snapshots that may not be what was written: checksums are put right, so that what lies behind
//! them is read.

use bytes::Bytes;
use prost::Message;
use strandline_metadata::invariants;
use strandline_metadata::snapshot;
use strandline_metadata::values::SnapshotRef;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::{ObjectStoreBackend, Store};

use crate::world;

/// As much of the manifest as has to be put right; LOG.md has the whole.
#[derive(Clone, PartialEq, Message)]
struct Manifest {
    #[prost(int64, tag = "2")]
    revision: i64,
    #[prost(fixed64, tag = "3")]
    digest: u64,
    #[prost(message, repeated, tag = "11")]
    chunks: Vec<Chunk>,
}

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(fixed64, tag = "3")]
    checksum: u64,
    #[prost(bytes = "vec", tag = "4")]
    inline: Vec<u8>,
}

fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

pub(crate) fn run(data: &[u8]) {
    let Some((how, manifest)) = data.split_first() else { return };
    let mut bytes = manifest.to_vec();
    let mut known = Manifest::decode(manifest).unwrap_or_default();
    if how & 1 != 0 {
        for chunk in &mut known.chunks {
            (chunk.bytes, chunk.checksum) = (chunk.inline.len() as u64, checksum(&chunk.inline));
        }
        // Of a field that occurs twice the last word counts; of the repeated one every word does,
        // so only the new ones may.
        bytes = without_chunks(manifest);
        let right = Manifest { chunks: known.chunks.clone(), ..Manifest::default() };
        bytes.extend(right.encode_to_vec());
    }
    world::block_on(async {
        let store = ObjectStoreBackend::memory();
        let key = ObjectKey::snapshot(known.revision.max(1), "manifest").expect("a key");
        store.put(&key, Bytes::from(bytes.clone()).into()).await.expect("it is put");
        let listed = SnapshotRef {
            revision: known.revision,
            object: key.as_str().to_owned(),
            bytes: bytes.len() as u64,
            checksum: format!("{:016x}", checksum(&bytes)),
            digest: format!("{:016x}", known.digest),
        };
        if let Ok(state) = snapshot::read(&store, &listed).await {
            if let Err(violation) = invariants::check(&state) {
                panic!("{violation}");
            }
            snapshot::SnapshotWriter::default()
                .write(&store, &state, snapshot::SnapshotStamp::default(), None)
                .await
                .expect("what was read is written and read back");
        }
    });
}

/// The same message without its chunks, field by field.
fn without_chunks(mut bytes: &[u8]) -> Vec<u8> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut kept = Vec::new();
    while !bytes.is_empty() {
        let whole = bytes;
        let Ok((tag, wire)) = decode_key(&mut bytes) else { return whole.to_vec() };
        if skip_field(wire, tag, &mut bytes, DecodeContext::default()).is_err() {
            kept.extend(whole);
            return kept;
        }
        if tag != 11 {
            kept.extend(&whole[..whole.len() - bytes.len()]);
        }
    }
    kept
}
