//! Whether clients can write, read and use groups here, why not, and since when: what `/readyz`
//! says.
//!
//! It is what a client would meet, as far as this broker knows without trying. When the metadata
//! store has refused a commit, clients are led away and nobody may try again, so the broker tries
//! by itself: it puts its own registration once more.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use strandline_metadata::brokers;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::Broker;
use crate::limits::{METADATA_SILENCE, READINESS_CHECK};
use crate::slowdown;

/// What clients want of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Produce records.
    Writes,
    /// Fetch records.
    Reads,
    /// Join groups and commit offsets.
    Groups,
}

impl Capability {
    pub(crate) const ALL: [Self; 3] = [Self::Writes, Self::Reads, Self::Groups];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Reads => "reads",
            Self::Groups => "groups",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capability| capability.as_str() == name)
    }
}

/// Whether something is possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Why it is not; `None` if it is.
    pub(crate) obstacle: Option<String>,
    /// Since when, in ms since 1970.
    pub(crate) since_ms: i64,
    /// Why it is possible and slower than it should be, and since when.
    pub(crate) slowed: Option<(&'static str, i64)>,
}

/// The condition of each use, and what it depends on that nobody else remembers.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    conditions: Mutex<[Condition; 3]>,
    /// Since when the metadata store does not answer the keeper of the lease, in ms since 1970; 0
    /// while it does.
    silent_since_ms: AtomicI64,
}

impl Readiness {
    /// The metadata store answered the keeper of the lease, or did not.
    pub(crate) fn metadata_answers(&self, answers: bool, now_ms: i64) {
        if answers {
            self.silent_since_ms.store(0, Ordering::Relaxed);
        } else {
            // Only the first one counts; there is one keeper.
            let _ = self.silent_since_ms.compare_exchange(0, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How it is now, in the order of [`Capability::ALL`].
    pub(crate) fn look(&self, broker: &Broker) -> [Condition; 3] {
        let now_ms = broker.clock.now_ms();
        let obstacles = Capability::ALL.map(|capability| obstacle(broker, capability, now_ms));
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        for ((condition, obstacle), capability) in conditions.iter_mut().zip(obstacles).zip(Capability::ALL) {
            let why = slowed(broker).filter(|_| capability == Capability::Writes);
            if condition.slowed.map(|(why, _)| why) != why {
                condition.slowed = why.map(|why| (why, now_ms));
            }
            let is_new = condition.since_ms == 0;
            if !is_new && condition.obstacle == obstacle {
                continue;
            }
            match &obstacle {
                Some(why) => warn!(why, "clients cannot use this broker for {}", capability.as_str()),
                None if is_new => {}
                None => info!("clients can use this broker for {} again", capability.as_str()),
            }
            *condition = Condition { obstacle, since_ms: now_ms, ..condition.clone() };
        }
        conditions.clone()
    }
}

/// What stands in the way of a use.
fn obstacle(broker: &Broker, capability: Capability, now_ms: i64) -> Option<String> {
    if broker.is_draining() {
        return Some("this broker is leaving".to_owned());
    }
    let store_fails = || {
        let health = broker.metrics.storage().health();
        (!health.healthy).then(|| "the object store does not answer, or refuses requests".to_owned())
    };
    match capability {
        Capability::Reads => store_fails(),
        Capability::Groups => not_committing(broker, now_ms),
        Capability::Writes => not_committing(broker, now_ms).or_else(store_fails).or_else(|| {
            let limit = broker.config.max_state_ranges;
            let is_full = broker.replica.read(|view| view.state.entry_count()) >= limit;
            is_full.then(|| {
                format!(
                    "the cluster's state has max_state_ranges ({limit}) offset ranges: producers are refused"
                )
            })
        }),
    }
}

/// Why producers are slowed, if they are.
fn slowed(broker: &Broker) -> Option<&'static str> {
    let ranges = broker.replica.read(|view| view.state.entry_count());
    if slowdown::is_slowing(ranges, broker.config.max_state_ranges) {
        return Some(
            "the state has more than half of max_state_ranges offset ranges: merging does not keep up with producers",
        );
    }
    (broker.slowdown.space().pause() > Duration::ZERO).then_some("etcd is nearly full")
}

/// Why nothing can be committed.
fn not_committing(broker: &Broker, now_ms: i64) -> Option<String> {
    if broker.sessions.current().is_none() {
        return Some("this broker is not registered with the cluster".to_owned());
    }
    let silent_since_ms = broker.readiness.silent_since_ms.load(Ordering::Relaxed);
    let silence_ms = i64::try_from(METADATA_SILENCE.as_millis()).unwrap_or(i64::MAX);
    if silent_since_ms != 0 && now_ms - silent_since_ms >= silence_ms {
        return Some("the metadata store does not answer".to_owned());
    }
    broker.committer.health().trouble().map(|trouble| match trouble.refused {
        Some(error) => format!("the metadata store refuses commits: {error}"),
        None => "the metadata store does not answer commits".to_owned(),
    })
}

/// What `/readyz` shows of these conditions, and whether all that was asked for is possible: one
/// use, or every one.
pub(crate) fn page(conditions: &[Condition; 3], only: Option<Capability>) -> (bool, String) {
    let asked = |capability: Capability| only.is_none_or(|only| only == capability);
    let is_ready = |condition: &Condition| condition.obstacle.is_none();
    let all = Capability::ALL.into_iter().zip(conditions);
    let ready =
        all.clone().filter(|(capability, _)| asked(*capability)).all(|(_, condition)| is_ready(condition));
    let mut page = Map::from_iter([("ready".to_owned(), Value::Bool(ready))]);
    for (capability, condition) in all {
        let mut shown = json!({"ready": is_ready(condition), "since_ms": condition.since_ms});
        if let Some(why) = &condition.obstacle {
            shown["reason"] = Value::String(why.clone());
        }
        if let Some((why, since_ms)) = condition.slowed {
            shown["slowed"] = json!({"reason": why, "since_ms": since_ms});
        }
        page.insert(capability.as_str().to_owned(), shown);
    }
    (ready, format!("{}\n", Value::Object(page)))
}

/// Looks now and then, so that it is known since when something is not possible, and tries what
/// nobody else may try any more.
pub(crate) async fn run(broker: Arc<Broker>) {
    loop {
        let conditions = broker.readiness.look(&broker);
        for (capability, condition) in Capability::ALL.into_iter().zip(&conditions) {
            broker.metrics.bounds().ready(capability.as_str(), condition.obstacle.is_none());
        }
        if broker.committer.health().trouble().is_some_and(|trouble| trouble.refused.is_some()) {
            try_commit(&broker).await;
        }
        sleep(READINESS_CHECK).await;
    }
}

async fn try_commit(broker: &Broker) {
    let registration = *broker.registration.borrow();
    let Some(registration) = registration else { return };
    let (keys, value) = (broker.replica.keys(), broker.as_registered());
    let update = brokers::update(&broker.committer, keys, &registration, &value);
    match timeout(Duration::from_secs(5), update).await {
        Ok(Ok(())) => debug!("the metadata store takes commits again"),
        Ok(Err(error)) => debug!(%error, "the metadata store still takes no commits"),
        Err(_) => debug!("the metadata store does not answer a commit"),
    }
}

#[cfg(test)]
mod tests {
    use strandline_metadata::backend::faulty::{Fault, FaultyBackend};

    use super::*;
    use crate::testing::World;

    fn obstacles(broker: &Broker) -> [Option<String>; 3] {
        broker.readiness.look(broker).map(|condition| condition.obstacle)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_while_the_metadata_store_has_no_space() {
        let world = World::new();
        let backend = FaultyBackend::new(Arc::new(world.backend.clone()), 1);
        let faults = backend.faults();
        let opened = world.broker_over(Arc::new(backend), 1, &[]).await;
        let broker = &opened.broker;
        sleep(READINESS_CHECK).await;
        assert_eq!(obstacles(broker), [None, None, None]);
        faults.inject(Fault::NoSpace);
        try_commit(broker).await;
        let [writes, reads, groups] = obstacles(broker);
        assert!(writes.as_ref().is_some_and(|why| why.contains("space")), "{writes:?}");
        assert_eq!((groups, reads), (writes, None));
        // Nobody else tries, since clients are led away.
        sleep(READINESS_CHECK * 2).await;
        assert_eq!(obstacles(broker), [None, None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_where_every_producer_is_refused() {
        let world = World::new();
        let opened = world.broker(1, &["--max-state-ranges", "1", "--put-budget-per-s", "1000"]).await;
        let mut client = crate::testing::TestClient::connect(&opened.broker);
        client.create_topic("t", 1, &[]).await;
        assert_eq!(obstacles(&opened.broker)[0], None);
        client
            .produce("t", [crate::records::tests::batch(kafka_protocol::records::Compression::None, 0, 1)])
            .await;
        let [writes, reads, groups] = obstacles(&opened.broker);
        assert!(writes.is_some_and(|why| why.contains("max_state_ranges")));
        assert_eq!((reads, groups), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_metadata_store_that_is_silent_is_noticed_without_commits() {
        let opened = World::new().broker(1, &[]).await;
        let broker = &opened.broker;
        let since_ms = crate::testing::NOW_MS - 10_000;
        broker.readiness.metadata_answers(false, since_ms);
        let [writes, reads, groups] = obstacles(broker);
        assert!(writes.is_some() && groups.is_some());
        assert_eq!(reads, None, "what is known is served");
        broker.readiness.metadata_answers(true, since_ms);
        assert_eq!(obstacles(broker), [None, None, None]);
    }

    #[test]
    fn the_page_says_why_and_since_when_and_what_is_asked_for_decides() {
        let fine = Condition { since_ms: 5, ..Condition::default() };
        let full = Condition { obstacle: Some("no space".to_owned()), since_ms: 7, ..Condition::default() };
        let conditions = [full.clone(), fine.clone(), full];
        for (only, ready) in [
            (None, false),
            (Some(Capability::Writes), false),
            (Some(Capability::Reads), true),
            (Some(Capability::Groups), false),
        ] {
            let (is_ready, page) = page(&conditions, only);
            assert_eq!(is_ready, ready, "{only:?}");
            let page: Value = serde_json::from_str(&page).unwrap();
            assert_eq!(page["ready"], ready);
            assert_eq!(page["writes"], json!({"ready": false, "since_ms": 7, "reason": "no space"}));
            assert_eq!(page["reads"], json!({"ready": true, "since_ms": 5}));
        }
        let slow = Condition { slowed: Some(("much to merge", 6)), ..fine.clone() };
        let (is_ready, page) = super::page(&[slow, fine.clone(), fine], None);
        let page: Value = serde_json::from_str(&page).unwrap();
        assert!(is_ready);
        assert_eq!(page["writes"]["slowed"], json!({"reason": "much to merge", "since_ms": 6}));
        assert_eq!(page["groups"], json!({"ready": true, "since_ms": 5}));
    }
}
