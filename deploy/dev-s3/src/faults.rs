//! What goes wrong on command. The plan is JSON, so that tests in any language can set it:
//!
//! ```text
//! curl -X PUT http://127.0.0.1:9001/faults -d '{"slowdown_rate": 0.3, "operations": ["put"]}'
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// The kinds of requests that a plan can tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Writing an object or a part of one.
    Put,
    /// Reading an object or its properties.
    Get,
    /// Deleting an object, or many with one request.
    Delete,
    /// Listing a bucket.
    List,
    /// Anything else: buckets, multipart uploads.
    Other,
}

impl Operation {
    /// All operations, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Delete, Self::List, Self::Other];

    /// The operation that a request line asks for.
    pub(crate) fn of(method: &http::Method, uri: &http::Uri) -> Self {
        let has_key =
            uri.path().trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
        match (method.as_str(), has_key) {
            ("PUT", true) => Self::Put,
            ("GET" | "HEAD", true) => Self::Get,
            ("DELETE", true) => Self::Delete,
            ("GET", false) => Self::List,
            ("POST", false) if deletes_many(method, uri) => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// Whether a request line asks for many objects to be deleted.
pub(crate) fn deletes_many(method: &http::Method, uri: &http::Uri) -> bool {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    method == http::Method::POST && parameters.any(|parameter| matches!(parameter, "delete" | "delete="))
}

/// What goes wrong, and how often: rates are probabilities between 0 and 1. What is not mentioned
/// does not happen.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// 500 InternalError; the request is not done.
    pub error_rate: f64,
    /// 503 SlowDown; the request is not done.
    pub slowdown_rate: f64,
    /// The request is done, and the connection closed without an answer.
    pub lost_answer_rate: f64,
    /// The connection is closed; the request is not done.
    pub reset_rate: f64,
    /// The answer to a GET is cut in its middle, and the connection closed.
    pub truncate_rate: f64,
    /// One byte of the answer to a GET is another.
    pub flip_rate: f64,
    /// A GET is answered with 404 NoSuchKey.
    pub missing_rate: f64,
    /// Every request takes at least this much longer.
    pub latency_ms: u64,
    /// And up to this much longer still, at random.
    pub latency_jitter_ms: u64,
    /// Every request is answered with 403 AccessDenied.
    pub deny: bool,
    /// Requests for deleting many objects are answered with 501 NotImplemented, as by servers that
    /// do not have them.
    pub refuse_bulk_delete: bool,
    /// Keys, whole, whose objects stay: deleting one is answered with AccessDenied, by itself and
    /// among others.
    pub undeletable: Vec<String>,
    /// No request is answered, until this is false again: then those that waited are reset.
    pub hang: bool,
    /// Only these operations are hit; all of them if empty.
    pub operations: Vec<Operation>,
}

impl FaultPlan {
    fn check(&self) -> Result<(), String> {
        let rates = [
            ("error_rate", self.error_rate),
            ("slowdown_rate", self.slowdown_rate),
            ("lost_answer_rate", self.lost_answer_rate),
            ("reset_rate", self.reset_rate),
            ("truncate_rate", self.truncate_rate),
            ("flip_rate", self.flip_rate),
            ("missing_rate", self.missing_rate),
        ];
        match rates.into_iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
            Some((name, rate)) => Err(format!("{name} is {rate}, which is no probability")),
            None => Ok(()),
        }
    }
}

/// What happens to one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Error,
    SlowDown,
    Deny,
    Missing,
    Reset,
    Hang,
    LostAnswer,
    Truncate,
    /// Flips the byte at this share of the answer, in 65,536ths.
    Flip(u16),
}

/// The plan in force, and what has come of it.
#[derive(Debug)]
pub(crate) struct Faults(Mutex<State>);

#[derive(Debug)]
struct State {
    rng: StdRng,
    plan: FaultPlan,
    stats: Stats,
}

/// Counts since the start.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Stats {
    pub(crate) put: u64,
    pub(crate) get: u64,
    pub(crate) delete: u64,
    pub(crate) list: u64,
    pub(crate) other: u64,
    /// Requests that were hit by a fault other than latency.
    pub(crate) faults: u64,
}

impl Stats {
    pub(crate) fn of(&self, operation: Operation) -> u64 {
        match operation {
            Operation::Put => self.put,
            Operation::Get => self.get,
            Operation::Delete => self.delete,
            Operation::List => self.list,
            Operation::Other => self.other,
        }
    }
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        let (rng, plan, stats) = (StdRng::seed_from_u64(seed), FaultPlan::default(), Stats::default());
        Self(Mutex::new(State { rng, plan, stats }))
    }

    pub(crate) fn set(&self, plan: FaultPlan) -> Result<(), String> {
        plan.check()?;
        self.lock().plan = plan;
        Ok(())
    }

    pub(crate) fn plan(&self) -> FaultPlan {
        self.lock().plan.clone()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.lock().stats.clone()
    }

    pub(crate) fn hangs(&self) -> bool {
        self.lock().plan.hang
    }

    pub(crate) fn refuses_bulk_delete(&self) -> bool {
        self.lock().plan.refuse_bulk_delete
    }

    pub(crate) fn is_undeletable(&self, key: &str) -> bool {
        self.lock().plan.undeletable.iter().any(|stays| stays == key)
    }

    /// Decides what happens to a request.
    pub(crate) fn draw(&self, operation: Operation) -> (Duration, Option<Fault>) {
        let mut state = self.lock();
        let State { rng, plan, stats } = &mut *state;
        match operation {
            Operation::Put => stats.put += 1,
            Operation::Get => stats.get += 1,
            Operation::Delete => stats.delete += 1,
            Operation::List => stats.list += 1,
            Operation::Other => stats.other += 1,
        }
        if !plan.operations.is_empty() && !plan.operations.contains(&operation) {
            return (Duration::ZERO, None);
        }
        let jitter_ms =
            if plan.latency_jitter_ms > 0 { rng.random_range(0..=plan.latency_jitter_ms) } else { 0 };
        let latency = Duration::from_millis(plan.latency_ms.saturating_add(jitter_ms));
        let reads = operation == Operation::Get;
        let chances = [
            (plan.error_rate, Fault::Error),
            (plan.slowdown_rate, Fault::SlowDown),
            (plan.lost_answer_rate, Fault::LostAnswer),
            (plan.reset_rate, Fault::Reset),
            (if reads { plan.truncate_rate } else { 0.0 }, Fault::Truncate),
            (if reads { plan.flip_rate } else { 0.0 }, Fault::Flip(0)),
            (if reads { plan.missing_rate } else { 0.0 }, Fault::Missing),
        ];
        let mut fault = chances
            .into_iter()
            .find_map(|(chance, fault)| (chance > 0.0 && rng.random_bool(chance)).then_some(fault));
        if let Some(Fault::Flip(place)) = &mut fault {
            *place = rng.random();
        }
        if plan.deny {
            fault = Some(Fault::Deny);
        }
        if plan.hang {
            fault = Some(Fault::Hang);
        }
        stats.faults += u64::from(fault.is_some());
        (latency, fault)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_told_apart() {
        let cases = [
            ("PUT", "/b/k", Operation::Put),
            ("PUT", "/b/k?partNumber=1&uploadId=x", Operation::Put),
            ("GET", "/b/k/l", Operation::Get),
            ("HEAD", "/b/k", Operation::Get),
            ("DELETE", "/b/k", Operation::Delete),
            ("GET", "/b?list-type=2", Operation::List),
            ("GET", "/b/?list-type=2", Operation::List),
            ("PUT", "/b", Operation::Other),
            ("POST", "/b?delete", Operation::Delete),
            ("POST", "/b/?x=y&delete=", Operation::Delete),
            ("POST", "/b?deleted", Operation::Other),
            ("POST", "/b/k?uploads", Operation::Other),
            ("HEAD", "/b", Operation::Other),
        ];
        for (method, uri, expected) in cases {
            let found = Operation::of(&method.parse().unwrap(), &uri.parse().unwrap());
            assert_eq!(found, expected, "{method} {uri}");
        }
    }

    #[test]
    fn plans_are_checked() {
        let faults = Faults::new(1);
        for json in [r#"{"error_rate": 2}"#, r#"{"flip_rate": -0.1}"#] {
            assert!(faults.set(serde_json::from_str(json).unwrap()).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<FaultPlan>(r#"{"eror_rate": 0.5}"#).is_err(), "an unknown key");
        assert_eq!(faults.plan(), FaultPlan::default());
    }

    #[test]
    fn the_same_seed_draws_the_same_faults() {
        let draws = |seed| {
            let faults = Faults::new(seed);
            let plan =
                r#"{"error_rate": 0.2, "flip_rate": 0.5, "latency_jitter_ms": 100, "operations": ["get"]}"#;
            faults.set(serde_json::from_str(plan).unwrap()).unwrap();
            let draws: Vec<_> = (0..100).map(|_| faults.draw(Operation::Get)).collect();
            assert_eq!(faults.draw(Operation::Put), (Duration::ZERO, None));
            assert!(faults.stats().faults > 20);
            assert_eq!((faults.stats().get, faults.stats().put), (100, 1));
            draws
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
