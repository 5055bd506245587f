//! Subscriptions by name and by pattern, topics that change, and the choice of the assignor.

use kafka_protocol::error::ResponseError;

use super::{World, beat, joining, names, text};
use crate::group::consumer::ConsumerGroup;
use crate::limits::{GROUP_PATTERNS, PATTERN_CHARS};

#[test]
fn topics_that_come_grow_and_go_are_noticed() {
    let mut world = World::new(&[("t", 1)]);
    world.join("a", &["t", "u"]);
    assert!(world.group.take_changed());
    world.create("other", 5);
    world.with(ConsumerGroup::topics_changed);
    assert!(!world.group.take_changed(), "a topic that nobody reads is no reason");

    world.create("u", 1);
    world.with(ConsumerGroup::topics_changed);
    assert!(world.group.take_changed());
    assert_eq!(world.group.state(), "Assigning");
    assert_eq!(world.beat("a", 1), (2, vec!["t0".into(), "u0".into()]));
    world.create("t", 2);
    world.with(ConsumerGroup::topics_changed);
    assert_eq!(world.beat("a", 2), (3, vec!["t0".into(), "t1".into(), "u0".into()]));

    // Deleted and created anew under its name, it is another topic.
    world.topics.remove("t");
    world.create("t", 1);
    world.with(ConsumerGroup::topics_changed);
    assert_eq!(world.beat("a", 3), (3, vec!["u0".into()]));
    assert_eq!(world.report("a", 3, &["u0"]), (4, vec!["t0".into(), "u0".into()]));

    // Another coordinator notices what happened in between.
    world.create("u", 2);
    world.take_over();
    assert!(world.group.take_changed());
    assert_eq!(world.beat("a", 4), (5, vec!["t0".into(), "u0".into(), "u1".into()]));
}

#[test]
fn patterns_match_whole_names_and_follow_the_topics() {
    let mut world = World::new(&[("logs", 1), ("logs-a", 1), ("my-logs", 1)]);
    let join = joining("a", &[]).with_subscribed_topic_names(None);
    for (pattern, expected) in [
        ("logs", vec!["logs0"]),
        ("logs.*", vec!["logs-a0", "logs0"]),
        ("l|logs", vec!["logs0"]),
        ("", vec![]),
    ] {
        world.send(&join.clone().with_subscribed_topic_regex(Some(text(pattern)))).unwrap();
        assert_eq!(world.assigned("a"), expected, "{pattern}");
    }
    world.send(&join.clone().with_subscribed_topic_regex(Some(text("(?i)LOGS-.")))).unwrap();
    world.create("logs-b", 1);
    assert!(!world.group.is_subscribed_to("logs-b"));
    world.with(ConsumerGroup::topics_changed);
    assert!(world.group.is_subscribed_to("logs-b"));
    let epoch = world.member("a").epoch;
    assert_eq!(world.beat("a", epoch).1, ["logs-a0", "logs-b0"]);

    // Names and pattern together, and the pattern dropped.
    let both = beat("a", epoch + 1).with_subscribed_topic_names(Some(names(&["my-logs"])));
    world.send(&both).unwrap();
    assert_eq!(world.assigned("a"), ["logs-a0", "logs-b0", "my-logs0"]);
    world.send(&beat("a", epoch + 2).with_subscribed_topic_regex(Some(text("")))).unwrap();
    assert_eq!(world.assigned("a"), ["my-logs0"]);
}

#[test]
fn patterns_that_are_invalid_or_too_large_are_refused() {
    let mut world = World::new(&[("t", 1)]);
    let long = "a".repeat(20_000);
    for pattern in ["(", "a)(b", "[", "(?=x)", r"(.)\1", r"(((\w{99}){99}){99}){99}", long.as_str()] {
        let request = joining("a", &[])
            .with_subscribed_topic_names(None)
            .with_subscribed_topic_regex(Some(text(pattern)));
        assert_eq!(world.refused(&request), ResponseError::InvalidRegularExpression);
    }
    assert!(world.group.is_empty());
}

#[test]
fn a_pattern_survives_its_coordinator() {
    let mut world = World::new(&[("t", 1)]);
    let request = joining("a", &[]).with_subscribed_topic_regex(Some(text("t.*")));
    world.send(&request).unwrap();
    world.create("tt", 1);
    world.take_over();
    assert_eq!(world.beat("a", 1), (2, vec!["t0".into(), "tt0".into()]));
}

#[test]
fn most_votes_choose_the_assignor() {
    let mut world = World::new(&[("t", 4), ("u", 4)]);
    let wants = |id: &str, assignor| joining(id, &["t", "u"]).with_server_assignor(Some(text(assignor)));
    let assignor = |world: &World| world.group.describe(1, &world.topics).assignor_name.to_string();
    world.send(&wants("a", "range")).unwrap();
    assert_eq!(assignor(&world), "range");
    world.send(&wants("b", "uniform")).unwrap();
    assert_eq!(assignor(&world), "uniform", "the default where they can't agree");
    world.send(&wants("c", "range")).unwrap();
    assert_eq!(assignor(&world), "range");
    world.join("d", &["t"]);
    assert_eq!(assignor(&world), "range", "who has no wish has no vote");
}

#[test]
fn a_group_has_so_many_different_patterns() {
    let mut world = World::new(&[("t", 1)]);
    let join = |id: usize, pattern: &str| {
        joining(&format!("m{id}"), &[])
            .with_subscribed_topic_names(None)
            .with_subscribed_topic_regex(Some(text(pattern)))
    };
    for i in 0..GROUP_PATTERNS {
        world.send(&join(i, &format!("p{i}"))).unwrap();
    }
    assert_eq!(world.refused(&join(GROUP_PATTERNS, "more")), ResponseError::GroupMaxSizeReached);
    world.send(&join(GROUP_PATTERNS, "p0")).unwrap();
    // Who changes its pattern needs no more of them, however often.
    for i in 0..3 * GROUP_PATTERNS {
        world.send(&join(1, &format!("other{i}"))).unwrap();
        assert!(world.group.patterns.count() <= GROUP_PATTERNS + 1);
    }
    assert_eq!(world.refused(&join(GROUP_PATTERNS, "more")), ResponseError::GroupMaxSizeReached);
    let long = "x".repeat(PATTERN_CHARS + 1);
    assert_eq!(world.refused(&join(1, &long)), ResponseError::InvalidRegularExpression);
}
