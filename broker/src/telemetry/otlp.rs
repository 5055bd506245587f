//! What a push carries: OpenTelemetry's `MetricsData`, as protobuf.
//!
//! Only the fields that are needed are described; the others are passed over. The outer messages
//! are walked in place and one metric is decoded at a time, so that what is set aside stays in
//! proportion to one metric (invariant 9): empty messages take two bytes here, and a hundred once
//! decoded.

use crate::limits::{PUSHED_ATTRIBUTES, PUSHED_METRIC_BYTES, PUSHED_TEXT_CHARS};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

/// `resource_metrics`, `scope_metrics`, `metrics`: where metrics are, from the outside in.
const PATH: [u32; 3] = [1, 2, 2];

const DELTA: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Gauge>,
    #[prost(message, optional, tag = "7")]
    sum: Option<Sum>,
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<NumberDataPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct Sum {
    #[prost(message, repeated, tag = "1")]
    data_points: Vec<NumberDataPoint>,
    #[prost(int32, tag = "2")]
    aggregation_temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct NumberDataPoint {
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
    #[prost(oneof = "Number", tags = "4, 6")]
    value: Option<Number>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum Number {
    #[prost(double, tag = "4")]
    AsDouble(f64),
    #[prost(sfixed64, tag = "6")]
    AsInt(i64),
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Plain", tags = "1, 2, 3, 4")]
    value: Option<Plain>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Plain {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It only grows.
    Total,
    /// It goes up and down.
    Level,
}

/// A number that a client measured. Its texts are cut, and fit to be shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) metric: String,
    /// `name=value`, in order, separated by commas.
    pub(super) attributes: String,
    pub(super) kind: Kind,
    /// Whether it is what came since the last push, rather than the whole.
    pub(super) is_delta: bool,
    pub(super) value: f64,
}

/// Why a payload cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum PayloadError {
    #[error("not OTLP metrics data: {0}")]
    Garbage(#[from] DecodeError),
    #[error("the OTLP message is truncated")]
    Cut,
    #[error("a metric is larger than {PUSHED_METRIC_BYTES} bytes")]
    LargeMetric,
}

/// Calls `each` for every number of every metric that is wanted. Histograms and summaries are
/// passed over.
pub(super) fn points(
    payload: &[u8],
    wanted: impl Fn(&str) -> bool,
    mut each: impl FnMut(Point),
) -> Result<(), PayloadError> {
    let [resource, scope, metric] = PATH;
    messages(payload, resource, &mut |resource| {
        messages(resource, scope, &mut |scope| {
            messages(scope, metric, &mut |metric| {
                if metric.len() > PUSHED_METRIC_BYTES {
                    return Err(PayloadError::LargeMetric);
                }
                let metric = Metric::decode(metric)?;
                if wanted(&metric.name) {
                    numbers(metric, &mut each);
                }
                Ok(())
            })
        })
    })
}

fn messages(
    mut bytes: &[u8],
    wanted: u32,
    each: &mut dyn FnMut(&[u8]) -> Result<(), PayloadError>,
) -> Result<(), PayloadError> {
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes)?;
        if tag != wanted || kind != WireType::LengthDelimited {
            skip_field(kind, tag, &mut bytes, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut bytes)?).map_err(|_| PayloadError::Cut)?;
        let (message, after) = bytes.split_at_checked(length).ok_or(PayloadError::Cut)?;
        each(message)?;
        bytes = after;
    }
    Ok(())
}

fn numbers(metric: Metric, each: &mut impl FnMut(Point)) {
    let (points, kind, is_delta) = match (metric.sum, metric.gauge) {
        (Some(sum), _) => {
            let kind = if sum.is_monotonic { Kind::Total } else { Kind::Level };
            (sum.data_points, kind, sum.aggregation_temporality == DELTA)
        }
        (None, Some(gauge)) => (gauge.data_points, Kind::Level, false),
        (None, None) => return,
    };
    let name = plain(&metric.name);
    for point in points {
        #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
        let value = match point.value {
            Some(Number::AsDouble(value)) => value,
            Some(Number::AsInt(value)) => value as f64,
            None => continue,
        };
        // A rate before the first event is not a number; and what only grows is not negative.
        if !value.is_finite() || (kind == Kind::Total && value < 0.0) {
            continue;
        }
        each(Point { metric: name.clone(), attributes: attributes(&point), kind, is_delta, value });
    }
}

fn attributes(point: &NumberDataPoint) -> String {
    let text = |attribute: &KeyValue| {
        let value = match attribute.value.as_ref()?.value.as_ref()? {
            Plain::String(text) => plain(text),
            Plain::Bool(flag) => flag.to_string(),
            Plain::Int(number) => number.to_string(),
            Plain::Double(number) => number.to_string(),
        };
        Some(format!("{}={value}", plain(&attribute.key)))
    };
    let mut texts: Vec<String> = point.attributes.iter().filter_map(text).take(PUSHED_ATTRIBUTES).collect();
    texts.sort();
    plain(&texts.join(","))
}

/// A text of strangers, cut, and without what would not be seen on a screen.
pub(super) fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_alphanumeric() || c == ' ' || c.is_ascii_graphic() { c } else { '_' };
    text.chars().take(PUSHED_TEXT_CHARS).map(visible).collect()
}

/// Writes what clients write, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A payload with a monotonic delta sum and a gauge of these values, both of one node.
    pub(crate) fn payload(total: (&str, f64), level: (&str, f64)) -> Vec<u8> {
        let point = |value| {
            let node = AnyValue { value: Some(Plain::Int(3)) };
            let attributes = vec![KeyValue { key: "node_id".to_owned(), value: Some(node) }];
            vec![NumberDataPoint { attributes, value: Some(value) }]
        };
        let sum = Sum {
            data_points: point(Number::AsDouble(total.1)),
            aggregation_temporality: DELTA,
            is_monotonic: true,
        };
        let gauge = Gauge { data_points: point(Number::AsDouble(level.1)) };
        let metrics = [
            Metric { name: total.0.to_owned(), gauge: None, sum: Some(sum) },
            Metric { name: level.0.to_owned(), gauge: Some(gauge), sum: None },
        ];
        wrap(&metrics.map(|m| m.encode_to_vec()))
    }

    /// Puts metrics into a scope of a resource.
    pub(crate) fn wrap(metrics: &[Vec<u8>]) -> Vec<u8> {
        let message = |tag: u8, content: &[u8]| {
            let mut out = vec![tag << 3 | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut out);
            out.extend(content);
            out
        };
        let metrics: Vec<u8> = metrics.iter().flat_map(|m| message(2, m)).collect();
        message(1, &[message(1, b"\x0a\x00"), message(2, &metrics)].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(payload: &[u8]) -> Result<Vec<Point>, PayloadError> {
        let mut found = Vec::new();
        points(payload, |_| true, |p| found.push(p))?;
        Ok(found)
    }

    #[test]
    fn sums_and_gauges_are_read() {
        let payload = testing::payload(("a.total", 3.0), ("a.level", -2.5));
        let found = all(&payload).unwrap();
        let attributes = "node_id=3".to_owned();
        let total = Point {
            metric: "a.total".into(),
            attributes: attributes.clone(),
            kind: Kind::Total,
            is_delta: true,
            value: 3.0,
        };
        let level =
            Point { metric: "a.level".into(), attributes, kind: Kind::Level, is_delta: false, value: -2.5 };
        assert_eq!(found, [total, level]);
        let mut wanted = Vec::new();
        points(&payload, |name| name == "a.level", |p| wanted.push(p.metric)).unwrap();
        assert_eq!(wanted, ["a.level"]);
        assert!(all(b"").unwrap().is_empty());
        assert!(all(&testing::payload(("a", -1.0), ("b", f64::NAN))).unwrap().is_empty());
    }

    #[test]
    fn texts_are_cut_and_can_be_seen() {
        let payload = testing::payload(("me\u{202e}\n", 1.0), (&"x".repeat(100_000), 1.0));
        let names: Vec<usize> = all(&payload).unwrap().iter().map(|p| p.metric.len()).collect();
        assert_eq!(names, [4, PUSHED_TEXT_CHARS]);
        assert_eq!(plain("me\u{202e}\n \u{e4}"), "me__ \u{e4}");
        let value = |text: &str| Some(AnyValue { value: Some(Plain::String(text.to_owned())) });
        let attribute = |n: u8| KeyValue { key: format!("k{}", 9 - n), value: value("\0v") };
        let point = NumberDataPoint { attributes: (0..3).map(attribute).collect(), value: None };
        assert_eq!(attributes(&point), "k7=_v,k8=_v,k9=_v");
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let payload = testing::payload(("a.total", 3.0), ("a.level", -2.5));
        for cut in 1..payload.len() {
            assert!(all(&payload[..cut]).is_err(), "cut to {cut}");
        }
        for at in 0..payload.len() {
            let mut damaged = payload.clone();
            damaged[at] ^= 0x55;
            let _ = all(&damaged);
        }
        assert!(all(&[0xff; 40]).is_err());
        let huge = testing::wrap(&[vec![0; PUSHED_METRIC_BYTES + 1]]);
        assert!(matches!(all(&huge), Err(PayloadError::LargeMetric)));
    }
}
