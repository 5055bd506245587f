//! What is kept of a broker's metrics: a fixed table of columns, each a sum over some series of one
//! family, and of histograms their buckets. The text may have thousands of series; a sample has
//! about two hundred numbers.

use std::collections::BTreeMap;

/// Number of a column in a sample.
pub type Column = u32;

/// How a column moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    /// Upwards, until its process starts anew.
    Counter,
    /// Up and down.
    Gauge,
}

/// A number that is kept.
#[derive(Clone, Copy, Debug)]
pub struct Scalar {
    /// What it is called here.
    pub name: &'static str,
    /// The family that it comes from.
    pub family: &'static str,
    /// Only series with one of these values of this label; all if there is none.
    pub only: Option<(&'static str, &'static [&'static str])>,
    /// How it moves.
    pub moves: Moves,
}

/// A histogram whose buckets are kept.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// What it is called here.
    pub name: &'static str,
    /// The family that it comes from.
    pub family: &'static str,
    /// Only series with one of these values of this label; all if there is none.
    pub only: Option<(&'static str, &'static [&'static str])>,
}

const fn counter(name: &'static str, family: &'static str) -> Scalar {
    Scalar { name, family, only: None, moves: Moves::Counter }
}

const fn gauge(name: &'static str, family: &'static str) -> Scalar {
    Scalar { name, family, only: None, moves: Moves::Gauge }
}

const fn of(scalar: Scalar, label: &'static str, values: &'static [&'static str]) -> Scalar {
    Scalar { only: Some((label, values)), ..scalar }
}

const S3: &str = "strandline_object_store_requests_total";
const FLUSH_FAILURES: &str = "strandline_flush_failures_total";
const CACHE: &str = "strandline_cache_requests_total";
const TRANSACTIONS: &str = "strandline_transactions_total";

/// APIs that administer: their calls are counted together.
const ADMIN: &[&str] = &[
    "CreateTopics",
    "DeleteTopics",
    "CreatePartitions",
    "DescribeConfigs",
    "AlterConfigs",
    "IncrementalAlterConfigs",
    "DeleteGroups",
    "OffsetDelete",
    "DeleteRecords",
    "DescribeCluster",
    "DescribeLogDirs",
    "DescribeProducers",
    "DescribeTopicPartitions",
    "ListConfigResources",
    "UpdateFeatures",
];

/// Every number that is kept.
pub const SCALARS: &[Scalar] = &[
    counter("produced_records", "strandline_produced_records_total"),
    counter("produced_bytes", "strandline_produced_bytes_total"),
    counter("fetched_records", "strandline_fetched_records_total"),
    counter("fetched_bytes", "strandline_fetched_bytes_total"),
    counter("requests", "strandline_request_seconds_count"),
    of(counter("admin_requests", "strandline_request_seconds_count"), "api", ADMIN),
    of(counter("s3_put_requests", S3), "operation", &["put"]),
    of(counter("s3_get_requests", S3), "operation", &["get"]),
    of(counter("s3_list_requests", S3), "operation", &["list"]),
    of(counter("s3_delete_requests", S3), "operation", &["delete"]),
    counter("s3_requests", S3),
    of(counter("s3_errors", S3), "outcome", &["throttled", "denied", "unavailable", "corrupt", "invalid"]),
    of(counter("s3_throttled", S3), "outcome", &["throttled"]),
    of(counter("s3_put_bytes", "strandline_object_store_bytes_total"), "operation", &["put"]),
    of(counter("s3_get_bytes", "strandline_object_store_bytes_total"), "operation", &["get"]),
    of(counter("cache_hits", CACHE), "outcome", &["hit", "joined"]),
    of(counter("cache_misses", CACHE), "outcome", &["miss"]),
    counter("flushes", "strandline_flushes_total"),
    counter("flush_failures", "strandline_flush_failures_total"),
    counter("read_failures", "strandline_read_failures_total"),
    counter("group_rebalances", "strandline_group_rebalances_total"),
    counter("group_members_expired", "strandline_group_members_expired_total"),
    counter("offset_commits", "strandline_group_offset_commits_total"),
    counter("connections_refused", "strandline_connections_refused_total"),
    counter("state_rebuilds", "strandline_state_rebuilds_total"),
    counter("watch_restarts", "strandline_watch_restarts_total"),
    gauge("connections", "strandline_connections"),
    gauge("buffer_bytes", "strandline_buffer_bytes"),
    gauge("cache_bytes", "strandline_cache_bytes"),
    gauge("s3_healthy", "strandline_object_store_healthy"),
    gauge("registered", "strandline_registered"),
    gauge("watch_lag_revisions", "strandline_watch_lag_revisions"),
    gauge("state_revision", "strandline_state_revision"),
    gauge("state_objects", "strandline_state_objects"),
    gauge("state_dead_objects", "strandline_state_dead_objects"),
    of(counter("s3_denied", S3), "outcome", &["denied"]),
    of(counter("put_failures", FLUSH_FAILURES), "step", &["put"]),
    of(counter("commit_failures", FLUSH_FAILURES), "step", &["commit"]),
    gauge("state_slowed", "strandline_state_slowed"),
    gauge("etcd_pause_s", "strandline_produce_pause_seconds"),
    of(counter("transactions_committed", TRANSACTIONS), "outcome", &["committed"]),
    of(counter("transactions_aborted", TRANSACTIONS), "outcome", &["aborted"]),
    counter("transactions_timed_out", "strandline_transactions_timed_out_total"),
];

/// Every histogram that is kept, in seconds.
pub const HISTOGRAMS: &[Buckets] = &[
    Buckets {
        name: "produce_latency",
        family: "strandline_request_seconds",
        only: Some(("api", &["Produce"])),
    },
    Buckets { name: "fetch_latency", family: "strandline_request_seconds", only: Some(("api", &["Fetch"])) },
    Buckets { name: "admin_latency", family: "strandline_request_seconds", only: Some(("api", ADMIN)) },
    Buckets {
        name: "s3_put_latency",
        family: "strandline_object_store_request_seconds",
        only: Some(("operation", &["put"])),
    },
    Buckets {
        name: "s3_get_latency",
        family: "strandline_object_store_request_seconds",
        only: Some(("operation", &["get"])),
    },
    Buckets { name: "commit_latency", family: "strandline_commit_seconds", only: None },
    Buckets { name: "flush_put_latency", family: "strandline_flush_put_seconds", only: None },
];

/// Buckets that a histogram may have; more are left out.
const MAX_BUCKETS: u32 = 60;
const FIRST_BUCKET: Column = 1_000;

/// The total lag of a group, in a source of its own; it comes from etcd.
pub const GROUP_LAG: Column = 900;

/// The column of a number.
pub fn scalar(name: &str) -> Option<(Column, Moves)> {
    let index = SCALARS.iter().position(|s| s.name == name)?;
    Some((u32::try_from(index).ok()?, SCALARS.get(index)?.moves))
}

/// The number of a histogram in [`HISTOGRAMS`].
pub fn histogram(name: &str) -> Option<u32> {
    HISTOGRAMS.iter().position(|h| h.name == name).and_then(|i| u32::try_from(i).ok())
}

/// The column of a histogram's bucket.
pub fn bucket(histogram: u32, bucket: u32) -> Column {
    FIRST_BUCKET + histogram * (MAX_BUCKETS + 1) + bucket.min(MAX_BUCKETS)
}

/// Whether a column only grows.
pub fn moves(column: Column) -> Moves {
    if column == GROUP_LAG {
        return Moves::Gauge;
    }
    let index = usize::try_from(column).unwrap_or(usize::MAX);
    SCALARS.get(index).map_or(Moves::Counter, |s| s.moves)
}

/// What was read of a broker's metrics at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// By column.
    pub values: BTreeMap<Column, f64>,
    /// The upper bounds of each histogram's buckets, the last infinite.
    pub bounds: BTreeMap<u32, Vec<f64>>,
}

/// Reads the text format of Prometheus. Text without a single metric that is known here is an
/// error: it is no broker.
pub fn parse(text: &str) -> Result<Sample, String> {
    let mut sample = Sample::default();
    let mut buckets: BTreeMap<(u32, u64), f64> = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, labels, value)) = split(line) else {
            return Err("a line is not in the text format of Prometheus".to_owned());
        };
        if !value.is_finite() {
            continue;
        }
        for (index, scalar) in (0u32..).zip(SCALARS) {
            if scalar.family == name && is_of(labels, scalar.only) {
                *sample.values.entry(index).or_default() += value;
            }
        }
        let Some(family) = name.strip_suffix("_bucket") else { continue };
        let Some(bound) = label(labels, "le")
            .and_then(|le| if le == "+Inf" { Some(f64::INFINITY) } else { le.parse().ok() })
        else {
            continue;
        };
        for (index, histogram) in (0u32..).zip(HISTOGRAMS) {
            if histogram.family == family && is_of(labels, histogram.only) {
                // Positive numbers sort by their bits as they do by value.
                *buckets.entry((index, bound.to_bits())).or_default() += value;
            }
        }
    }
    if sample.values.is_empty() {
        return Err("there is no metric of a Strandline broker in it".to_owned());
    }
    for ((histogram, bits), count) in buckets {
        let bounds = sample.bounds.entry(histogram).or_default();
        let Some(index) = u32::try_from(bounds.len()).ok().filter(|&n| n < MAX_BUCKETS) else { continue };
        bounds.push(f64::from_bits(bits));
        sample.values.insert(bucket(histogram, index), count);
    }
    Ok(sample)
}

fn split(line: &str) -> Option<(&str, &str, f64)> {
    let (name, labels, rest) = if let Some(open) = line.find('{') {
        let close = line.rfind('}').filter(|close| *close > open)?;
        (line.get(..open)?, line.get(open + 1..close)?, line.get(close + 1..)?)
    } else {
        let (name, rest) = line.split_once(' ')?;
        (name, "", rest)
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(is_name) {
        return None;
    }
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some((name, labels, value))
}

fn is_of(labels: &str, only: Option<(&str, &[&str])>) -> bool {
    only.is_none_or(|(name, values)| label(labels, name).is_some_and(|v| values.contains(&v)))
}

/// The value of a label. Those that matter here have no escaped characters.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    while let Some((key, behind)) = rest.split_once("=\"") {
        let mut end = 0;
        let bytes = behind.as_bytes();
        while *bytes.get(end)? != b'"' {
            end += if *bytes.get(end)? == b'\\' { 2 } else { 1 };
        }
        if key.trim_start_matches(',').trim() == name {
            return behind.get(..end);
        }
        rest = behind.get(end + 1..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP strandline_produced_records_total Records
strandline_produced_records_total{topic="a\"}b"} 5
strandline_produced_records_total{topic="b"} 7
strandline_request_seconds_bucket{api="Produce",le="0.1"} 3
strandline_request_seconds_bucket{api="Produce",le="+Inf"} 4
strandline_request_seconds_bucket{api="Fetch",le="0.1"} 9
strandline_request_seconds_count{api="Produce"} 4
strandline_request_seconds_count{api="CreateTopics"} 2
strandline_object_store_requests_total{operation="put",outcome="ok"} 10
strandline_object_store_requests_total{operation="put",outcome="throttled"} 1
strandline_connections 3
something_else{x="y"} NaN
"#;

    #[test]
    fn a_brokers_metrics_become_columns() {
        let sample = parse(TEXT).unwrap();
        let value = |name: &str| sample.values.get(&scalar(name).unwrap().0).copied();
        assert_eq!(value("produced_records"), Some(12.0));
        assert_eq!(value("requests"), Some(6.0));
        assert_eq!(value("admin_requests"), Some(2.0));
        assert_eq!(
            (value("s3_put_requests"), value("s3_throttled"), value("s3_errors")),
            (Some(11.0), Some(1.0), Some(1.0))
        );
        assert_eq!(value("s3_get_requests"), None, "what was not said is unknown");
        assert_eq!(value("connections"), Some(3.0));
        let produce = histogram("produce_latency").unwrap();
        assert_eq!(sample.bounds[&produce], [0.1, f64::INFINITY]);
        assert_eq!(sample.values.get(&bucket(produce, 1)), Some(&4.0));
    }

    #[test]
    fn garbage_is_an_error() {
        for bad in [
            "",
            "<html>no</html>",
            "go_goroutines 7",
            "strandline_connections seven",
            "strandline_connections{x 1",
            "{} 1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_do_not_meet() {
        let last = u32::try_from(HISTOGRAMS.len()).unwrap() - 1;
        assert!(SCALARS.len() < usize::try_from(GROUP_LAG).unwrap());
        assert_ne!(bucket(0, 999), bucket(1, 0));
        assert!(bucket(last, 0) > bucket(0, 0));
        assert_eq!(moves(bucket(0, 0)), Moves::Counter);
    }
}
