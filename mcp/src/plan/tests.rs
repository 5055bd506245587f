//! Plans by table: what is refused, what follows, what is run, and when the live state is the
//! plan's.

use std::collections::BTreeMap;

use serde_json::json;

use super::offsets::{Place, To};
use super::*;

fn configs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

fn set(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    configs(pairs).into_iter().collect()
}

fn orders() -> topic::Facts {
    topic::Facts {
        name: "orders".to_owned(),
        existing: Some(("id-1".to_owned(), 3, configs(&[("retention.ms", "86400000")]))),
        bytes: Some(vec![500, 100, 0]),
        consumers: vec![("shop".to_owned(), Some(7)), ("done".to_owned(), Some(0))],
        ..topic::Facts::default()
    }
}

fn codes(draft: &Draft) -> Vec<&'static str> {
    draft.violations.iter().map(|v| v.code).collect()
}

#[test]
fn what_the_brokers_would_refuse_is_refused_here() {
    let new = |name: &str| topic::Facts { name: name.to_owned(), ..topic::Facts::default() };
    for (draft, code) in [
        (topic::create(&orders(), 1, &[]), "topic_exists"),
        (topic::create(&new("a b"), 1, &[]), "name_refused"),
        (topic::create(&new(".."), 1, &[]), "name_refused"),
        (topic::create(&topic::Facts { collides: true, ..new("a.b") }, 1, &[]), "name_collides"),
        (topic::create(&new("a"), 1, &set(&[("no.such", "1")])), "config_refused"),
        (topic::create(&new("a"), 1, &set(&[("retention.ms", "soon")])), "config_refused"),
        (topic::update(&orders(), &set(&[("retention.ms", "86400000")]), &[]), "nothing_to_do"),
        (topic::update(&orders(), &[], &["retention.bytes".to_owned()]), "not_set"),
        (
            topic::update(&orders(), &set(&[("retention.ms", "5")]), &["retention.ms".to_owned()]),
            "contradiction",
        ),
        (topic::add_partitions(&orders(), 3), "not_more"),
        (topic::add_partitions(&orders(), 100_001), "too_many"),
    ] {
        assert!(codes(&draft).contains(&code), "{code}: {:?}", draft.violations);
        assert!(!draft.is_runnable(), "{code}");
    }
    for (draft, code) in [
        (topic::create(&new("a"), 2_000, &[]), "many_partitions"),
        (topic::create(&new("a"), 1, &set(&[("segment.bytes", "1000000")])), "config_without_effect"),
        (topic::create(&new("a"), 1, &set(&[("cleanup.policy", "compact")])), "compaction_needs_keys"),
        (topic::update(&orders(), &set(&[("retention.ms", "1000")]), &[]), "short_retention"),
        (topic::add_partitions(&orders(), 4), "keys_move"),
    ] {
        assert!(codes(&draft).contains(&code) && draft.is_runnable(), "{code}: {:?}", draft.violations);
    }
}

#[test]
fn the_commands_do_it_and_the_rollback_takes_it_back() {
    let new = topic::Facts {
        name: "new".to_owned(),
        bootstrap: Some("b1:9092".to_owned()),
        ..topic::Facts::default()
    };
    let created = topic::create(&new, 6, &set(&[("cleanup.policy", "compact,delete")]));
    assert_eq!(
        created.commands,
        [
            "kafka-topics.sh --bootstrap-server b1:9092 --create --topic new --partitions 6 --config cleanup.policy=compact,delete"
        ]
    );
    let draft = topic::update(
        &orders(),
        &set(&[("retention.bytes", "200"), ("cleanup.policy", "compact,delete")]),
        &["retention.ms".to_owned()],
    );
    assert_eq!(
        draft.commands,
        [
            "kafka-configs.sh --bootstrap-server \"$BOOTSTRAP\" --alter --entity-type topics --entity-name orders --add-config 'cleanup.policy=[compact,delete],retention.bytes=200' --delete-config retention.ms"
        ]
    );
    assert_eq!(
        draft.rollback.commands,
        [
            "kafka-configs.sh --bootstrap-server \"$BOOTSTRAP\" --alter --entity-type topics --entity-name orders --add-config retention.ms=86400000 --delete-config cleanup.policy,retention.bytes"
        ]
    );
    let impact = draft.impact.join("\n");
    assert!(
        impact.contains("about 300 bytes") && impact.contains("\"shop\"") && !impact.contains("done"),
        "{impact}"
    );
    let raised = topic::update(&orders(), &set(&[("retention.ms", "-1")]), &[]);
    assert!(raised.impact[0].contains("rises"), "{:?}", raised.impact);
    assert!(!topic::add_partitions(&orders(), 4).rollback.possible);
}

fn shop(members: usize) -> offsets::Facts {
    let place = |committed, start, end| Place { committed, marks: Some((start, end)) };
    offsets::Facts {
        group: "shop's".to_owned(),
        topic: "orders".to_owned(),
        topic_id: "id-1".to_owned(),
        partitions: 3,
        members,
        places: BTreeMap::from([
            (0, place(Some(50), 10, 100)),
            (1, place(Some(4), 10, 20)),
            (2, place(None, 0, 5)),
        ]),
        bootstrap: None,
    }
}

#[test]
fn a_reset_says_what_is_read_again_and_what_is_skipped() {
    let back = offsets::reset(&shop(0), To::Earliest);
    assert!(
        back.impact[0].starts_with("40 records are read again; 0 records are skipped"),
        "{:?}",
        back.impact
    );
    assert_eq!(back.desired, *json!({"offset 0": 10, "offset 1": 10, "offset 2": 0}).as_object().unwrap());
    let on = offsets::reset(&shop(0), To::Latest);
    assert!(on.impact[0].starts_with("0 records are read again; 60 records are skipped"), "{:?}", on.impact);
    assert_eq!(
        on.commands[1],
        "kafka-consumer-groups.sh --bootstrap-server \"$BOOTSTRAP\" --group 'shop'\\''s' --topic orders --reset-offsets --to-latest --execute"
    );
    assert_eq!(on.rollback.commands[0], "printf 'orders,0,50\\norders,1,4\\n' > offsets-before.csv");
    assert!(on.rollback.commands[1].ends_with("--reset-offsets --from-file offsets-before.csv --execute"));
    let mut some = shop(0);
    some.places.remove(&1);
    assert!(offsets::reset(&some, To::Earliest).commands[0].contains("--topic orders:0,2 "));
    for (draft, code) in [
        (offsets::reset(&shop(2), To::Earliest), "group_active"),
        (offsets::reset(&shop(0), To::Offset(15)), "offset_outside_of_log"),
        (
            offsets::reset(
                &offsets::Facts { places: BTreeMap::from([(0, Place::default())]), ..shop(0) },
                To::Latest,
            ),
            "ends_unknown",
        ),
        (
            offsets::reset(
                &offsets::Facts {
                    places: BTreeMap::from([(0, Place { committed: Some(1), marks: Some((1, 9)) })]),
                    ..shop(0)
                },
                To::Earliest,
            ),
            "nothing_to_do",
        ),
    ] {
        assert!(codes(&draft).contains(&code) && !draft.is_runnable(), "{code}: {:?}", draft.violations);
    }
}

#[test]
fn the_live_state_is_the_plans_or_what_it_wanted_or_something_else() {
    let plan = topic::update(&orders(), &set(&[("retention.ms", "5")]), &[]);
    let live = |partitions, pairs: &[(&str, &str)]| {
        topic::state(Some(&("id-1".to_owned(), partitions, configs(pairs))))
    };
    assert_eq!(compare(&plan, &live(3, &[("retention.ms", "86400000")])), Verdict::Unchanged);
    assert_eq!(compare(&plan, &live(3, &[("retention.ms", "5")])), Verdict::Applied);
    let Verdict::Changed(differences) = compare(&plan, &live(4, &[("retention.ms", "86400000")])) else {
        panic!("partitions were added")
    };
    assert_eq!((differences.len(), differences[0].what.as_str()), (1, "partitions"));
    // Made anew under the same name, it is another topic, however it is configured.
    let other = topic::state(Some(&("id-2".to_owned(), 3, configs(&[("retention.ms", "5")]))));
    assert!(matches!(compare(&plan, &other), Verdict::Changed(_)));
    assert!(matches!(compare(&plan, &topic::state(None)), Verdict::Changed(_)));
    let unset = topic::update(&orders(), &[], &["retention.ms".to_owned()]);
    assert_eq!(compare(&unset, &live(3, &[])), Verdict::Applied);
    let new = topic::Facts { name: "new".to_owned(), ..topic::Facts::default() };
    let created = topic::create(&new, 2, &set(&[("retention.ms", "5")]));
    assert_eq!(compare(&created, &topic::state(None)), Verdict::Unchanged);
    assert_eq!(compare(&created, &live(2, &[("retention.ms", "5")])), Verdict::Applied);
    assert!(matches!(compare(&created, &live(1, &[("retention.ms", "5")])), Verdict::Changed(_)));
}

#[test]
fn ends_move_on_and_members_may_come_back() {
    let latest = offsets::reset(&shop(0), To::Latest);
    let live = |offsets: [i64; 3], members| {
        let mut facts = shop(members);
        for (place, offset) in facts.places.values_mut().zip(offsets) {
            place.committed = Some(offset);
        }
        offsets::state(&facts)
    };
    assert_eq!(compare(&latest, &offsets::state(&shop(0))), Verdict::Unchanged);
    assert_eq!(compare(&latest, &live([100, 20, 5], 0)), Verdict::Applied);
    assert_eq!(compare(&latest, &live([130, 20, 7], 0)), Verdict::Applied, "more was produced meanwhile");
    assert!(matches!(compare(&latest, &live([99, 20, 5], 0)), Verdict::Changed(_)));
    let earliest = offsets::reset(&shop(0), To::Earliest);
    assert_eq!(compare(&earliest, &live([10, 10, 0], 0)), Verdict::Applied);
    assert!(matches!(compare(&earliest, &live([11, 10, 0], 0)), Verdict::Changed(_)));
    let mut busy = shop(0);
    busy.members = 1;
    let Verdict::Changed(differences) = compare(&earliest, &offsets::state(&busy)) else {
        panic!("somebody joined")
    };
    assert_eq!(differences[0].what, "members");
    // Who starts consumers again right after the reset has still done it.
    assert_eq!(compare(&earliest, &live([10, 10, 0], 2)), Verdict::Applied);
}

#[test]
fn plans_are_for_who_made_them_and_the_oldest_go() {
    let plans = Plans::default();
    let draft = topic::add_partitions(&orders(), 4);
    let ends = plans.keep("plan-1", "ann", 1_000, draft.clone());
    assert_eq!(plans.find("plan-1", "ann"), Some((draft.clone(), ends)));
    assert!(ends > 1_000 && plans.find("plan-1", "bob").is_none() && plans.find("plan-2", "ann").is_none());
    for n in 0..crate::limits::PLANS_KEPT {
        plans.keep(&format!("more-{n}"), "ann", 1_000, draft.clone());
    }
    assert!(plans.find("plan-1", "ann").is_none());
}
