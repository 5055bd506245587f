//! Limits of rate: a bucket per address or principal, which fills with time.
//!
//! Bounded: when there are too many, those that are full again (whoever has done nothing for a
//! minute) are forgotten; if none is, newcomers share one bucket.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::BUCKETS;

/// So many per minute, for each key.
#[derive(Debug)]
pub(crate) struct RateLimit<K> {
    per_minute: f64,
    buckets: Mutex<HashMap<Option<K>, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Hash + Eq + Clone> RateLimit<K> {
    pub(crate) fn new(per_minute: u32) -> Self {
        Self { per_minute: f64::from(per_minute), buckets: Mutex::default() }
    }

    /// Takes `cost`, or says how long to wait until it can be had. A cost above the whole bucket
    /// takes all of it.
    pub(crate) fn take(&self, key: &K, cost: u32) -> Result<(), Duration> {
        self.with(key, |bucket, per_minute| {
            let cost = f64::from(cost).min(per_minute);
            if bucket.left >= cost {
                bucket.left -= cost;
                return Ok(());
            }
            Err(Duration::from_secs_f64((cost - bucket.left) * 60.0 / per_minute))
        })
    }

    /// Whether `cost` could be taken, without taking it.
    pub(crate) fn check(&self, key: &K) -> Result<(), Duration> {
        self.with(key, |bucket, per_minute| {
            if bucket.left >= 1.0 {
                return Ok(());
            }
            Err(Duration::from_secs_f64((1.0 - bucket.left) * 60.0 / per_minute))
        })
    }

    fn with<T>(&self, key: &K, act: impl FnOnce(&mut Bucket, f64) -> T) -> T {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(key.clone());
        if !buckets.contains_key(&key) && buckets.len() >= BUCKETS {
            buckets.retain(|_, b| now.duration_since(b.at) < Duration::from_mins(1));
            if buckets.len() >= BUCKETS {
                key = None;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: self.per_minute, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() * self.per_minute / 60.0;
        bucket.left = (bucket.left + gained).min(self.per_minute);
        bucket.at = now;
        act(bucket, self.per_minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills() {
        let limit = RateLimit::new(60);
        for _ in 0..60 {
            limit.take(&"a", 1).unwrap();
        }
        let wait = limit.take(&"a", 1).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert!(limit.check(&"a").is_err());
        limit.take(&"b", 1).unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        limit.take(&"a", 2).unwrap();
        assert!(limit.take(&"a", 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_costs_more_than_there_can_be_takes_all() {
        let limit = RateLimit::new(3);
        limit.take(&"a", 5).unwrap();
        assert!(limit.take(&"a", 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_share_a_bucket_when_there_are_too_many() {
        let limit = RateLimit::new(1);
        for i in 0..BUCKETS {
            limit.take(&i, 1).unwrap();
        }
        limit.take(&(BUCKETS + 1), 1).unwrap();
        assert!(limit.take(&(BUCKETS + 2), 1).is_err());
        tokio::time::advance(Duration::from_secs(61)).await;
        limit.take(&(BUCKETS + 3), 1).unwrap();
        assert!(limit.buckets.lock().unwrap().len() < 3);
    }
}
