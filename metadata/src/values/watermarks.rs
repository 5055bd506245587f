//! The value of `watermarks/…`: how far each partition of a topic is, for those who read etcd and
//! not the log.

use serde::{Deserialize, Serialize};

use super::Value;

/// The value of `watermarks/<topic id>`, and of `watermarks/<topic id>/<n>` for the partitions from
/// n times [`WATERMARKS_PER_KEY`](crate::limits::WATERMARKS_PER_KEY) on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatermarksValue {
    /// Format of this value.
    pub format: u32,
    /// The revision that the state was as of. It never goes back.
    pub revision: i64,
    /// By partition, from the first of the key on.
    pub partitions: Vec<Watermarks>,
}

impl Value for WatermarksValue {
    const WHAT: &'static str = "a topic's watermarks";
}

/// How far a partition is. In JSON an array of five numbers, since there may be thousands of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i64, u64, i64)", into = "(i64, i64, i64, u64, i64)")]
pub struct Watermarks {
    /// The first offset that can be read.
    pub log_start: i64,
    /// The offset that the next record gets.
    pub end: i64,
    /// The first offset that a read_committed consumer cannot read yet.
    pub last_stable: i64,
    /// Bytes of the batches between log start and end.
    pub bytes: u64,
    /// The largest timestamp of a record, ms since 1970; −1 if there is none.
    pub last_timestamp_ms: i64,
}

impl From<(i64, i64, i64, u64, i64)> for Watermarks {
    fn from((log_start, end, last_stable, bytes, last_timestamp_ms): (i64, i64, i64, u64, i64)) -> Self {
        Self { log_start, end, last_stable, bytes, last_timestamp_ms }
    }
}

impl From<Watermarks> for (i64, i64, i64, u64, i64) {
    fn from(marks: Watermarks) -> Self {
        (marks.log_start, marks.end, marks.last_stable, marks.bytes, marks.last_timestamp_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_read_as_golden_json() {
        let marks = Watermarks { log_start: 1, end: 5, last_stable: 4, bytes: 99, last_timestamp_ms: -1 };
        let value = WatermarksValue { format: 1, revision: 17, partitions: vec![marks, marks] };
        let golden = r#"{"format":1,"revision":17,"partitions":[[1,5,4,99,-1],[1,5,4,99,-1]]}"#;
        assert_eq!(String::from_utf8(value.encode()).unwrap(), golden);
        assert_eq!(WatermarksValue::decode(golden.as_bytes()).unwrap(), value);
    }
}
