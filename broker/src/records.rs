//! Inside a record batch: the few places where the payload has to be opened.
//!
//! Whatever is decompressed is bounded (invariant 9): a few kilobytes on the wire must not become
//! gigabytes here.

use std::io::{self, BufRead, BufReader, Read, Write};

use crate::limits::MAX_PAYLOAD_BYTES;
use bytes::{BufMut, Bytes, BytesMut};
use strandline_storage::format::batch::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, Compression, VerifiedBatch, crc32c,
};

/// The header and framing of xerial's snappy, which Java clients write.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\x00";
const XERIAL_HEADER_BYTES: usize = 16;
/// How much of a payload goes into one block of that framing.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

/// Where the codec bits are: the low byte of the attributes.
const ATTRIBUTES_LOW_AT: usize = 22;
const CODEC_MASK: u8 = 0x07;
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
const CRC_FROM: usize = 21;

/// Why a payload cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    /// The batch itself is wrong.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The payload is not what its codec writes.
    #[error("the payload does not decompress: {0}")]
    Codec(#[from] io::Error),
    /// The payload would become too large.
    #[error("the payload would have more than {0} bytes")]
    TooLarge(usize),
    /// The records are cut or lie about their lengths.
    #[error("the records in the payload do not add up")]
    Malformed,
}

/// A record's place in time, as a look-up by timestamp needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordTime {
    /// Offset relative to the batch's base offset.
    pub(crate) offset_delta: i32,
    /// ms since 1970.
    pub(crate) timestamp_ms: i64,
}

/// The time of the first record of a batch that is wanted. No more is decompressed than it takes to
/// find it, and nothing of that is kept.
pub(crate) fn find_time(
    header: &BatchHeader,
    batch: &[u8],
    mut is_wanted: impl FnMut(RecordTime) -> bool,
) -> Result<Option<RecordTime>, RecordsError> {
    let stored = batch.get(BATCH_HEADER_BYTES..).ok_or(RecordsError::Malformed)?;
    let payload = open(header.compression()?, stored, MAX_PAYLOAD_BYTES)?;
    let mut records = BufReader::new(payload.take(MAX_PAYLOAD_BYTES as u64));
    for _ in 0..header.record_count {
        if records.fill_buf()?.is_empty() {
            break;
        }
        let time = match next_time(header, &mut records) {
            Err(RecordsError::Malformed) if records.get_ref().limit() == 0 => {
                return Err(RecordsError::TooLarge(MAX_PAYLOAD_BYTES));
            }
            read => read?,
        };
        if is_wanted(time) {
            return Ok(Some(time));
        }
    }
    Ok(None)
}

/// Reads one record and passes over what is behind its time.
fn next_time(header: &BatchHeader, records: &mut impl Read) -> Result<RecordTime, RecordsError> {
    let length = u64::try_from(varint(records)?).map_err(|_| RecordsError::Malformed)?;
    let mut record = records.take(length);
    let mut attributes = [0; 1];
    read_all(&mut record, &mut attributes)?;
    let timestamp_delta = varint(&mut record)?;
    let offset_delta = i32::try_from(varint(&mut record)?).map_err(|_| RecordsError::Malformed)?;
    io::copy(&mut record, &mut io::sink())?;
    if record.limit() > 0 {
        return Err(RecordsError::Malformed);
    }
    let timestamp_ms = if header.has_log_append_time() {
        header.max_timestamp
    } else {
        header.base_timestamp.saturating_add(timestamp_delta)
    };
    Ok(RecordTime { offset_delta, timestamp_ms })
}

fn read_all(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), RecordsError> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => RecordsError::Malformed,
        _ => RecordsError::Codec(error),
    })
}

/// What records are to be compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The codec.
    pub(crate) codec: Compression,
    /// How hard it tries, by Kafka's numbers for that codec (KIP-390); `None` for the codec's
    /// default.
    pub(crate) level: Option<i32>,
}

/// The same records in another codec, if the batch then has at most `most` bytes.
pub(crate) fn recompress(batch: &[u8], target: Target, most: usize) -> Result<VerifiedBatch, RecordsError> {
    let codec = target.codec;
    let header = BatchHeader::parse(batch)?;
    // What is not compressed again has to fit as it is.
    let opened_most =
        if codec == Compression::None { most.min(MAX_PAYLOAD_BYTES) } else { MAX_PAYLOAD_BYTES };
    let payload = payload(&header, batch, opened_most)?;
    let mut out = BytesMut::with_capacity(BATCH_HEADER_BYTES + payload.len() / 2);
    out.put_slice(&batch[..BATCH_HEADER_BYTES]);
    let mut out = compress(target, &payload, out)?;
    if out.len() > most {
        return Err(RecordsError::TooLarge(most));
    }
    out[ATTRIBUTES_LOW_AT] = (out[ATTRIBUTES_LOW_AT] & !CODEC_MASK) | codec_bits(codec);
    let length = i32::try_from(out.len() - 12).map_err(|_| RecordsError::TooLarge(MAX_PAYLOAD_BYTES))?;
    out[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&out[CRC_FROM..]);
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    Ok(VerifiedBatch::new(out.freeze())?)
}

/// The records of a batch, decompressed, if these have at most `most` bytes.
fn payload(header: &BatchHeader, batch: &[u8], most: usize) -> Result<Bytes, RecordsError> {
    let stored = batch.get(BATCH_HEADER_BYTES..).ok_or(RecordsError::Malformed)?;
    decompress(header.compression()?, stored, most)
}

/// What was compressed as Kafka's clients do it, if that has at most `most` bytes.
pub(crate) fn decompress(codec: Compression, stored: &[u8], most: usize) -> Result<Bytes, RecordsError> {
    let mut out = Vec::new();
    open(codec, stored, most)?.take(most as u64 + 1).read_to_end(&mut out)?;
    if out.len() > most { Err(RecordsError::TooLarge(most)) } else { Ok(out.into()) }
}

/// A reader of what was compressed. Snappy has no streams: of it, at most `most` bytes are
/// decompressed at once.
pub(crate) fn open(
    codec: Compression,
    stored: &[u8],
    most: usize,
) -> Result<Box<dyn Read + '_>, RecordsError> {
    Ok(match codec {
        Compression::None => Box::new(stored),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stored)),
        Compression::Lz4 => Box::new(lz4::Decoder::new(stored)?),
        Compression::Zstd => Box::new(zstd::Decoder::new(stored)?),
        Compression::Snappy => Box::new(io::Cursor::new(unsnappy(stored, most)?)),
    })
}

/// Snappy, in xerial's framing or bare, as Kafka's clients write either.
fn unsnappy(stored: &[u8], most: usize) -> Result<Bytes, RecordsError> {
    let mut decoder = snap::raw::Decoder::new();
    let mut out = Vec::new();
    let mut block = |bytes: &[u8]| -> Result<(), RecordsError> {
        let length = snap::raw::decompress_len(bytes).map_err(io::Error::other)?;
        if out.len() + length > most {
            return Err(RecordsError::TooLarge(most));
        }
        out.extend_from_slice(&decoder.decompress_vec(bytes).map_err(io::Error::other)?);
        Ok(())
    };
    if !stored.starts_with(XERIAL_MAGIC) {
        block(stored)?;
        return Ok(out.into());
    }
    let mut rest = stored.get(XERIAL_HEADER_BYTES..).ok_or(RecordsError::Malformed)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or(RecordsError::Malformed)?;
        let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| RecordsError::Malformed)?;
        let (bytes, after) = after.split_at_checked(length).ok_or(RecordsError::Malformed)?;
        block(bytes)?;
        rest = after;
    }
    Ok(out.into())
}

/// Adds what `payload` is when it is compressed as Kafka's clients do it.
pub(crate) fn compress(target: Target, payload: &[u8], out: BytesMut) -> Result<BytesMut, RecordsError> {
    let mut out = out.writer();
    match target.codec {
        Compression::None => out.write_all(payload)?,
        Compression::Gzip => {
            let level = target.level.and_then(|level| u32::try_from(level).ok());
            let level = level.map_or_else(flate2::Compression::default, flate2::Compression::new);
            let mut encoder = flate2::write::GzEncoder::new(&mut out, level);
            encoder.write_all(payload)?;
            encoder.finish()?;
        }
        Compression::Lz4 => {
            let builder = &mut lz4::EncoderBuilder::new();
            builder.block_mode(lz4::BlockMode::Independent);
            // As in Kafka, any level but the default means the slow compressor; lz4 has it from 3
            // on.
            if let Some(level) = target.level.and_then(|level| u32::try_from(level).ok()) {
                builder.level(level.max(3));
            }
            let mut encoder = builder.build(&mut out)?;
            encoder.write_all(payload)?;
            encoder.finish().1?;
        }
        Compression::Zstd => zstd::stream::copy_encode(payload, &mut out, target.level.unwrap_or(0))?,
        Compression::Snappy => {
            out.write_all(b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")?;
            for block in payload.chunks(XERIAL_BLOCK_BYTES) {
                let packed = snap::raw::Encoder::new().compress_vec(block).map_err(io::Error::other)?;
                let length =
                    i32::try_from(packed.len()).map_err(|_| RecordsError::TooLarge(MAX_PAYLOAD_BYTES))?;
                out.write_all(&length.to_be_bytes())?;
                out.write_all(&packed)?;
            }
        }
    }
    Ok(out.into_inner())
}

fn codec_bits(codec: Compression) -> u8 {
    match codec {
        Compression::None => 0,
        Compression::Gzip => 1,
        Compression::Snappy => 2,
        Compression::Lz4 => 3,
        Compression::Zstd => 4,
    }
}

/// A zigzag varint of up to 64 bits.
fn varint(reader: &mut impl Read) -> Result<i64, RecordsError> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0; 1];
        read_all(reader, &mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    Err(RecordsError::Malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use kafka_protocol::indexmap::IndexMap;
    use kafka_protocol::records::{
        Compression as Codec, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions,
        TimestampType,
    };

    use strandline_storage::format::batch::crc32c;

    use super::*;

    /// A batch as a client writes it: record `i` has timestamp `base + i`.
    pub(crate) fn batch(codec: Codec, base: i64, count: i32) -> Bytes {
        let records: Vec<Record> = (0..count)
            .map(|i| Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: TimestampType::Creation,
                offset: i64::from(i),
                sequence: i,
                timestamp: base + i64::from(i),
                key: None,
                value: Some(Bytes::from(vec![b'v'; 100])),
                headers: IndexMap::default(),
            })
            .collect();
        let mut out = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: codec };
        RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
        out.freeze()
    }

    /// The same in a transaction of this producer: its id, its epoch, and the batch's first
    /// sequence number.
    pub(crate) fn in_transaction(batch: &Bytes, producer: (i64, i16, i32)) -> Bytes {
        let mut bytes = batch.to_vec();
        bytes[22] |= 0x10;
        bytes[43..51].copy_from_slice(&producer.0.to_be_bytes());
        bytes[51..53].copy_from_slice(&producer.1.to_be_bytes());
        bytes[53..57].copy_from_slice(&producer.2.to_be_bytes());
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes.into()
    }

    const CODECS: [(Codec, Compression); 5] = [
        (Codec::None, Compression::None),
        (Codec::Gzip, Compression::Gzip),
        (Codec::Snappy, Compression::Snappy),
        (Codec::Lz4, Compression::Lz4),
        (Codec::Zstd, Compression::Zstd),
    ];

    fn times(header: &BatchHeader, batch: &[u8]) -> Result<Vec<RecordTime>, RecordsError> {
        let mut times = Vec::new();
        find_time(header, batch, |time| {
            times.push(time);
            false
        })?;
        Ok(times)
    }

    #[test]
    fn what_lies_behind_the_record_that_is_looked_for_is_not_opened() {
        let whole = batch(Codec::None, 1000, 50);
        let header = BatchHeader::parse(&whole).unwrap();
        let cut = &whole[..whole.len() - 1];
        let first = find_time(&header, cut, |_| true).unwrap();
        assert_eq!(first, Some(RecordTime { offset_delta: 0, timestamp_ms: 1000 }));
        assert!(matches!(find_time(&header, cut, |_| false), Err(RecordsError::Malformed)));
    }

    #[test]
    fn a_record_that_is_larger_than_a_batch_may_be_is_refused() {
        // A length of 1 GiB, attributes, a time, an offset, and then nothing but zeros.
        let mut lie = vec![0x80, 0x80, 0x80, 0x80, 0x08, 0, 0, 0];
        lie.resize(MAX_PAYLOAD_BYTES + 1, 0);
        let mut bomb = BytesMut::from(&batch(Codec::Zstd, 0, 1)[..BATCH_HEADER_BYTES]);
        bomb = compress(Target { codec: Compression::Zstd, level: None }, &lie, bomb).unwrap();
        let header = BatchHeader::parse(&batch(Codec::Zstd, 0, 1)).unwrap();
        assert!(matches!(find_time(&header, &bomb, |_| true), Err(RecordsError::TooLarge(_))));
    }

    #[test]
    fn times_are_read_from_every_codec() {
        for (codec, _) in CODECS {
            let batch = batch(codec, 1000, 50);
            let header = BatchHeader::parse(&batch).unwrap();
            let times = times(&header, &batch).unwrap();
            assert_eq!(times.len(), 50, "{codec:?}");
            assert_eq!(times[7], RecordTime { offset_delta: 7, timestamp_ms: 1007 });
            let found = find_time(&header, &batch, |t| t.timestamp_ms >= 1007).unwrap();
            assert_eq!(found, Some(times[7]), "{codec:?}");
        }
    }

    #[test]
    fn every_codec_becomes_every_other_one() {
        for (from, _) in CODECS {
            for (_, to) in CODECS {
                let before = batch(from, 5, 20);
                let after = recompress(&before, Target { codec: to, level: None }, 1 << 20).unwrap();
                let header = strandline_storage::format::batch::verify(after.bytes()).unwrap();
                assert_eq!(header.compression().unwrap(), to);
                let decoded = RecordBatchDecoder::decode(&mut after.bytes().clone()).unwrap();
                assert_eq!(decoded.records, RecordBatchDecoder::decode(&mut before.clone()).unwrap().records);
            }
        }
    }

    #[test]
    fn levels_change_how_hard_a_codec_tries() {
        let words: Vec<u8> = (0..60_000_u32).flat_map(|i| (i * i % 977).to_be_bytes()).collect();
        for (codec, low, high) in
            [(Compression::Gzip, 1, 9), (Compression::Lz4, 1, 12), (Compression::Zstd, -5, 12)]
        {
            let size = |level| {
                let target = Target { codec, level: Some(level) };
                let packed = compress(target, &words, BytesMut::new()).unwrap();
                assert_eq!(decompress(codec, &packed, words.len()).unwrap(), words, "{codec:?} {level}");
                packed.len()
            };
            assert!(size(high) < size(low), "{codec:?}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let zeros = vec![0; MAX_PAYLOAD_BYTES + 1];
        for (codec, ours) in &CODECS[1..] {
            let mut bomb = BytesMut::from(&batch(*codec, 0, 1)[..BATCH_HEADER_BYTES]);
            bomb = compress(Target { codec: *ours, level: None }, &zeros, bomb).unwrap();
            let header = BatchHeader::parse(&batch(*codec, 0, 1)).unwrap();
            assert!(
                matches!(payload(&header, &bomb, MAX_PAYLOAD_BYTES), Err(RecordsError::TooLarge(_))),
                "{codec:?}"
            );
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        for (codec, _) in CODECS {
            let whole = batch(codec, 0, 10);
            let header = BatchHeader::parse(&whole).unwrap();
            for i in BATCH_HEADER_BYTES..whole.len() {
                let mut damaged = whole.to_vec();
                damaged[i] ^= 0x55;
                let _ = times(&header, &damaged);
                let _ = times(&header, &whole[..i]);
            }
        }
    }
}
