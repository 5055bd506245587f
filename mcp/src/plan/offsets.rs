//! A plan about the committed offsets of a group.

use std::collections::BTreeMap;

use super::command::tool;
use super::{Difference, Draft, Kind, Rollback, State, Violation};

/// Where to set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the log start.
    Earliest,
    /// To the end.
    Latest,
    /// To this offset.
    Offset(i64),
}

/// What is known of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What is committed, if anything.
    pub committed: Option<i64>,
    /// Log start and end, if they are known.
    pub marks: Option<(i64, i64)>,
}

/// What is known of a group and a topic that a plan is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The group's id.
    pub group: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id.
    pub topic_id: String,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Members of the group.
    pub members: usize,
    /// The partitions that are to be set.
    pub places: BTreeMap<u32, Place>,
    /// An address of a broker, if the caller may see it.
    pub bootstrap: Option<String>,
}

/// The state that a plan rests on. Ends of partitions are not part of it: they move all the time.
pub fn state(facts: &Facts) -> State {
    let mut state = State::new();
    state.insert("topic_id".to_owned(), facts.topic_id.as_str().into());
    state.insert("members".to_owned(), facts.members.into());
    for (partition, place) in &facts.places {
        state.insert(name_of(*partition), place.committed.into());
    }
    state
}

fn name_of(partition: u32) -> String {
    format!("offset {partition}")
}

/// Sets the committed offsets of a group.
pub fn reset(facts: &Facts, to: To) -> Draft {
    let mut violations = Vec::new();
    if facts.members > 0 {
        let why =
            format!("the group has {} members: offsets can be set only while it has none", facts.members);
        violations.push(Violation::blocking("group_active", why));
    }
    let (mut desired, mut diff) = (State::new(), Vec::new());
    let (mut again, mut skipped, mut never, mut blind) = (0_i64, 0_i64, 0, 0);
    for (partition, place) in &facts.places {
        let Some((start, end)) = place.marks else {
            blind += 1;
            continue;
        };
        let wanted = match to {
            To::Earliest => start,
            To::Latest => end,
            To::Offset(offset) => offset,
        };
        if !(start..=end).contains(&wanted) {
            let why = format!(
                "partition {partition} has offsets from {start} to {end}, and {wanted} is not one of them"
            );
            violations.push(Violation::blocking("offset_outside_of_log", why));
        }
        match place.committed {
            Some(now) if now > wanted => again += (now.min(end) - wanted.max(start)).max(0),
            Some(now) => skipped += wanted - now.max(start).min(wanted),
            None => never += 1,
        }
        desired.insert(name_of(*partition), wanted.into());
        if place.committed != Some(wanted) {
            diff.push(Difference {
                what: name_of(*partition),
                before: place.committed.into(),
                after: wanted.into(),
            });
        }
    }
    if blind > 0 {
        let why = format!("where {blind} partitions begin and end is not known yet");
        violations.push(Violation::blocking("ends_unknown", why));
    }
    if diff.is_empty() && blind == 0 {
        violations.push(Violation::blocking("nothing_to_do", "the group's offsets are there already"));
    }
    let mut impact =
        vec![format!("{again} records are read again; {skipped} records are skipped and stay unread")];
    if again > 0 {
        impact.push("what is read again is processed twice, unless the application can tell".to_owned());
    }
    if never > 0 {
        impact.push(format!("{never} partitions had no commit and get one"));
    }
    if to == To::Latest {
        impact.push("the ends move on: the commands take them as they are then".to_owned());
    }
    let (commands, verification, rollback) = commands(facts, to, never);
    Draft {
        kind: Kind::ResetOffsets,
        topic: facts.topic.clone(),
        group: Some(facts.group.clone()),
        current: state(facts),
        desired,
        at_least: to == To::Latest,
        diff,
        impact,
        violations,
        commands,
        verification,
        rollback,
    }
}

fn commands(facts: &Facts, to: To, never: usize) -> (Vec<String>, Vec<String>, Rollback) {
    let bootstrap = facts.bootstrap.as_deref();
    // All partitions need no list.
    let is_all = u32::try_from(facts.places.len()).is_ok_and(|n| n == facts.partitions);
    let topic = if is_all {
        facts.topic.clone()
    } else {
        let list: Vec<String> = facts.places.keys().map(ToString::to_string).collect();
        format!("{}:{}", facts.topic, list.join(","))
    };
    let base = ["--group", &facts.group, "--topic", &topic, "--reset-offsets"];
    let number;
    let target: &[&str] = match to {
        To::Earliest => &["--to-earliest"],
        To::Latest => &["--to-latest"],
        To::Offset(offset) => {
            number = offset.to_string();
            &["--to-offset", &number]
        }
    };
    let run = |more: &[&str]| {
        let arguments: Vec<&str> = base.iter().chain(target).chain(more).copied().collect();
        tool("kafka-consumer-groups.sh", bootstrap, &arguments)
    };
    let committed = facts.places.iter().filter_map(|(p, place)| Some((p, place.committed?)));
    let rows: Vec<String> =
        committed.map(|(partition, offset)| format!("{},{partition},{offset}\\n", facts.topic)).collect();
    let file = "offsets-before.csv";
    let restore = ["--group", &facts.group, "--reset-offsets", "--from-file", file, "--execute"];
    let describe = tool("kafka-consumer-groups.sh", bootstrap, &["--describe", "--group", &facts.group]);
    let note = if never > 0 {
        "partitions that had no commit keep the one that they got; consumers must be stopped for it, too"
    } else {
        "consumers must be stopped for it, too; what was processed meanwhile stays processed"
    };
    let rollback = if rows.is_empty() {
        let note = "nothing was committed, so there is nothing to go back to; --delete-offsets takes the commits away";
        Rollback { possible: false, commands: Vec::new(), note: note.to_owned() }
    } else {
        let save = format!("printf {} > {file}", super::command::quoted(&rows.concat()));
        let commands = vec![save, tool("kafka-consumer-groups.sh", bootstrap, &restore)];
        Rollback { possible: true, commands, note: note.to_owned() }
    };
    (vec![run(&["--dry-run"]), run(&["--execute"])], vec![describe], rollback)
}
