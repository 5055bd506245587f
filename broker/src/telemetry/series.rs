//! The numbers that clients pushed, for `/metrics`: bounded, whoever pushes what (invariant 9).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::otlp::{Kind, Point, plain};
use crate::limits::{TELEMETRY_SERIES, TELEMETRY_SERIES_PER_CLIENT};

/// A client that missed so many pushes is gone, and its numbers with it.
const MISSED_PUSHES: u32 = 3;

/// What a number is of: metric, attributes, kind.
type Key = (String, String, Kind);

/// A number that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    pub(crate) metric: String,
    pub(crate) client_id: String,
    pub(crate) attributes: String,
    /// Whether it only grows.
    pub(crate) is_total: bool,
    pub(crate) value: f64,
}

#[derive(Debug)]
struct Client {
    heard: Instant,
    stays: Duration,
    values: BTreeMap<Key, f64>,
}

/// The numbers of all clients, by client id: instances with the same one are one client here.
#[derive(Debug, Default)]
pub(super) struct Series {
    clients: BTreeMap<String, Client>,
    len: usize,
}

impl Series {
    /// Takes over what a client pushed. Gives how many numbers found no place.
    pub(super) fn record(
        &mut self,
        client_id: &str,
        points: Vec<Point>,
        interval: Duration,
        now: Instant,
    ) -> usize {
        self.expire(now);
        let client_id = plain(client_id);
        let mut left_out = 0;
        for point in points {
            let key = (point.metric, point.attributes, point.kind);
            if !self.make_room(&client_id, &key) {
                left_out += 1;
                continue;
            }
            let client = self.clients.entry(client_id.clone()).or_insert_with(|| Client {
                heard: now,
                stays: interval * MISSED_PUSHES,
                values: BTreeMap::new(),
            });
            (client.heard, client.stays) = (now, interval * MISSED_PUSHES);
            let value = client.values.entry(key).or_insert_with(|| {
                self.len += 1;
                0.0
            });
            *value = if point.is_delta { *value + point.value } else { point.value };
        }
        left_out
    }

    /// Whether there is a place for a client's number.
    fn make_room(&mut self, client_id: &str, key: &Key) -> bool {
        let own = self.clients.get(client_id);
        if own.is_some_and(|c| c.values.contains_key(key)) {
            return true;
        }
        if own.is_some_and(|c| c.values.len() >= TELEMETRY_SERIES_PER_CLIENT) {
            return false;
        }
        if self.len < TELEMETRY_SERIES {
            return true;
        }
        let others = self.clients.iter().filter(|(id, _)| *id != client_id);
        let oldest = others.min_by_key(|(_, c)| c.heard).map(|(id, _)| id.clone());
        oldest.and_then(|id| self.clients.remove(&id)).is_some_and(|gone| {
            self.len -= gone.values.len();
            true
        })
    }

    fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, client| {
            let stays = now.saturating_duration_since(client.heard) <= client.stays;
            if !stays {
                self.len -= client.values.len();
            }
            stays
        });
    }

    /// Every number that is kept.
    pub(super) fn shown(&mut self, now: Instant) -> Vec<Shown> {
        self.expire(now);
        let all = self.clients.iter().flat_map(|(client_id, client)| {
            client.values.iter().map(move |((metric, attributes, kind), value)| Shown {
                metric: metric.clone(),
                client_id: client_id.clone(),
                attributes: attributes.clone(),
                is_total: *kind == Kind::Total,
                value: *value,
            })
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn point(metric: &str, kind: Kind, is_delta: bool, value: f64) -> Point {
        Point { metric: metric.to_owned(), attributes: "a=1".to_owned(), kind, is_delta, value }
    }

    fn many(count: usize) -> Vec<Point> {
        (0..count).map(|n| point(&format!("m{n}"), Kind::Level, false, 1.0)).collect()
    }

    #[tokio::test]
    async fn sums_are_added_up_and_gauges_replaced() {
        let (mut series, now) = (Series::default(), Instant::now());
        for value in [2.0, 3.0] {
            let points = vec![point("t", Kind::Total, true, value), point("g", Kind::Level, false, value)];
            assert_eq!(series.record("me\u{202e}\n", points, MINUTE, now), 0);
        }
        let shown = series.shown(now);
        let texts: Vec<_> =
            shown.iter().map(|s| (&*s.metric, &*s.client_id, &*s.attributes, s.is_total, s.value)).collect();
        assert_eq!(texts, [("g", "me__", "a=1", false, 3.0), ("t", "me__", "a=1", true, 5.0)]);
        assert_eq!(series.shown(now + MINUTE * 3).len(), 2);
        assert_eq!((series.shown(now + MINUTE * 4).len(), series.len), (0, 0), "it pushes no more");
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_and_the_oldest_client_gives_way() {
        let (mut series, now) = (Series::default(), Instant::now());
        let long = "x".repeat(1_000_000);
        assert_eq!(series.record(&long, many(TELEMETRY_SERIES_PER_CLIENT + 7), MINUTE, now), 7);
        for n in 1..4_u32 {
            let at = now + Duration::from_secs(n.into());
            assert_eq!(series.record(&n.to_string(), many(TELEMETRY_SERIES_PER_CLIENT), MINUTE, at), 0);
        }
        assert_eq!(series.len, TELEMETRY_SERIES);
        assert_eq!(series.record("4", many(10), MINUTE, now + Duration::from_secs(9)), 0);
        let ids: Vec<_> = series.clients.keys().map(String::as_str).collect();
        assert_eq!(
            (ids, series.len),
            (vec!["1", "2", "3", "4"], TELEMETRY_SERIES - TELEMETRY_SERIES_PER_CLIENT + 10)
        );
    }
}
