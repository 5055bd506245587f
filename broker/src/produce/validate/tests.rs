//! What batches say about themselves, and what becomes of that. Answers are compared with Kafka's
//! by `tests/clients/reference/compare.py`.

use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression as Codec, Record, RecordBatchEncoder, RecordEncodeOptions,
    TimestampType as KafkaTimestampType,
};
use strandline_storage::format::batch::crc32c;

use super::*;

const NOW_MS: i64 = 1_700_000_000_000;
const HOUR_MS: i64 = 3_600_000;
const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
/// Where fields of the header are.
const ATTRIBUTES_LOW_AT: usize = 22;
const MAX_TIMESTAMP_AT: usize = 35;

const RULES: TopicRules = TopicRules {
    max_message_bytes: 1 << 20,
    timestamp_type: TimestampType::CreateTime,
    before_max_ms: i64::MAX,
    after_max_ms: HOUR_MS,
    limits_times: false,
    compacted: false,
    compression: None,
};

/// A batch of records with these timestamps; those of `keyless` have no key.
fn batch_of(codec: Codec, times: &[i64], keyless: &[usize]) -> Bytes {
    let records: Vec<Record> = times
        .iter()
        .enumerate()
        .map(|(i, &timestamp)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: KafkaTimestampType::Creation,
            offset: i64::try_from(i).unwrap(),
            sequence: i32::try_from(i).unwrap(),
            timestamp,
            key: (!keyless.contains(&i)).then(|| Bytes::from_static(b"key")),
            value: Some(Bytes::from(vec![b'v'; 50])),
            headers: IndexMap::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: codec };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

/// The batch with these bytes at this place, and the right CRC again.
fn with(batch: &[u8], at: usize, bytes: &[u8]) -> Bytes {
    let mut changed = batch.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c(&changed[21..]);
    changed[17..21].copy_from_slice(&crc.to_be_bytes());
    changed.into()
}

fn claiming(batch: &[u8], max_timestamp: i64) -> Bytes {
    with(batch, MAX_TIMESTAMP_AT, &max_timestamp.to_be_bytes())
}

fn check(batch: &Bytes, rules: &TopicRules) -> Result<Accepted, Invalid> {
    validate(Uuid::nil(), 0, 9, Some(batch), rules, true, NOW_MS)
}

/// The largest timestamp that the state and consumers get to see.
fn largest(batch: &Bytes, rules: &TopicRules) -> (i64, i64) {
    let entry = check(batch, rules).unwrap().entry;
    let header = strandline_storage::format::batch::verify(entry.batch.bytes()).unwrap();
    (entry.max_timestamp_ms, header.max_timestamp)
}

fn refused(batch: &Bytes, rules: &TopicRules) -> (ResponseError, Vec<i32>) {
    let invalid = check(batch, rules).unwrap_err();
    (invalid.code, invalid.records.iter().map(|r| r.index).collect())
}

#[test]
fn the_largest_timestamp_is_that_of_the_records() {
    let times = [NOW_MS - 3000, NOW_MS - 1000, NOW_MS - 2000];
    for codec in CODECS {
        let right = batch_of(codec, &times, &[]);
        for claimed in [-1, NOW_MS - 3000, NOW_MS - 9000, i64::MIN, NOW_MS - 1000] {
            let both = (NOW_MS - 1000, NOW_MS - 1000);
            assert_eq!(largest(&claiming(&right, claimed), &RULES), both, "{codec:?} {claimed}");
        }
        let one = claiming(&batch_of(codec, &[NOW_MS - 5], &[]), -1);
        assert_eq!(largest(&one, &RULES), (NOW_MS - 5, NOW_MS - 5), "{codec:?}");
    }
    // Not compressed, it costs nothing to see a lie upwards as well.
    let high = claiming(&batch_of(Codec::None, &times, &[]), NOW_MS + 9 * HOUR_MS);
    assert_eq!(largest(&high, &RULES), (NOW_MS - 1000, NOW_MS - 1000));
}

#[test]
fn a_right_header_is_left_as_it_is_and_a_compressed_payload_is_not_opened() {
    let times = [NOW_MS - 3000, NOW_MS - 1000];
    for codec in CODECS {
        let right = batch_of(codec, &times, &[]);
        let entry = check(&right, &RULES).unwrap().entry;
        assert_eq!(entry.batch.bytes(), &right, "{codec:?}");
    }
    // What cannot be decompressed is only seen by who tries.
    let mut garbled = batch_of(Codec::Zstd, &times, &[]).to_vec();
    garbled[61] ^= 0xff;
    let garbled = with(&garbled, 0, &[]);
    check(&garbled, &RULES).unwrap();
    assert_eq!(refused(&claiming(&garbled, -1), &RULES).0, ResponseError::InvalidRecord);
}

#[test]
fn without_time_for_doubts_only_a_header_that_cannot_be_right_is_overruled() {
    let times = [NOW_MS - 3000, NOW_MS - 1000];
    let at = |batch: &Bytes, opens| {
        let accepted = validate(Uuid::nil(), 0, 9, Some(batch), &RULES, opens, NOW_MS).unwrap();
        accepted.entry.max_timestamp_ms
    };
    let is_doubted = |batch: &Bytes| Outlook::of(Some(batch), &RULES, NOW_MS).unwrap().is_doubted();
    for codec in &CODECS[1..] {
        let copied = claiming(&batch_of(*codec, &times, &[]), NOW_MS - 3000);
        assert!(is_doubted(&copied));
        assert_eq!((at(&copied, true), at(&copied, false)), (NOW_MS - 1000, NOW_MS - 3000), "{codec:?}");
        let unset = claiming(&copied, -1);
        assert!(!is_doubted(&unset));
        assert_eq!(at(&unset, false), NOW_MS - 1000, "{codec:?}");
    }
    let plain = claiming(&batch_of(Codec::None, &times, &[]), NOW_MS - 3000);
    assert_eq!(at(&plain, false), NOW_MS - 1000);
}

#[test]
fn records_far_ahead_are_named_whatever_the_header_says() {
    let times = [NOW_MS, NOW_MS + 2 * HOUR_MS, NOW_MS, NOW_MS + 3 * HOUR_MS];
    for codec in CODECS {
        let batch = batch_of(codec, &times, &[]);
        for claimed in [-1, NOW_MS, NOW_MS + 3 * HOUR_MS] {
            let expected = (ResponseError::InvalidTimestamp, vec![1, 3]);
            assert_eq!(refused(&claiming(&batch, claimed), &RULES), expected, "{codec:?} {claimed}");
        }
        // A topic whose limits somebody has set does not believe a plausible header either.
        let plausible = claiming(&batch, NOW_MS + 1);
        let strict = TopicRules { limits_times: true, ..RULES };
        assert_eq!(refused(&plausible, &strict), (ResponseError::InvalidTimestamp, vec![1, 3]), "{codec:?}");
        let stamps = TopicRules { timestamp_type: TimestampType::LogAppendTime, ..RULES };
        assert_eq!(largest(&batch, &stamps), (NOW_MS, NOW_MS), "the broker's time counts");
    }
    let past = TopicRules { before_max_ms: 10, ..RULES };
    let old = batch_of(Codec::Lz4, &[NOW_MS - 11, NOW_MS - 10], &[]);
    assert_eq!(refused(&old, &past), (ResponseError::InvalidTimestamp, vec![0]));
}

#[test]
fn a_compacted_topic_needs_keys() {
    let compacted = TopicRules { compacted: true, ..RULES };
    for codec in CODECS {
        let batch = batch_of(codec, &[NOW_MS; 4], &[1, 3]);
        assert_eq!(refused(&batch, &compacted), (ResponseError::InvalidRecord, vec![1, 3]), "{codec:?}");
        check(&batch, &RULES).unwrap();
        check(&batch_of(codec, &[NOW_MS; 4], &[]), &compacted).unwrap();
        let both = batch_of(codec, &[NOW_MS, NOW_MS + 9 * HOUR_MS], &[0]);
        assert_eq!(refused(&both, &compacted), (ResponseError::InvalidTimestamp, vec![0, 1]), "{codec:?}");
    }
}

#[test]
fn the_time_of_the_append_is_for_the_broker_to_say() {
    let stamped = with(&batch_of(Codec::Gzip, &[NOW_MS - 9, NOW_MS - 7], &[]), ATTRIBUTES_LOW_AT, &[0x09]);
    let entry = check(&stamped, &RULES).unwrap().entry;
    let header = strandline_storage::format::batch::verify(entry.batch.bytes()).unwrap();
    assert!(!header.has_log_append_time());
    assert_eq!(header.max_timestamp, NOW_MS - 7);
    let stamps = TopicRules { timestamp_type: TimestampType::LogAppendTime, ..RULES };
    assert_eq!(refused(&stamped, &stamps), (ResponseError::InvalidTimestamp, vec![0, 1]));
}

#[test]
fn only_so_many_records_are_named() {
    let times = vec![NOW_MS + 2 * HOUR_MS; RECORD_ERRORS_PER_PARTITION + 50];
    let (code, named) = refused(&batch_of(Codec::None, &times, &[]), &RULES);
    assert_eq!((code, named.len()), (ResponseError::InvalidTimestamp, RECORD_ERRORS_PER_PARTITION));
}

#[test]
fn versions_before_seven_know_no_zstd() {
    let batch = batch_of(Codec::Zstd, &[NOW_MS], &[]);
    let at =
        |version| validate(Uuid::nil(), 0, version, Some(&batch), &RULES, true, NOW_MS).map_err(|e| e.code);
    assert_eq!(at(6).unwrap_err(), ResponseError::UnsupportedCompressionType);
    assert!(at(7).is_ok());
}

#[test]
fn a_batch_that_becomes_too_large_in_its_topic_s_codec_is_refused() {
    let batch = batch_of(Codec::Gzip, &[NOW_MS; 200], &[]);
    let plain = batch_of(Codec::None, &[NOW_MS; 200], &[]).len();
    let target = Some(Target { codec: Compression::None, level: None });
    let stored = |max_message_bytes| {
        let rules = TopicRules { max_message_bytes, compression: target, ..RULES };
        validate(Uuid::nil(), 0, 9, Some(&batch), &rules, true, NOW_MS).map_err(|e| e.code)
    };
    assert!(batch.len() < plain);
    assert_eq!(stored(plain).unwrap().entry.batch.len(), plain);
    assert_eq!(stored(plain - 1).unwrap_err(), ResponseError::MessageTooLarge);
}

fn is_heavy(records: Option<&Bytes>, rules: &TopicRules, opens_doubted: bool) -> bool {
    Outlook::of(records, rules, NOW_MS).is_some_and(|outlook| outlook.is_heavy(opens_doubted))
}

#[test]
fn batches_that_have_to_be_opened_are_opened_apart() {
    let value = vec![0_u8; 4 * OPENED_APART_BYTES];
    let mut payload = BytesMut::from(&batch_of(Codec::None, &[NOW_MS], &[])[..61]);
    payload.extend_from_slice(&value);
    let large = with(&payload, 8, &i32::try_from(payload.len() - 12).unwrap().to_be_bytes());
    let gzip = with(&large, ATTRIBUTES_LOW_AT, &[1]);
    assert!(!is_heavy(Some(&large), &RULES, true), "nothing is opened");
    assert!(is_heavy(Some(&gzip), &RULES, true), "its largest timestamp is that of its first record");
    assert!(!is_heavy(Some(&gzip), &RULES, false));
    assert!(is_heavy(Some(&claiming(&gzip, -1)), &RULES, false));
    assert!(!is_heavy(Some(&claiming(&gzip, NOW_MS + 1)), &RULES, true));
    let target = Some(Target { codec: Compression::Zstd, level: None });
    assert!(is_heavy(Some(&large), &TopicRules { compression: target, ..RULES }, false));
    assert!(!is_heavy(None, &RULES, true));
    // A few kilobytes may inflate to anything; what is as long as it says is not opened apart.
    let small = batch_of(Codec::Gzip, &[NOW_MS], &[]);
    assert!(is_heavy(Some(&claiming(&small, -1)), &RULES, false));
    assert!(is_heavy(Some(&small), &TopicRules { compression: target, ..RULES }, false));
    let plain = batch_of(Codec::None, &[NOW_MS], &[]);
    assert!(!is_heavy(Some(&plain), &TopicRules { compression: target, ..RULES }, false));
}

#[test]
fn damaged_records_are_an_error_and_never_a_panic() {
    let compacted = TopicRules { compacted: true, ..RULES };
    for codec in CODECS {
        let whole = claiming(&batch_of(codec, &[NOW_MS, NOW_MS + 5, NOW_MS], &[]), -1);
        for at in 61..whole.len() {
            let damaged = with(&whole, at, &[whole[at] ^ 0x55]);
            let _ = check(&damaged, &compacted);
            let mut cut = whole[..at].to_vec();
            cut[8..12].copy_from_slice(&i32::try_from(at - 12).unwrap().to_be_bytes());
            assert!(check(&with(&cut, 0, &[]), &compacted).is_err() || codec != Codec::None, "{at}");
        }
    }
}
