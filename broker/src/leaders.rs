//! Which broker clients are led to for a partition: the "leader" of Kafka's protocol, here only a
//! hint that makes the traffic of a partition meet in one broker's cache. Any broker serves any
//! partition.
//!
//! The hashing itself is [`placement`] in the metadata crate, since the observer shows the same.

use std::sync::Arc;

use kafka_protocol::messages::BrokerId;
use strandline_metadata::names::{BrokerInfo, Names};
use strandline_metadata::placement::{self, Candidate};
use strandline_metadata::values::{BrokerValue, TopicValue};
use uuid::Uuid;

/// The brokers that clients may be led to, as of one view.
#[derive(Clone, Debug)]
pub(crate) struct Leaders {
    /// By node id.
    pub(crate) brokers: Vec<Arc<BrokerInfo>>,
    /// Those that partitions are spread over: not leaving, and in the client's zone if any is.
    candidates: Vec<i32>,
}

impl Leaders {
    /// The brokers for a client with this id. `own` is this broker as it would register.
    pub(crate) fn of(names: &Names, client_id: &str, own: impl FnOnce() -> BrokerValue) -> Self {
        let mut brokers: Vec<Arc<BrokerInfo>> = names.brokers().values().cloned().collect();
        if brokers.is_empty() {
            // Between losing a registration and getting another, this broker still serves what is
            // known.
            brokers.push(Arc::new(BrokerInfo { value: own(), incarnation: 0 }));
        }
        Self::among(brokers, zone_of(client_id))
    }

    /// The brokers that are registered: none while this one is alone and its registration is lost.
    pub(crate) fn registered(names: &Names) -> Self {
        Self::among(names.brokers().values().cloned().collect(), None)
    }

    fn among(brokers: Vec<Arc<BrokerInfo>>, zone: Option<&str>) -> Self {
        let known: Vec<Candidate<'_>> = brokers.iter().map(|b| candidate(b)).collect();
        let candidates = placement::candidates(&known, zone);
        Self { brokers, candidates }
    }

    /// The broker for a partition.
    pub(crate) fn of_partition(&self, topic_id: Uuid, partition: u32) -> i32 {
        placement::of_partition(&self.candidates, topic_id, partition)
    }

    /// The brokers on which a partition's replicas are shown, its leader first.
    pub(crate) fn replicas(&self, topic: &TopicValue, partition: u32) -> Vec<BrokerId> {
        let leader = self.of_partition(topic.topic_id, partition);
        let count = topic.replicas() as usize;
        if count <= 1 {
            return vec![BrokerId(leader)];
        }
        let known: Vec<Candidate<'_>> = self.brokers.iter().map(|b| candidate(b)).collect();
        placement::replicas(&known, leader, topic.topic_id, partition, count)
            .into_iter()
            .map(BrokerId)
            .collect()
    }

    /// The broker that coordinates a group; −1 if there is none. Zones do not matter: its members
    /// may be anywhere.
    pub(crate) fn of_group(&self, group: &str) -> i32 {
        placement::of_group(&self.candidates, group)
    }

    /// The broker that is named as controller.
    pub(crate) fn controller(&self) -> i32 {
        placement::controller(&self.candidates)
    }
}

fn candidate(broker: &BrokerInfo) -> Candidate<'_> {
    let BrokerValue { node_id, draining, zone, .. } = &broker.value;
    Candidate { node_id: *node_id, draining: *draining, zone }
}

/// The zone that a client names in its client id as `zone=<name>`, up to a comma, semicolon or
/// space.
fn zone_of(client_id: &str) -> Option<&str> {
    let after = client_id.split_once("zone=")?.1;
    let zone = after.split([',', ';', ' ']).next()?;
    (!zone.is_empty()).then_some(zone)
}

#[cfg(test)]
mod tests {
    use strandline_metadata::values::VALUE_FORMAT;

    use super::*;

    fn brokers(zones: &[&str]) -> Vec<Arc<BrokerInfo>> {
        let info = |(i, zone): (usize, &&str)| {
            let node_id = i32::try_from(i).unwrap() + 1;
            let value = BrokerValue {
                format: VALUE_FORMAT,
                node_id,
                process_id: Uuid::nil(),
                host: "h".to_owned(),
                port: 9092,
                zone: (*zone).to_owned(),
                version: String::new(),
                metrics_url: String::new(),
                registered_at_ms: 0,
                draining: false,
            };
            Arc::new(BrokerInfo { value, incarnation: 1 })
        };
        zones.iter().enumerate().map(info).collect()
    }

    fn spread(leaders: &Leaders) -> Vec<i32> {
        (0..3000).map(|p| leaders.of_partition(Uuid::from_u128(99), p)).collect()
    }

    #[test]
    fn a_client_is_led_into_its_zone_and_away_from_a_leaving_broker() {
        let mut known = brokers(&["a", "b", "a"]);
        let in_a = spread(&Leaders::among(known.clone(), zone_of("app,zone=a,x")));
        assert!(in_a.iter().all(|n| [1, 3].contains(n)) && in_a.contains(&1) && in_a.contains(&3));
        let nowhere = spread(&Leaders::among(known.clone(), zone_of("zone=c")));
        assert!((1..=3).all(|n| nowhere.contains(&n)));
        Arc::make_mut(&mut known[0]).value.draining = true;
        assert!(spread(&Leaders::among(known, Some("a"))).iter().all(|&n| n == 3));
    }
}
