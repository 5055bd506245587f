//! What can happen next, and what comes of it.

use std::collections::BTreeSet;

use crate::{
    Answer, Broker, Collecting, Commit, Flaw, Incarnation, Object, Process, Protocol, Record, Sequence,
    Snapshot, Snapshotting, View, World, Writing,
};

/// One step. Whoever is named takes it; the others stand still meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A process registers: a create, if its node id is free.
    Register(Process),
    /// A process finds its node id taken by another one, and deletes that registration.
    TakeOver(Process),
    /// The lease of a node's registration ends.
    Expire(u8),
    /// A process ends where it stands.
    Kill(Process),
    /// Another process of the same node is started, and loads everything.
    Start(u8),
    /// A process throws its state away and loads it anew.
    Rebuild(Process),
    /// A process begins to write an object.
    Put(Process),
    /// A PUT is executed.
    PutArrives(Process, Incarnation, Object),
    /// A process sends the commit of its object.
    Send(Process),
    /// A process whose session is over gives its object up.
    GiveUp(Process),
    /// A transaction is executed.
    CommitArrives(Commit),
    /// A process gets an answer.
    AnswerArrives(Answer),
    /// A process gives up waiting for an answer, and looks up head and registration.
    LookUp(Process),
    /// A process applies the next record.
    Apply(Process),
    /// A process lists the store.
    List(Process),
    /// A process reads who is registered.
    ReadRegistered(Process),
    /// A process deletes what it found to be orphans.
    Collect(Process),
    /// A process writes a snapshot.
    Snapshot(Process),
    /// A process puts its snapshot on the list.
    Move(Process),
    /// A process deletes the log that nobody needs any more.
    Trim(Process),
    /// A process forgets an incarnation that is gone.
    Retire(Process, Incarnation),
}

impl Protocol {
    /// Every step that might be taken; [`Self::take`] says whether it can.
    pub(crate) fn possible(&self, world: &World, steps: &mut Vec<Step>) {
        for (&p, broker) in &world.brokers {
            steps.extend([
                Step::Register(p),
                Step::TakeOver(p),
                Step::Kill(p),
                Step::Rebuild(p),
                Step::Put(p),
                Step::Send(p),
                Step::GiveUp(p),
                Step::LookUp(p),
                Step::Apply(p),
                Step::List(p),
                Step::ReadRegistered(p),
                Step::Collect(p),
                Step::Snapshot(p),
                Step::Move(p),
                Step::Trim(p),
            ]);
            steps.extend(broker.view.heads.keys().map(|i| Step::Retire(p, *i)));
        }
        for node in 0..self.limits.nodes {
            steps.extend([Step::Expire(node), Step::Start(node)]);
        }
        steps.extend(world.puts.iter().map(|(p, i, o)| Step::PutArrives(*p, *i, *o)));
        steps.extend(world.commits.iter().map(|c| Step::CommitArrives(*c)));
        steps.extend(world.answers.iter().map(|a| Step::AnswerArrives(*a)));
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Takes a step. Gives false, whatever has been changed, if it cannot be taken.
    pub(crate) fn take(&self, world: &mut World, step: &Step) -> bool {
        match *step {
            Step::Expire(node) => {
                spend(&mut world.used.expiries, self.limits.expiries)
                    && world.stored.registered.remove(&node).is_some()
            }
            Step::Kill(p) => {
                // Without one that takes its place nothing else would happen on that node.
                world.used.restarts < self.limits.restarts && world.brokers.remove(&p).is_some()
            }
            Step::Start(node) => self.start(world, node),
            Step::PutArrives(p, incarnation, object) => {
                world.puts.remove(&(p, incarnation, object));
                world.stored.objects.insert(object);
                if let Some(broker) = world.brokers.get_mut(&p)
                    && broker.writing == Writing::Putting(object)
                {
                    broker.writing = Writing::Written(object);
                }
                true
            }
            Step::CommitArrives(commit) => self.execute(world, commit),
            Step::AnswerArrives(answer) => self.answered(world, answer),
            Step::Register(p)
            | Step::TakeOver(p)
            | Step::Rebuild(p)
            | Step::Put(p)
            | Step::Send(p)
            | Step::GiveUp(p)
            | Step::LookUp(p)
            | Step::Apply(p)
            | Step::List(p)
            | Step::ReadRegistered(p)
            | Step::Collect(p)
            | Step::Snapshot(p)
            | Step::Move(p)
            | Step::Trim(p)
            | Step::Retire(p, _) => {
                // Taken out, so that the world can be changed beside it.
                let Some(mut broker) = world.brokers.remove(&p) else { return false };
                let done = self.take_as(world, p, &mut broker, step);
                world.brokers.insert(p, broker);
                done
            }
        }
    }

    fn take_as(&self, world: &mut World, p: Process, broker: &mut Broker, step: &Step) -> bool {
        match step {
            Step::Register(_) => self.register(world, p, broker),
            Step::TakeOver(_) => self.take_over(world, p, broker),
            Step::Rebuild(_) => {
                if !spend(&mut world.used.rebuilds, self.limits.rebuilds) {
                    return false;
                }
                if let Some(view) = world.stored.load() {
                    broker.view = view;
                }
                // Whoever waits for a record that lies in the snapshot now is not told an offset.
                if matches!(broker.writing, Writing::Committed(_)) {
                    broker.writing = Writing::Idle;
                }
                true
            }
            Step::Put(_) => {
                let Some(incarnation) = broker.session else { return false };
                let object = world.owners.len() as u8;
                if broker.writing != Writing::Idle || object >= self.limits.objects {
                    return false;
                }
                world.owners.insert(object, incarnation);
                world.puts.insert((p, incarnation, object));
                broker.writing = Writing::Putting(object);
                true
            }
            Step::Send(_) => self.send(world, p, broker),
            Step::GiveUp(_) => {
                let Writing::Written(object) = broker.writing else { return false };
                if broker.session == world.owners.get(&object).copied() {
                    return false;
                }
                world.stored.objects.remove(&object);
                broker.writing = Writing::Idle;
                true
            }
            Step::LookUp(_) => self.look_up(world, p, broker),
            Step::Apply(_) => {
                let Some(record) = world.stored.log.get(usize::from(broker.view.revision)) else {
                    return false;
                };
                broker.view.apply(*record);
                acknowledge(world, broker);
                true
            }
            Step::List(_) => self.list(world, broker),
            Step::ReadRegistered(_) => {
                let Collecting::Listed(mut listed) = std::mem::take(&mut broker.collecting) else {
                    return false;
                };
                listed.retain(|(i, _)| {
                    !world.stored.registered.values().any(|(registered, _)| registered == i)
                });
                let barrier = if self.has(Flaw::NoBarrier) { 0 } else { world.stored.log.len() as u8 };
                broker.collecting = Collecting::Unregistered(listed, barrier);
                true
            }
            Step::Collect(_) => {
                let Collecting::Unregistered(listed, barrier) = std::mem::take(&mut broker.collecting) else {
                    return false;
                };
                if broker.view.revision < barrier {
                    return false;
                }
                for (_, object) in listed {
                    if self.has(Flaw::StateBeforeRegistration) || !broker.view.derived.contains(&object) {
                        world.stored.objects.remove(&object);
                    }
                }
                true
            }
            Step::Snapshot(_) => {
                if broker.session.is_none()
                    || broker.snapshotting != Snapshotting::Idle
                    || !spend(&mut world.used.snapshots, self.limits.snapshots)
                {
                    return false;
                }
                let View { revision, derived, heads } = broker.view.clone();
                let snapshot = Snapshot { revision, derived, heads };
                broker.snapshotting = Snapshotting::Written(snapshot, world.stored.list_version);
                true
            }
            Step::Move(_) => move_list(world, p, broker),
            Step::Trim(_) => self.trim(world, p, broker),
            Step::Retire(_, incarnation) => self.retire(world, p, broker, *incarnation),
            _ => unreachable!("it is not a step of a process"),
        }
    }

    /// Which objects there are, and whose.
    fn list(&self, world: &mut World, broker: &mut Broker) -> bool {
        if broker.collecting != Collecting::Idle
            || !spend(&mut world.used.collections, self.limits.collections)
        {
            return false;
        }
        let mut listed: BTreeSet<(Incarnation, Object)> =
            world.stored.objects.iter().map(|o| (world.owners[o], *o)).collect();
        if self.has(Flaw::StateBeforeRegistration) {
            if usize::from(broker.view.revision) < world.stored.log.len() {
                return false;
            }
            listed.retain(|(_, object)| !broker.view.derived.contains(object));
        }
        broker.collecting = Collecting::Listed(listed);
        true
    }

    /// Another process of the node, beside the one that there may be: that one stands still, or was
    /// killed.
    fn start(&self, world: &mut World, node: u8) -> bool {
        let others = world.brokers.values().filter(|b| b.node == node).count();
        if others > 1 || !spend(&mut world.used.restarts, self.limits.restarts) {
            return false;
        }
        let Some(view) = world.stored.load() else { return false };
        world.brokers.insert(world.started, Broker { node, view, ..Broker::default() });
        world.started += 1;
        true
    }

    fn register(&self, world: &mut World, p: Process, broker: &mut Broker) -> bool {
        let stored = &mut world.stored;
        if broker.session.is_some()
            || stored.registered.contains_key(&broker.node)
            || stored.incarnations >= self.limits.registrations
        {
            return false;
        }
        stored.incarnations += 1;
        stored.registered.insert(broker.node, (stored.incarnations, p));
        (broker.session, broker.head) = (Some(stored.incarnations), 0);
        true
    }

    fn take_over(&self, world: &mut World, p: Process, broker: &mut Broker) -> bool {
        let Some(&(incarnation, other)) = world.stored.registered.get(&broker.node) else { return false };
        // A process that was registered before does not push another one out: it ends.
        if broker.session.is_some() || other >= p {
            return false;
        }
        if self.has(Flaw::PutOverRegistration) {
            world.stored.registered.insert(broker.node, (incarnation, p));
            let head = world.stored.heads.get(&incarnation).copied().unwrap_or(0);
            (broker.session, broker.head) = (Some(incarnation), head);
        } else {
            world.stored.registered.remove(&broker.node);
        }
        true
    }

    fn send(&self, world: &mut World, process: Process, broker: &mut Broker) -> bool {
        let Writing::Written(object) = broker.writing else { return false };
        let Some(incarnation) = broker.session.filter(|i| world.owners.get(&object) == Some(i)) else {
            return false;
        };
        let (node, sequence, attempt) = (broker.node, broker.head + 1, 0);
        world.commits.insert(Commit { process, node, incarnation, sequence, object, attempt });
        if self.has(Flaw::AckBeforeCommit) {
            world.acknowledged.insert((object, broker.view.derived.len() as u8));
        }
        broker.writing = Writing::Sent { object, sequence, attempt };
        true
    }

    /// What etcd does.
    fn execute(&self, world: &mut World, commit: Commit) -> bool {
        world.commits.remove(&commit);
        let Commit { process, node, incarnation, sequence, object, attempt } = commit;
        let stored = &mut world.stored;
        let registered = stored.registered.get(&node).copied();
        let is_registered = registered.is_some_and(|(i, _)| i == incarnation);
        let head = stored.heads.get(&incarnation).copied().unwrap_or(0);
        let executes = (is_registered || self.has(Flaw::NoCompareOfRegistration))
            && (head + 1 == sequence || self.has(Flaw::NoCompareOfHead));
        if executes {
            stored.heads.insert(incarnation, sequence);
            stored.log.push(Record { incarnation, sequence, object: Some(object) });
            world.committed_unregistered |= registered != Some((incarnation, process));
        }
        let refused = (!executes).then_some((is_registered, head));
        world.answers.insert(Answer { process, number: (incarnation, sequence), attempt, refused });
        true
    }

    fn answered(&self, world: &mut World, answer: Answer) -> bool {
        world.answers.remove(&answer);
        let Some(mut broker) = world.brokers.remove(&answer.process) else { return true };
        // An answer that is not waited for any more comes to nobody.
        if let Writing::Sent { object, sequence, attempt } = broker.writing
            && (sequence, attempt) == (answer.number.1, answer.attempt)
            && broker.session == Some(answer.number.0)
        {
            let unknown = attempt > 0;
            match answer.refused {
                None => committed(world, &mut broker, object, sequence),
                Some((_, head)) if unknown && head >= sequence => {
                    committed(world, &mut broker, object, sequence);
                }
                Some((_, head)) => self.fenced(world, &mut broker, object, unknown, head),
            }
        }
        world.brokers.insert(answer.process, broker);
        true
    }

    /// No answer comes in time.
    fn look_up(&self, world: &mut World, process: Process, broker: &mut Broker) -> bool {
        let Writing::Sent { object, sequence, attempt } = broker.writing else { return false };
        let Some(incarnation) = broker.session else { return false };
        if !spend(&mut world.used.losses, self.limits.losses) {
            return false;
        }
        if self.has(Flaw::DeleteWhenUnknown) {
            world.stored.objects.remove(&object);
            broker.writing = Writing::Idle;
            return true;
        }
        let head = world.stored.heads.get(&incarnation).copied().unwrap_or(0);
        let registered = world.stored.registered.get(&broker.node).is_some_and(|(i, _)| *i == incarnation);
        if self.has(Flaw::RetryUnderNextNumber) {
            let (node, sequence, attempt) = (broker.node, head + 1, attempt + 1);
            world.commits.insert(Commit { process, node, incarnation, sequence, object, attempt });
            broker.writing = Writing::Sent { object, sequence, attempt };
        } else if head >= sequence {
            committed(world, broker, object, sequence);
        } else if registered {
            let (node, attempt) = (broker.node, attempt + 1);
            world.commits.insert(Commit { process, node, incarnation, sequence, object, attempt });
            broker.writing = Writing::Sent { object, sequence, attempt };
        } else {
            self.fenced(world, broker, object, true, head);
        }
        true
    }

    /// The registration is gone, and the commit was not seen to be executed.
    fn fenced(&self, world: &mut World, broker: &mut Broker, object: Object, unknown: bool, head: Sequence) {
        let nothing_tells = unknown && head == 0 && !self.has(Flaw::BelieveRefusalWithoutHead);
        if !nothing_tells {
            world.stored.objects.remove(&object);
        }
        (broker.session, broker.writing) = (None, Writing::Idle);
    }

    fn trim(&self, world: &mut World, p: Process, broker: &mut Broker) -> bool {
        let heads = match (&broker.snapshotting, self.has(Flaw::TrimBeforePointer)) {
            (Snapshotting::Moved(heads), false) => heads.clone(),
            (Snapshotting::Written(..), true) => match world.stored.listed.first() {
                // What will be the second newest.
                Some(newest) => newest.heads.clone(),
                None => return false,
            },
            _ => return false,
        };
        if !is_registered(world, p, broker) {
            return false;
        }
        let mut trimmed = 0;
        for (revision, record) in (0..).zip(&world.stored.log) {
            let covered = heads.get(&record.incarnation).is_some_and(|head| record.sequence <= *head);
            if covered && world.stored.trimmed.insert(revision) {
                trimmed += 1;
            }
        }
        if let Snapshotting::Moved(_) = broker.snapshotting {
            broker.snapshotting = Snapshotting::Idle;
            return true;
        }
        trimmed > 0
    }

    fn retire(&self, world: &mut World, p: Process, broker: &Broker, incarnation: Incarnation) -> bool {
        let stored = &world.stored;
        let own = || (0..).zip(&stored.log).filter(|(_, r)| r.incarnation == incarnation);
        let gone = !stored.registered.values().any(|(i, _)| *i == incarnation);
        let trimmed = own().all(|(revision, _)| stored.trimmed.contains(&revision));
        if !gone
            || !trimmed
            || usize::from(broker.view.revision) < stored.log.len()
            || !is_registered(world, p, broker)
            || !spend(&mut world.used.retirements, self.limits.retirements)
        {
            return false;
        }
        world.stored.heads.remove(&incarnation);
        world.stored.log.push(Record { incarnation, sequence: 0, object: None });
        true
    }
}

/// Every transaction of a broker compares its registration.
fn is_registered(world: &World, p: Process, broker: &Broker) -> bool {
    let registered = world.stored.registered.get(&broker.node);
    broker.session.is_some_and(|session| registered == Some(&(session, p)))
}

/// Puts a snapshot on the list, if that is as it was, and the snapshot not older than what is
/// there.
fn move_list(world: &mut World, p: Process, broker: &mut Broker) -> bool {
    let Snapshotting::Written(snapshot, version) = std::mem::take(&mut broker.snapshotting) else {
        return false;
    };
    let newest = world.stored.listed.first();
    let is_older = newest.is_some_and(|newest| newest.revision > snapshot.revision);
    if version != world.stored.list_version || is_older || !is_registered(world, p, broker) {
        // It is for nothing.
        return true;
    }
    world.stored.listed.insert(0, snapshot);
    world.stored.listed.truncate(3);
    world.stored.list_version += 1;
    if let Some(second) = world.stored.listed.get(1) {
        broker.snapshotting = Snapshotting::Moved(second.heads.clone());
    }
    true
}

fn committed(world: &mut World, broker: &mut Broker, object: Object, sequence: Sequence) {
    (broker.head, broker.writing) = (sequence, Writing::Committed(object));
    acknowledge(world, broker);
}

/// Acknowledges what is committed, once it is applied.
fn acknowledge(world: &mut World, broker: &mut Broker) {
    let Writing::Committed(object) = broker.writing else { return };
    if let Some(offset) = broker.view.derived.iter().position(|o| *o == object) {
        world.acknowledged.insert((object, offset as u8));
        broker.writing = Writing::Idle;
    }
}

fn spend(used: &mut u8, limit: u8) -> bool {
    *used += 1;
    *used <= limit
}
