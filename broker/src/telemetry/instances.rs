//! The clients that ask or push, and whether they do it too often.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Refusal;
use super::subscriptions::ClientSubscription;
use crate::limits::TELEMETRY_INSTANCES;

/// By how much of its interval a client may be early: what left in time may arrive a little closer
/// to the one before.
const EARLY: u32 = 10;

/// What is remembered of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Instance {
    used: u64,
    asked: Option<Instant>,
    pushed: Option<Instant>,
    /// The subscription that it was told of.
    told: Option<i32>,
    /// It was refused for a reason that asking again mends.
    may_ask: bool,
    /// It said that it is about to end.
    ended: bool,
}

impl Instance {
    fn is_due(&self, interval_ms: i32, now: Instant) -> bool {
        let interval = Duration::from_millis(interval_ms.unsigned_abs().into());
        let last = self.asked.max(self.pushed);
        last.is_none_or(|at| now.saturating_duration_since(at) + interval / EARLY >= interval)
    }
}

/// The clients that were heard of last.
#[derive(Debug, Default)]
pub(super) struct Instances {
    by_id: BTreeMap<Uuid, Instance>,
    /// By when they were last used.
    order: BTreeMap<u64, Uuid>,
    next: u64,
}

impl Instances {
    /// A client asks what is wanted of it.
    pub(super) fn ask(&mut self, id: Uuid, wanted: &ClientSubscription, now: Instant) -> Result<(), Refusal> {
        let instance = self.of(id);
        let is_news = instance.told != Some(wanted.id);
        if !is_news && !instance.may_ask && !instance.is_due(wanted.interval_ms, now) {
            return Err(Refusal::TooEarly);
        }
        instance.asked = Some(now);
        instance.told = Some(wanted.id);
        instance.may_ask = false;
        Ok(())
    }

    /// A client pushes for the subscription with this id.
    pub(super) fn push(
        &mut self,
        id: Uuid,
        wanted: &ClientSubscription,
        subscription_id: i32,
        is_last: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        let instance = self.of(id);
        if instance.ended {
            return Err(Refusal::Ended);
        }
        instance.ended = is_last;
        if subscription_id != wanted.id {
            instance.may_ask = true;
            return Err(Refusal::UnknownSubscription);
        }
        let is_first = instance.asked > instance.pushed;
        if !is_first && !is_last && !instance.is_due(wanted.interval_ms, now) {
            return Err(Refusal::TooEarly);
        }
        instance.pushed = Some(now);
        Ok(())
    }

    /// Lets a client ask again at once.
    pub(super) fn let_ask(&mut self, id: Uuid) {
        self.of(id).may_ask = true;
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    fn of(&mut self, id: Uuid) -> &mut Instance {
        self.next += 1;
        match self.by_id.get(&id) {
            Some(known) => {
                self.order.remove(&known.used);
            }
            None if self.by_id.len() >= TELEMETRY_INSTANCES => {
                if let Some((_, oldest)) = self.order.pop_first() {
                    self.by_id.remove(&oldest);
                }
            }
            None => {}
        }
        self.order.insert(self.next, id);
        let instance = self.by_id.entry(id).or_default();
        instance.used = self.next;
        instance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn wanted(id: i32) -> ClientSubscription {
        ClientSubscription { prefixes: vec!["*".to_owned()], interval_ms: 10_000, id }
    }

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 + 10)
    }

    #[tokio::test]
    async fn a_client_asks_once_and_pushes_once_per_interval() {
        let (mut instances, now) = (Instances::default(), Instant::now());
        let mut push = |at: Duration| instances.push(id(0), &wanted(1), 1, false, now + at);
        assert_eq!(push(Duration::ZERO), Ok(()), "it asked another broker");
        assert_eq!(push(INTERVAL / 2), Err(Refusal::TooEarly));
        assert_eq!(push(INTERVAL.mul_f64(0.95)), Ok(()), "a little early is in time");
        assert_eq!(push(INTERVAL), Err(Refusal::TooEarly));
        let mut ask = |wanted: &ClientSubscription, at: Duration| instances.ask(id(1), wanted, now + at);
        assert_eq!(ask(&wanted(1), Duration::ZERO), Ok(()));
        assert_eq!(ask(&wanted(1), INTERVAL / 2), Err(Refusal::TooEarly));
        assert_eq!(ask(&wanted(2), INTERVAL / 2), Ok(()), "something else is wanted");
        assert_eq!(ask(&wanted(2), INTERVAL * 2), Ok(()));
        assert_eq!(instances.push(id(1), &wanted(2), 2, false, now + INTERVAL * 2), Ok(()), "it just asked");
    }

    #[tokio::test]
    async fn an_unknown_subscription_may_be_asked_for_at_once_and_the_last_push_is_the_last() {
        let (mut instances, now) = (Instances::default(), Instant::now());
        assert_eq!(instances.ask(id(0), &wanted(1), now), Ok(()));
        assert_eq!(instances.push(id(0), &wanted(1), 9, false, now), Err(Refusal::UnknownSubscription));
        assert_eq!(instances.ask(id(0), &wanted(1), now), Ok(()));
        assert_eq!(instances.push(id(0), &wanted(1), 1, false, now + INTERVAL), Ok(()));
        assert_eq!(instances.push(id(0), &wanted(1), 1, true, now + INTERVAL), Ok(()), "early, but the last");
        assert_eq!(instances.push(id(0), &wanted(1), 1, true, now + INTERVAL * 2), Err(Refusal::Ended));
    }

    #[tokio::test]
    async fn the_clients_that_were_heard_of_last_are_remembered() {
        let (mut instances, now) = (Instances::default(), Instant::now());
        for n in 0..TELEMETRY_INSTANCES {
            instances.ask(id(n), &wanted(1), now).unwrap();
        }
        assert_eq!(instances.ask(id(0), &wanted(1), now), Err(Refusal::TooEarly));
        instances.ask(id(TELEMETRY_INSTANCES), &wanted(1), now).unwrap();
        assert_eq!(instances.len(), TELEMETRY_INSTANCES);
        assert_eq!(instances.order.len(), TELEMETRY_INSTANCES);
        assert_eq!(instances.ask(id(0), &wanted(1), now), Err(Refusal::TooEarly));
        assert_eq!(instances.ask(id(1), &wanted(1), now), Ok(()), "the oldest was forgotten");
    }
}
