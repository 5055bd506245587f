//! The commit protocol as a small model, which is tried in every order of every step that it can
//! take.
//!
//! What is modelled is what `metadata/src/commit/`, `metadata/src/brokers.rs`,
//! `metadata/src/snapshot/maintain.rs` and `broker/src/jobs/gc.rs` do, step by step, where a step
//! is one request to etcd or to the store, one message, or one thing that a broker does by itself:
//!
//! ```text
//!   PUT ─▶ transaction (registration and head compared, head advanced) ─▶ applied from the watch ─▶ acknowledged
//!           └─ answer lost ─▶ head and registration looked up ─▶ committed, sent again, or refused
//! ```
//!
//! beside that: requests that arrive late or never, leases that end, processes that die and are
//! replaced under the same node id, orphans that are collected, snapshots, trims, and incarnations
//! that are forgotten. A process that stands still needs no step of its own: in every state it may
//! be somebody else's turn.
//!
//! Not modelled: several records in one transaction, producers' sequence numbers, time. Objects
//! that are merged and die have a model of their own, [`merging`].
//!
//! The properties are the invariants 1, 2, 5 and 6 of ARCHITECTURE.md, and 4 as far as the model
//! derives states. Each safeguard can be taken away by a [`Flaw`]; then one of them fails, which
//! the tests demand.

pub mod merging;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use stateright::{Model, Property};

pub use crate::step::Step;

/// The number of an object, which is unique: its key has a random part.
pub type Object = u8;
/// What etcd calls the create revision of a registration.
pub type Incarnation = u8;
/// A process, which is one start of a broker.
pub type Process = u8;
/// The number of a record within its incarnation, from 1 on.
pub type Sequence = u8;

/// A safeguard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A commit does not compare the registration.
    NoCompareOfRegistration,
    /// A commit does not compare the head.
    NoCompareOfHead,
    /// A commit whose answer was lost is sent again under the next number.
    RetryUnderNextNumber,
    /// A commit is acknowledged before it is sent.
    AckBeforeCommit,
    /// The collector looks into the state before it asks which brokers are registered.
    StateBeforeRegistration,
    /// The collector looks into its state as it is, without the barrier.
    NoBarrier,
    /// A node id is taken over by a put over the registration that is there, which keeps its create
    /// revision.
    PutOverRegistration,
    /// The log is trimmed up to a snapshot before that is where brokers start from.
    TrimBeforePointer,
    /// A refusal is believed although nothing is left that would tell of an earlier send.
    BelieveRefusalWithoutHead,
    /// An object is deleted as soon as an answer is lost.
    DeleteWhenUnknown,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Node ids, each with one process at a time, or two while one takes over.
    pub nodes: u8,
    /// Objects that are written, all together.
    pub objects: u8,
    /// Registrations, all together.
    pub registrations: u8,
    /// Leases that end.
    pub expiries: u8,
    /// Processes that are started after the first one of each node; the one before has died, or
    /// stands still.
    pub restarts: u8,
    /// Answers that are lost.
    pub losses: u8,
    /// Snapshots.
    pub snapshots: u8,
    /// Passes of the collector of orphans.
    pub collections: u8,
    /// Incarnations that are forgotten.
    pub retirements: u8,
    /// Times that a broker throws its state away and loads it anew.
    pub rebuilds: u8,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// How much may happen.
    pub limits: Limits,
    /// What is wrong, if anything is.
    pub flaw: Option<Flaw>,
}

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// Its number.
    pub sequence: Sequence,
    /// What it names; `None` for one that says that an incarnation is forgotten.
    pub object: Option<Object>,
}

/// A snapshot: what a broker had derived from so many records.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Snapshot {
    /// Records that it covers.
    pub revision: u8,
    /// Objects in the order of their offsets.
    pub derived: Vec<Object>,
    /// The head of each incarnation.
    pub heads: BTreeMap<Incarnation, Sequence>,
}

/// What is in etcd, and in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The registration of each node: its create revision, and the process that put it last.
    pub registered: BTreeMap<u8, (Incarnation, Process)>,
    /// Create revisions that were given out.
    pub incarnations: u8,
    /// The last number of each incarnation.
    pub heads: BTreeMap<Incarnation, Sequence>,
    /// Every record that was ever committed, in order. A watch brings them all; a load only those
    /// that are not trimmed.
    pub log: Vec<Record>,
    /// Which of them are deleted.
    pub trimmed: BTreeSet<u8>,
    /// The snapshots that are listed, the newest first.
    pub listed: Vec<Snapshot>,
    /// How often the list was changed.
    pub list_version: u8,
    /// Objects that exist.
    pub objects: BTreeSet<Object>,
}

/// What a process has derived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct View {
    /// Records that it has applied, or that its snapshot covers.
    pub revision: u8,
    /// Objects in the order of their offsets.
    pub derived: Vec<Object>,
    /// The last number of each incarnation that it has applied.
    pub heads: BTreeMap<Incarnation, Sequence>,
}

/// What a process does about its object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Writing {
    /// Nothing.
    #[default]
    Idle,
    /// Its PUT is under way.
    Putting(Object),
    /// It is in the store.
    Written(Object),
    /// Its commit was sent.
    Sent {
        /// What is committed.
        object: Object,
        /// Under which number.
        sequence: Sequence,
        /// How often it was sent before, without an answer.
        attempt: u8,
    },
    /// It is committed, and not yet applied by this process.
    Committed(Object),
}

/// What a process that collects orphans has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Collecting {
    /// It does not.
    #[default]
    Idle,
    /// What was in the store.
    Listed(BTreeSet<(Incarnation, Object)>),
    /// Without those whose broker is registered; and the heads that must be applied before the next
    /// step.
    Unregistered(BTreeSet<(Incarnation, Object)>, u8),
}

/// What a process that writes a snapshot has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Snapshotting {
    /// Nothing.
    #[default]
    Idle,
    /// It is in the store; the list was changed so often before this began.
    Written(Snapshot, u8),
    /// The list is moved; what the second newest covers may be trimmed.
    Moved(BTreeMap<Incarnation, Sequence>),
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broker {
    /// Its node id.
    pub node: u8,
    /// Its registration, as far as it knows.
    pub session: Option<Incarnation>,
    /// The last number that it has committed under that.
    pub head: Sequence,
    /// What it has derived.
    pub view: View,
    /// Its object.
    pub writing: Writing,
    /// Its collection.
    pub collecting: Collecting,
    /// Its snapshot.
    pub snapshotting: Snapshotting,
}

/// A transaction that was sent and may arrive, at any time or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Commit {
    /// Who sent it.
    pub process: Process,
    /// Its node.
    pub node: u8,
    /// The registration that it compares.
    pub incarnation: Incarnation,
    /// The record's number; the head that it compares is one less.
    pub sequence: Sequence,
    /// What the record names.
    pub object: Object,
    /// How often it was sent before.
    pub attempt: u8,
}

/// What etcd answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    /// Whom.
    pub process: Process,
    /// About which number of which incarnation.
    pub number: (Incarnation, Sequence),
    /// To which attempt.
    pub attempt: u8,
    /// Whether it was executed; if not, whether the registration was there, and the head.
    pub refused: Option<(bool, Sequence)>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct World {
    /// etcd and the store.
    pub stored: Stored,
    /// Processes that run.
    pub brokers: BTreeMap<Process, Broker>,
    /// Processes that were ever started.
    pub started: u8,
    /// PUTs under way: who, for which object of which incarnation. They arrive late or never.
    pub puts: BTreeSet<(Process, Incarnation, Object)>,
    /// Transactions under way.
    pub commits: BTreeSet<Commit>,
    /// Answers under way.
    pub answers: BTreeSet<Answer>,
    /// Whose each object is.
    pub owners: BTreeMap<Object, Incarnation>,
    /// Objects that were acknowledged, with their offsets.
    pub acknowledged: BTreeSet<(Object, u8)>,
    /// A commit was executed of a process that was not registered.
    pub committed_unregistered: bool,
    /// What has been used up of the limits.
    pub used: Used,
}

/// See [`Limits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Used {
    pub(crate) expiries: u8,
    pub(crate) restarts: u8,
    pub(crate) losses: u8,
    pub(crate) snapshots: u8,
    pub(crate) collections: u8,
    pub(crate) retirements: u8,
    pub(crate) rebuilds: u8,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Stored {
    /// What a broker derives that reads everything now. `None` if records are missing.
    pub fn load(&self) -> Option<View> {
        self.load_from(self.listed.first())
    }

    /// What follows from a snapshot, or from nothing, and the records after it that are still
    /// there.
    fn load_from(&self, snapshot: Option<&Snapshot>) -> Option<View> {
        let mut view = match snapshot {
            None => View::default(),
            Some(snapshot) => View {
                revision: snapshot.revision,
                derived: snapshot.derived.clone(),
                heads: snapshot.heads.clone(),
            },
        };
        for revision in view.revision..self.log.len() as u8 {
            if self.trimmed.contains(&revision) {
                return None;
            }
            view.apply(self.log[revision as usize]);
        }
        Some(view)
    }
}

impl View {
    /// Takes over the next record of the log.
    pub fn apply(&mut self, record: Record) {
        self.revision += 1;
        match record.object {
            None => {
                self.heads.remove(&record.incarnation);
            }
            Some(object) => {
                // A number that was applied does nothing.
                let head = self.heads.entry(record.incarnation).or_insert(0);
                if record.sequence > *head {
                    *head = record.sequence;
                    self.derived.push(object);
                }
            }
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::default();
        for node in 0..self.limits.nodes {
            world.brokers.insert(node, Broker { node, ..Broker::default() });
        }
        world.started = self.limits.nodes;
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        self.possible(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, &step).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("1: what was acknowledged is there, at its offset", |_, world: &World| {
                let truth = world.derived();
                world.acknowledged.iter().all(|(object, offset)| {
                    truth.get(usize::from(*offset)) == Some(object) && world.stored.objects.contains(object)
                })
            }),
            Property::always("2: nothing is there twice", |_, world: &World| {
                let truth = world.derived();
                truth.iter().collect::<BTreeSet<_>>().len() == truth.len()
            }),
            Property::always("4: all derive the same", |_, world: &World| {
                let truth = world.derived();
                let same = |derived: &[Object]| truth.starts_with(derived);
                world.brokers.values().all(|b| same(&b.view.derived))
                    && world.stored.load().is_none_or(|view| view.derived == truth)
            }),
            Property::always("5: who is not registered commits nothing", |_, world: &World| {
                !world.committed_unregistered
            }),
            Property::always("6: what a record names exists", |_, world: &World| {
                world.derived().iter().all(|object| world.stored.objects.contains(object))
            }),
            Property::always(
                "a broker can start from the newest snapshot, and from the one before",
                |_, world: &World| {
                    let stored = &world.stored;
                    (0..stored.listed.len().clamp(1, 2))
                        .all(|i| stored.load_from(stored.listed.get(i)).is_some())
                },
            ),
            Property::sometimes("something is acknowledged", |_, world: &World| {
                !world.acknowledged.is_empty()
            }),
        ]
    }
}

impl World {
    /// What follows from all records.
    fn derived(&self) -> Vec<Object> {
        let mut view = View::default();
        for record in &self.stored.log {
            view.apply(*record);
        }
        view.derived
    }
}
