//! Members that come and go, requests and answers that get lost, coordinators that die, topics that
//! grow: whatever happens, no two members believe at once that a partition is theirs, and once it
//! is quiet all have what they should.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::values::group::ClassicGroupValue;

use super::classic::join_group;
use super::{World, beat, going_away, joining, leaving, names, text, with_instance};
use crate::group::consumer::ConsumerGroup;
use crate::group::tests::code_of;

type Reads = BTreeSet<String>;

/// A consumer, and what it believes.
#[derive(Clone, Debug, Default)]
struct Consumer {
    instance: Option<String>,
    topics: Vec<String>,
    pattern: Option<String>,
    assignor: Option<&'static str>,
    is_classic: bool,
    /// 0 for one that is to join.
    epoch: i32,
    reads: Reads,
    /// It was told of partitions, and not yet stopped reading what it was not told of.
    to_stop: Reads,
    /// Something went wrong, so it says everything in its next request.
    says_all: bool,
    /// With the classic protocol: what it does next.
    next: Next,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Next {
    #[default]
    Join,
    Sync,
    Beat,
}

struct Simulation {
    world: World,
    random: StdRng,
    consumers: BTreeMap<String, Consumer>,
    /// Static members that are away, by instance id.
    away: BTreeMap<String, Consumer>,
    next: u32,
    mixed: bool,
    loses: f64,
    log: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, mixed: bool) -> Self {
        let mut world = World::new(&[("t", 5), ("u", 3), ("v", 1)]);
        world.settings.may_downgrade = false;
        Self {
            world,
            random: StdRng::seed_from_u64(seed),
            consumers: BTreeMap::new(),
            away: BTreeMap::new(),
            next: 0,
            mixed,
            loses: 0.2,
            log: Vec::new(),
        }
    }

    fn pick(&mut self) -> Option<String> {
        let ids: Vec<String> = self.consumers.keys().cloned().collect();
        if ids.is_empty() { None } else { Some(ids[self.random.random_range(0..ids.len())].clone()) }
    }

    fn loses(&mut self) -> bool {
        let loses = self.loses;
        self.random.random_bool(loses)
    }

    /// Whether the coordinator dies before what it decided is written, so that nobody ever hears of
    /// it.
    fn is_not_persisted(&mut self) -> bool {
        self.loses > 0.0 && self.random.random_bool(0.05)
    }

    fn some_topics(&mut self) -> Vec<String> {
        let mut topics: Vec<String> = ["t", "u", "v"]
            .iter()
            .filter(|_| self.random.random_bool(0.6))
            .map(|t| (*t).to_owned())
            .collect();
        if topics.is_empty() {
            topics.push("t".to_owned());
        }
        topics
    }

    fn arrive(&mut self) {
        self.next += 1;
        // Ids are random, so newcomers come anywhere in the order.
        let id = format!("m{:03}-{}", self.random.random_range(0..1000), self.next);
        let back = self.away.pop_first().map(|(_, consumer)| consumer);
        let mut consumer = back.unwrap_or_else(|| {
            let topics =
                if self.random.random_bool(0.6) { vec!["t".into(), "u".into()] } else { self.some_topics() };
            let is_static = self.random.random_bool(0.3);
            Consumer {
                instance: is_static.then(|| format!("i{}", self.next)),
                topics,
                pattern: self.random.random_bool(0.2).then(|| "u|v.*".to_owned()),
                assignor: self.random.random_bool(0.3).then_some("range"),
                ..Consumer::default()
            }
        });
        consumer.is_classic = self.mixed && consumer.instance.is_none() && self.random.random_bool(0.5);
        (consumer.epoch, consumer.next) = (0, Next::Join);
        self.consumers.insert(id, consumer);
    }

    fn act(&mut self) {
        match self.random.random_range(0..100) {
            0..8 if self.consumers.len() < 9 => self.arrive(),
            8..10 => self.depart(),
            10..12 => {
                // One dies without a word.
                if let Some(id) = self.pick() {
                    self.log.push(format!("{id} dies"));
                    self.consumers.remove(&id);
                }
            }
            12..14 => self.resubscribe(),
            14..16 => self.change_topics(),
            16..18 => {
                self.log.push("a coordinator takes over".to_owned());
                self.world.take_over();
            }
            18..22 => self.time_passes(),
            _ => {
                if let Some(id) = self.pick() {
                    self.turn(&id);
                }
            }
        }
        self.check();
    }

    fn depart(&mut self) {
        let Some(id) = self.pick() else { return };
        let Some(consumer) = self.consumers.remove(&id) else { return };
        self.log.push(format!("{id} leaves"));
        if self.loses() {
            return;
        }
        let away = consumer.instance.clone().filter(|_| self.random.random_bool(0.7));
        let request = match (&away, &consumer.instance) {
            (Some(instance), _) => going_away(&id, instance),
            (None, Some(instance)) => with_instance(leaving(&id), instance),
            (None, None) => leaving(&id),
        };
        let left = self.world.send(&request).is_ok();
        if let (Some(instance), true) = (away, left) {
            self.away.insert(instance, Consumer { reads: Reads::new(), to_stop: Reads::new(), ..consumer });
        }
    }

    fn resubscribe(&mut self) {
        let (Some(id), topics) = (self.pick(), self.some_topics()) else { return };
        if let Some(consumer) = self.consumers.get_mut(&id) {
            consumer.topics = topics;
            consumer.says_all = true;
            consumer.next = Next::Join;
        }
    }

    fn change_topics(&mut self) {
        let name = ["t", "u", "v", "vv"][self.random.random_range(0..4)];
        let count = self.world.topics.get(name).map_or(0, |(_, count)| *count);
        if count > 0 && self.random.random_bool(0.2) {
            self.log.push(format!("{name} is deleted"));
            self.world.topics.remove(name);
            // A partition of a topic that is gone is nothing to fight over.
            for consumer in self.consumers.values_mut() {
                consumer.reads.retain(|read| &read[..read.len() - 1] != name);
                consumer.to_stop.retain(|read| &read[..read.len() - 1] != name);
            }
        } else if count < 8 {
            self.log.push(format!("{name} grows to {}", count + 1));
            self.world.create(name, count + 1);
        }
        self.world.with(ConsumerGroup::topics_changed);
    }

    fn time_passes(&mut self) {
        let ms = self.random.random_range(100..20_000);
        for (id, by) in self.world.expire_for(ms) {
            self.log.push(format!("{id} is fenced by {by:?}"));
            // It will find out, and drops what it has until then by its own clock.
            if let Some(consumer) = self.consumers.get_mut(&id) {
                consumer.reads.clear();
                consumer.to_stop.clear();
            }
            self.away.retain(|instance, _| self.world.group.instances.contains_key(instance));
        }
    }

    fn turn(&mut self, id: &str) {
        let Some(mut consumer) = self.consumers.remove(id) else { return };
        let stop = std::mem::take(&mut consumer.to_stop);
        consumer.reads.retain(|read| !stop.contains(read));
        if consumer.is_classic {
            self.classic_turn(id, &mut consumer);
        } else {
            self.consumer_turn(id, &mut consumer);
        }
        self.consumers.insert(id.to_owned(), consumer);
    }

    fn consumer_turn(&mut self, id: &str, consumer: &mut Consumer) {
        let request = self.request(id, consumer);
        if self.loses() {
            consumer.says_all = true;
            return;
        }
        if self.is_not_persisted() {
            let persisted = self.world.group.value().clone();
            let _ = self.world.send(&request);
            self.world.take_over_from(persisted);
            consumer.says_all = true;
            return;
        }
        let mut answer = self.world.send(&request);
        if self.random.random_bool(0.1) {
            // No answer came, so it asks again at once, for everything.
            consumer.says_all = true;
            let request = self.request(id, consumer);
            answer = self.world.send(&request);
        }
        let told = answer.as_ref().map(|a| self.world.told(a)).map_err(|e| code_of(e.clone()));
        self.log.push(format!("{id} at {} reads {:?}: {told:?}", consumer.epoch, consumer.reads));
        match answer {
            _ if self.loses() => consumer.says_all = true,
            Ok(answer) => self.obey(consumer, &answer),
            Err(_) => {
                consumer.epoch = 0;
                consumer.reads.clear();
            }
        }
    }

    fn request(&mut self, id: &str, consumer: &Consumer) -> ConsumerGroupHeartbeatRequest {
        let topics: Vec<&str> = consumer.topics.iter().map(String::as_str).collect();
        let mut request = if consumer.epoch == 0 { joining(id, &topics) } else { beat(id, consumer.epoch) };
        // What it reads it says when that has changed, or rather, here, as often as not.
        if consumer.epoch > 0 && (consumer.says_all || self.random.random_bool(0.6)) {
            let reads: Vec<&str> = consumer.reads.iter().map(String::as_str).collect();
            request = request.with_topic_partitions(Some(self.world.partitions(&reads)));
        }
        if consumer.epoch == 0 || consumer.says_all {
            request = request
                .with_rebalance_timeout_ms(super::REBALANCE_TIMEOUT_MS)
                .with_subscribed_topic_names(Some(names(&topics)))
                .with_subscribed_topic_regex(consumer.pattern.as_deref().map(text))
                .with_server_assignor(consumer.assignor.map(text));
        }
        match &consumer.instance {
            Some(instance) => with_instance(request, instance),
            None => request,
        }
    }

    fn obey(&self, consumer: &mut Consumer, answer: &ConsumerGroupHeartbeatResponse) {
        consumer.says_all = false;
        consumer.epoch = answer.member_epoch;
        if answer.assignment.is_some() {
            let told: Reads = self.world.told(answer).1.into_iter().collect();
            // Reading what is new begins at once, stopping what is not takes until its next turn.
            consumer.to_stop = consumer.reads.difference(&told).cloned().collect();
            consumer.reads.extend(told.into_iter().filter(|r| !r.starts_with('?')));
        }
    }

    fn classic_turn(&mut self, id: &str, consumer: &mut Consumer) {
        let reads: Vec<String> = consumer.reads.iter().cloned().collect();
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        let topics: Vec<&str> = consumer.topics.iter().map(String::as_str).collect();
        if self.loses() {
            return;
        }
        let persisted = self.world.group.value().clone();
        let before = consumer.clone();
        let outcome = match consumer.next {
            Next::Join => {
                let joined = self.world.join_classic(&join_group(id, &topics, &reads)).map_err(code_of);
                joined.map(|joined| (consumer.epoch, consumer.next) = (joined.generation_id, Next::Sync))
            }
            Next::Sync => self.world.sync(id, consumer.epoch).map(|told| {
                let told: Reads = told.into_iter().collect();
                consumer.to_stop = consumer.reads.difference(&told).cloned().collect();
                consumer.next = if consumer.to_stop.is_empty() { Next::Beat } else { Next::Join };
                consumer.reads.extend(told);
            }),
            Next::Beat => self.world.beat_classic(id, consumer.epoch),
        };
        self.log.push(format!("{id} (classic) reads {:?}: {outcome:?}", consumer.reads));
        if self.is_not_persisted() {
            self.world.take_over_from(persisted);
            *consumer = before;
            return;
        }
        match outcome {
            _ if self.loses() => *consumer = before,
            Ok(()) => {}
            Err(kafka_protocol::error::ResponseError::RebalanceInProgress) => consumer.next = Next::Join,
            Err(_) => {
                consumer.reads.clear();
                consumer.next = Next::Join;
            }
        }
    }

    /// The last things that happened.
    fn story(&self) -> String {
        self.log[self.log.len().saturating_sub(80)..].join("\n")
    }

    /// No two members that are in the group believe that they read the same.
    fn check(&self) {
        let mut readers: BTreeMap<&String, &String> = BTreeMap::new();
        for (id, consumer) in &self.consumers {
            if !self.world.group.value().members.contains_key(id) {
                continue;
            }
            for read in &consumer.reads {
                if let Some(other) = readers.insert(read, id) {
                    panic!("{id} and {other} both read {read}:\n{}", self.story());
                }
            }
        }
    }

    /// Nothing is lost and nothing happens any more: everyone gets to its target.
    fn settle(&mut self) {
        self.loses = 0.0;
        let ids: Vec<String> = self.consumers.keys().cloned().collect();
        for _ in 0..60 {
            for id in &ids {
                self.turn(id);
                self.check();
            }
            for (id, _) in self.world.expire_for(4_000) {
                if let Some(consumer) = self.consumers.get_mut(&id) {
                    consumer.reads.clear();
                }
            }
            self.check();
        }
        let log = || self.story();
        let state = self.world.group.state();
        let expected = if ids.is_empty() { "Empty" } else { "Stable" };
        assert_eq!(state, expected, "{:#?}\n{}", self.world.group.value(), log());
        for (id, consumer) in &self.consumers {
            let target = self.world.reads(&self.world.member(id).target);
            assert!(
                consumer.reads.iter().eq(&target),
                "{id} reads {:?}, not {target:?}\n{}",
                consumer.reads,
                log()
            );
        }
        assert_eq!(self.world.group.value().members.len(), ids.len(), "who is gone is fenced\n{}", log());
    }
}

#[test]
fn no_partition_has_two_readers_and_all_settles() {
    for seed in 0..30 {
        let mut simulation = Simulation::new(seed, false);
        for _ in 0..3 {
            for _ in 0..250 {
                simulation.act();
            }
            let loses = simulation.loses;
            simulation.settle();
            simulation.loses = loses;
        }
    }
}

#[test]
fn a_seed_says_it_all() {
    let run = || {
        let mut simulation = Simulation::new(7, true);
        for _ in 0..400 {
            simulation.act();
        }
        (simulation.log, simulation.world.group.value().clone())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_same_holds_with_members_of_both_protocols() {
    for seed in 1_000..1_030 {
        let mut simulation = Simulation::new(seed, true);
        for _ in 0..400 {
            simulation.act();
        }
        simulation.settle();
    }
}

/// A consumer group of classic members only becomes a classic group and back without a change.
#[test]
fn groups_change_their_protocol_back_and_forth() {
    let mut world = World::new(&[("t", 4)]);
    world.join("n", &["t"]);
    for id in ["c", "d"] {
        world.join_classic(&join_group(id, &["t"], &[])).unwrap();
    }
    world.send(&leaving("n")).unwrap();
    let there: ClassicGroupValue = world.with(|group, ctx| group.to_classic(ctx)).unwrap().group;
    world.group = world.with(|_, ctx| ConsumerGroup::from_classic(&there, ctx)).unwrap();
    let back = world.with(|group, ctx| group.to_classic(ctx)).unwrap();
    assert_eq!(back.group.members, there.members);
    assert_eq!((back.group.generation, back.rebalance), (there.generation, false));
}
