//! Merging, trims and deletion of one partition as a small model, which is tried in every order.
//!
//! What is modelled is what `metadata/src/state/merge.rs`, `broker/src/merge/` and
//! `broker/src/jobs/` do, where a step is one request to the store or to etcd, or one record that a
//! broker takes over:
//!
//! ```text
//!   read the inputs ─▶ PUT ─▶ record, with the exact inputs ─▶ applied: replaced, or refused
//!   trim: a record     snapshot: the list in etcd moves        collect: what died before every listed snapshot
//! ```
//!
//! Brokers take records over late, so they merge and collect by what was true some time ago. How a
//! record is committed is [`Protocol`](crate::Protocol)'s matter: here it is one step.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

/// The number of an object.
pub type Object = u8;
/// An offset; a flush has one record.
pub type Offset = u8;

/// A safeguard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A merge is accepted if something of its offsets is there, whatever its inputs were.
    AcceptChangedInputs,
    /// A merge is accepted although a trim has taken its first inputs.
    CrossTrim,
    /// What has died is deleted while a listed snapshot still needs it.
    DeleteAtOnce,
    /// What a refused merge has written is not noted as dead.
    ForgetRefused,
    /// A merge leaves out its last input.
    DropInput,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Brokers.
    pub brokers: u8,
    /// Flushes.
    pub flushes: u8,
    /// Merges that are begun.
    pub merges: u8,
    /// Trims.
    pub trims: u8,
    /// Snapshots.
    pub snapshots: u8,
    /// Brokers that die and start anew.
    pub restarts: u8,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Merging {
    /// How much may happen.
    pub limits: Limits,
    /// What is wrong, if anything is.
    pub flaw: Option<Flaw>,
}

/// A range of the partition: where it is, and its offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// The object that holds it.
    pub object: Object,
    /// Its first offset.
    pub first: Offset,
    /// The offset behind its last.
    pub end: Offset,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Record {
    /// A range is added at the end.
    Flush(Object),
    /// A range takes the place of these.
    Merge(Vec<Range>, Object),
    /// Nothing before this offset is kept.
    Trim(Offset),
}

/// What follows from so many records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// How many.
    pub revision: u8,
    /// Where the log starts.
    pub start: Offset,
    /// Its ranges, in order.
    pub ranges: Vec<Range>,
    /// Objects that nothing needs any more, and since when.
    pub dead: BTreeMap<Object, u8>,
}

/// A broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broker {
    /// What it knows.
    pub view: View,
    /// A merge that is written and not committed: its inputs and its object.
    pub merge: Option<(Vec<Range>, Object)>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct World {
    /// The log.
    pub log: Vec<Record>,
    /// Objects in the store, and the offsets that are in each.
    pub objects: BTreeMap<Object, BTreeSet<Offset>>,
    /// Objects that were ever written.
    pub written: u8,
    /// The snapshots that are listed, the newest first: as many as are kept.
    pub listed: Vec<View>,
    /// Brokers.
    pub brokers: Vec<Broker>,
    /// What has been used up: flushes, merges, trims, snapshots, restarts.
    pub used: [u8; 5],
    /// Somebody deleted an object.
    pub has_deleted: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A broker writes a record.
    Flush,
    /// A broker takes over the next record.
    Apply(u8),
    /// A broker reads two neighbours, from this one on, and writes what becomes of them.
    Merge(u8, u8),
    /// A broker commits that.
    Commit(u8),
    /// A broker trims its first range.
    Trim(u8),
    /// A broker writes a snapshot of what it knows, and the list in etcd moves.
    Snapshot(u8),
    /// A broker deletes what has died.
    Collect(u8),
    /// A broker dies, and starts from the newest snapshot.
    Restart(u8),
}

/// Snapshots that are kept.
const KEPT: usize = 2;

impl View {
    fn end(&self) -> Offset {
        self.ranges.last().map_or(self.start, |range| range.end)
    }

    fn first(&self) -> Offset {
        self.ranges.first().map_or(self.start, |range| range.first)
    }

    fn apply(&mut self, record: &Record, flaw: Option<Flaw>) {
        self.revision += 1;
        match record {
            Record::Flush(object) => {
                let first = self.end();
                self.ranges.push(Range { object: *object, first, end: first + 1 });
            }
            Record::Merge(inputs, object) => self.merge(inputs, *object, flaw),
            Record::Trim(to) => {
                self.start = self.start.max(*to);
                let start = self.start;
                let (gone, left): (Vec<Range>, Vec<Range>) =
                    self.ranges.iter().partition(|range| range.end <= start);
                self.ranges = left;
                self.note_dead(&gone);
            }
        }
    }

    fn merge(&mut self, inputs: &[Range], object: Object, flaw: Option<Flaw>) {
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else { return };
        let place = self.ranges.iter().position(|range| range == first);
        let is_there = place.is_some_and(|at| self.ranges.get(at..at + inputs.len()) == Some(inputs));
        let merged = Range { object, first: first.first, end: last.end };
        let within = |range: &&Range| range.first >= merged.first && range.end <= merged.end;
        let found: Vec<Range> = self.ranges.iter().filter(within).copied().collect();
        let is_accepted = match flaw {
            Some(Flaw::AcceptChangedInputs) => !found.is_empty(),
            Some(Flaw::CrossTrim) => is_there || found.last() == Some(last),
            _ => is_there,
        };
        if !is_accepted {
            if flaw != Some(Flaw::ForgetRefused) {
                self.dead.insert(object, self.revision);
            }
            return;
        }
        let at = self.ranges.iter().position(|range| found.contains(range)).unwrap_or(0);
        self.ranges.retain(|range| !found.contains(range));
        self.ranges.insert(at, merged);
        self.note_dead(&found);
    }

    fn note_dead(&mut self, ranges: &[Range]) {
        for range in ranges {
            if !self.ranges.iter().any(|left| left.object == range.object) {
                self.dead.insert(range.object, self.revision);
            }
        }
    }
}

impl World {
    /// What follows from all records.
    fn truth(&self, flaw: Option<Flaw>) -> View {
        let mut view = View::default();
        self.log.iter().for_each(|record| view.apply(record, flaw));
        view
    }

    fn put(&mut self, offsets: impl IntoIterator<Item = Offset>) -> Object {
        let object = self.written;
        self.written += 1;
        self.objects.insert(object, offsets.into_iter().collect());
        object
    }

    /// Whether an object has all that a range says.
    fn holds(&self, range: Range) -> bool {
        self.objects
            .get(&range.object)
            .is_some_and(|offsets| (range.first..range.end).all(|offset| offsets.contains(&offset)))
    }
}

impl Merging {
    /// Whether there is so much left.
    fn may(self, world: &World, what: usize) -> bool {
        let Limits { flushes, merges, trims, snapshots, restarts, .. } = self.limits;
        world.used[what] < [flushes, merges, trims, snapshots, restarts][what]
    }

    fn collectable(self, world: &World, broker: u8) -> Vec<Object> {
        let view = &world.brokers[usize::from(broker)].view;
        let oldest = world.listed.last().map_or(0, |snapshot| snapshot.revision);
        let is_ripe = |died: u8| self.flaw == Some(Flaw::DeleteAtOnce) || died <= oldest;
        let dead = view.dead.iter().filter(|(_, died)| is_ripe(**died));
        dead.map(|(object, _)| *object).filter(|object| world.objects.contains_key(object)).collect()
    }
}

impl Model for Merging {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let brokers = (0..self.limits.brokers).map(|_| Broker::default()).collect();
        vec![World { brokers, ..World::default() }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if self.may(world, 0) {
            steps.push(Step::Flush);
        }
        for (number, broker) in (0..).zip(&world.brokers) {
            let View { revision, ranges, .. } = &broker.view;
            if usize::from(*revision) < world.log.len() {
                steps.push(Step::Apply(number));
            }
            match &broker.merge {
                Some(_) => steps.push(Step::Commit(number)),
                None if self.may(world, 1) => {
                    steps.extend((1..ranges.len()).map(|second| Step::Merge(number, second as u8 - 1)));
                }
                None => {}
            }
            if self.may(world, 2) && !ranges.is_empty() {
                steps.push(Step::Trim(number));
            }
            let newest = world.listed.first().map_or(0, |snapshot| snapshot.revision);
            if self.may(world, 3) && *revision > newest {
                steps.push(Step::Snapshot(number));
            }
            if self.may(world, 4) {
                steps.push(Step::Restart(number));
            }
            if !self.collectable(world, number).is_empty() {
                steps.push(Step::Collect(number));
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        let flaw = self.flaw;
        match step {
            Step::Flush => {
                next.used[0] += 1;
                let end = world.truth(flaw).end();
                let object = next.put([end]);
                next.log.push(Record::Flush(object));
            }
            Step::Apply(number) => {
                let view = &mut next.brokers[usize::from(number)].view;
                view.apply(&world.log[usize::from(view.revision)], flaw);
            }
            Step::Merge(number, at) => {
                next.used[1] += 1;
                let ranges = &world.brokers[usize::from(number)].view.ranges;
                let inputs = ranges[usize::from(at)..usize::from(at) + 2].to_vec();
                // What is not there as the log says is left alone.
                if !inputs.iter().all(|range| world.holds(*range)) {
                    return None;
                }
                let copied = if flaw == Some(Flaw::DropInput) { &inputs[..1] } else { &inputs[..] };
                let object = next.put(copied.iter().flat_map(|range| range.first..range.end));
                next.brokers[usize::from(number)].merge = Some((inputs, object));
            }
            Step::Commit(number) => {
                let (inputs, object) = next.brokers[usize::from(number)].merge.take()?;
                next.log.push(Record::Merge(inputs, object));
            }
            Step::Trim(number) => {
                next.used[2] += 1;
                let first = *world.brokers[usize::from(number)].view.ranges.first()?;
                next.log.push(Record::Trim(first.end));
            }
            Step::Snapshot(number) => {
                next.used[3] += 1;
                next.listed.insert(0, world.brokers[usize::from(number)].view.clone());
                next.listed.truncate(KEPT);
            }
            Step::Collect(number) => {
                next.has_deleted = true;
                for object in self.collectable(world, number) {
                    next.objects.remove(&object);
                }
            }
            Step::Restart(number) => {
                next.used[4] += 1;
                let view = world.listed.first().cloned().unwrap_or_default();
                next.brokers[usize::from(number)] = Broker { view, merge: None };
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "the log has every record from its start on, once",
                |model: &Self, world: &World| {
                    let truth = world.truth(model.flaw);
                    let is_dense = truth.ranges.windows(2).all(|pair| pair[0].end == pair[1].first);
                    truth.first() <= truth.start && is_dense && truth.end() == world.used[0]
                },
            ),
            Property::always("what the log names is there", |model: &Self, world: &World| {
                world.truth(model.flaw).ranges.iter().all(|range| world.holds(*range))
            }),
            Property::always("what was trimmed does not come back", |model: &Self, world: &World| {
                let mut view = View::default();
                world.log.iter().all(|record| {
                    let before = view.first();
                    view.apply(record, model.flaw);
                    view.first() >= before
                })
            }),
            Property::always("what a listed snapshot names is there", |_, world: &World| {
                world.listed.iter().flat_map(|snapshot| &snapshot.ranges).all(|range| world.holds(*range))
            }),
            Property::always("what nothing names is noted as dead", |model: &Self, world: &World| {
                let truth = world.truth(model.flaw);
                let under_way = |object: &Object| {
                    world.brokers.iter().any(|b| b.merge.as_ref().is_some_and(|(_, own)| own == object))
                };
                // What a process has written that died is an orphan, which is another collector's.
                world.used[4] > 0
                    || world.objects.keys().all(|object| {
                        truth.dead.contains_key(object)
                            || truth.ranges.iter().any(|range| range.object == *object)
                            || under_way(object)
                    })
            }),
            Property::sometimes("a merge is accepted", |model: &Self, world: &World| {
                world.truth(model.flaw).ranges.iter().any(|range| range.end > range.first + 1)
            }),
            Property::sometimes("a merge is refused", |_, world: &World| {
                let is_refused = |(at, record): (usize, &Record)| {
                    let mut view = View::default();
                    world.log[..at].iter().for_each(|before| view.apply(before, None));
                    let before = view.ranges.len();
                    view.apply(record, None);
                    matches!(record, Record::Merge(..)) && view.ranges.len() == before
                };
                world.log.iter().enumerate().any(is_refused)
            }),
            Property::sometimes("an object is deleted", |_, world: &World| world.has_deleted),
        ]
    }
}
