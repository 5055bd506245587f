//! The rules by table: this evidence, that cause first.

use serde_json::{Value, json};

use super::*;

/// Evidence from pairs; what is null is missing.
fn exhibits(pairs: &Value) -> Exhibits {
    let mut exhibits = Exhibits::default();
    for (id, value) in pairs.as_object().unwrap() {
        exhibits.put(Evidence {
            id: id.clone(),
            source: "test".to_owned(),
            window: None,
            samples: None,
            observed_at_ms: Some(1),
            status: Status::Ok,
            value: value.clone(),
        });
    }
    exhibits
}

fn with(base: &Value, more: &Value) -> Exhibits {
    let mut all = base.clone();
    for (id, value) in more.as_object().unwrap() {
        all[id] = value.clone();
    }
    exhibits(&all)
}

/// A transaction as evidence has it.
fn transaction(is_overdue: bool) -> Value {
    json!([{
        "transactional_id": "pay-1", "open_since": "2026-01-01T00:00:00Z", "age_s": 75, "timeout_ms": 900_000,
        "times_out_at": "2026-01-01T00:15:00Z", "is_overdue": is_overdue, "partition_count": 1,
        "partitions": [{"topic": "orders", "partition": 0, "first_offset": 10, "held_back": 4990}],
    }])
}

/// A group that is well, in a cluster that is.
fn well() -> Value {
    let group = json!({
        "group.members": 2, "group.lag": 20, "group.state": "Stable", "group.rebalances": 0,
        "group.partitions_lagging": 2, "group.partitions_stalled": 0, "group.partitions_out_of_range": 0,
        "group.partitions_never_committed": 0, "group.records_lost": 0, "group.last_commit_age_s": 2,
        "group.consume_rate": 100, "group.produce_rate": 100, "group.consume_rate_before": 100,
        "group.produce_rate_before": 100, "group.hottest_lag_share": 0.5, "group.hottest_fair_share": 0.25,
        "group.hottest_produce_share": 0.26, "group.hottest_consume_rate": 25, "group.hottest_partition": {"partition": 0},
        "group.partitions_held_back": 0, "group.partitions_past_stable": 0, "group.held_back_lag": 0,
        "group.held_back_later": 0, "group.open_transactions": [],
    });
    let cluster = json!({
        "brokers.registered": ["1", "2"], "brokers.lost": [], "brokers.draining": [], "brokers.unregistered": [],
        "brokers.restarting": [], "brokers.behind": [], "jobs.held": true, "etcd.reachable": true, "etcd.read_ms": 3,
        "commit.p99_ms": 9, "commit.per_s": 4, "commit.failures": 0, "metrics.blind": [],
        "transactions.open": 0, "transactions.overdue": [], "transactions.long_open": [],
        "produce.slowed_by_state_s": 0, "produce.slowed_by_etcd_s": 0,
        "s3.scraped_brokers": 2, "s3.failing_brokers": 0, "s3.error_rate": 0, "s3.throttled_per_s": 0, "s3.denied_per_s": 0,
        "s3.put_p50_ms": 8, "s3.put_p50_before_ms": 8, "s3.put_p99_ms": 40, "s3.get_p99_ms": 30, "s3.put_failures": 0,
    });
    let mut all = group;
    all.as_object_mut().unwrap().extend(cluster.as_object().unwrap().clone());
    all
}

/// What a question answers: the codes in order, the verdict, the confidence.
fn answer(rules: &[Rule], e: &Exhibits, essential: &[&str]) -> (Vec<&'static str>, Report) {
    let report = report(judge(rules, e), e, essential, "well");
    (report.causes.iter().map(|c| c.code.as_str()).collect(), report)
}

#[test]
fn each_cause_of_lag_is_named_first_for_its_evidence() {
    let table = [
        (json!({}), "no_lag", Confidence::High),
        (json!({"group.lag": 0, "group.members": 0}), "no_lag", Confidence::High),
        (
            json!({"group.members": 0, "group.lag": 5000, "group.consume_rate": 0}),
            "empty_group",
            Confidence::High,
        ),
        (
            json!({"group.lag": 50_000, "group.consume_rate": 0, "group.partitions_stalled": 2}),
            "consumer_stalled",
            Confidence::High,
        ),
        (
            json!({"group.lag": 50_000, "group.consume_rate": 50, "group.partitions_stalled": 1}),
            "consumer_stalled",
            Confidence::Medium,
        ),
        (json!({"group.lag": 50_000, "group.consume_rate": 60}), "consumer_slow", Confidence::High),
        (json!({"group.lag": 50_000, "group.produce_rate": 900}), "producer_surge", Confidence::High),
        (
            json!({"group.lag": 50_000, "group.produce_rate": 900, "group.consume_rate": 30}),
            "producer_surge",
            Confidence::Medium,
        ),
        (
            json!({"group.lag": 50_000, "group.rebalances": 7, "group.consume_rate": 10}),
            "rebalance_storm",
            Confidence::High,
        ),
        (
            json!({"group.lag": 50_000, "group.consume_rate": 60, "group.hottest_lag_share": 0.97,
                "group.hottest_produce_share": 0.9}),
            "hot_partition",
            Confidence::High,
        ),
        (
            json!({"group.lag": 50_000, "brokers.lost": ["3"], "brokers.last_loss_age_s": 40,
                "group.last_commit_age_s": 41, "group.consume_rate": 0}),
            "broker_down",
            Confidence::Medium,
        ),
        (
            json!({"group.lag": 50_000, "brokers.registered": [], "group.consume_rate": 0}),
            "broker_down",
            Confidence::High,
        ),
        (
            json!({"group.lag": 50_000, "s3.get_p99_ms": 4000, "group.consume_rate": 60}),
            "storage_slow",
            Confidence::Medium,
        ),
        (
            json!({"group.lag": 50_000, "s3.failing_brokers": 2, "group.consume_rate": 0}),
            "storage_slow",
            Confidence::High,
        ),
        (
            json!({"group.partitions_out_of_range": 1, "group.records_lost": 70, "group.lag": 9000, "group.members": 0}),
            "offsets_out_of_range",
            Confidence::High,
        ),
        (
            json!({"group.lag": null, "group.partitions_never_committed": 3}),
            "never_committed",
            Confidence::Medium,
        ),
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10, "group.consume_rate": 0,
                "group.partitions_held_back": 1, "group.open_transactions": transaction(false)}),
            "open_transaction",
            Confidence::High,
        ),
        // Somebody who is past the last stable offset on another partition reads everything.
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10, "group.consume_rate": 0,
                "group.partitions_held_back": 1, "group.partitions_past_stable": 1,
                "group.open_transactions": transaction(false)}),
            "open_transaction",
            Confidence::Medium,
        ),
        // It has much to read before it gets to the transaction.
        (
            json!({"group.lag": 50_000, "group.held_back_later": 4990, "group.readable_lag": 50_000,
                "group.consume_rate": 0, "group.partitions_stalled": 2, "group.open_transactions": transaction(false)}),
            "consumer_stalled",
            Confidence::High,
        ),
    ];
    for (more, first, confidence) in table {
        let (codes, report) = answer(lag::RULES, &with(&well(), &more), lag::ESSENTIAL);
        assert_eq!(codes.first(), Some(&first), "{more}: {codes:?}");
        assert_eq!(report.confidence, confidence, "{more}");
        let healthy = first == "no_lag";
        assert_eq!(report.severity == Severity::Ok, healthy, "{more}");
        assert_eq!(codes.contains(&"no_lag"), healthy, "{more}: {codes:?}");
    }
}

#[test]
fn what_looks_alike_is_told_apart() {
    let table = [
        // Skewed lag without skewed production is not a hot partition.
        (
            json!({"group.lag": 50_000, "group.consume_rate": 60, "group.hottest_lag_share": 0.97}),
            "hot_partition",
        ),
        // A partition that is not read at all is not hot but stalled.
        (
            json!({"group.lag": 50_000, "group.hottest_lag_share": 0.97, "group.hottest_produce_share": 0.9,
                "group.hottest_consume_rate": 0, "group.partitions_lagging": 1, "group.partitions_stalled": 1}),
            "hot_partition",
        ),
        // A topic of one partition has no hot one.
        (
            json!({"group.lag": 50_000, "group.hottest_lag_share": 1, "group.hottest_produce_share": 1,
                "group.hottest_fair_share": 1}),
            "hot_partition",
        ),
        // A group that reads well since the loss has another reason.
        (
            json!({"group.lag": 50_000, "brokers.lost": ["3"], "brokers.last_loss_age_s": 400,
                "group.last_commit_age_s": 3, "group.consume_rate": 300}),
            "broker_down",
        ),
        // Much production that is read as fast is no surge.
        (
            json!({"group.lag": 50_000, "group.produce_rate": 900, "group.consume_rate": 950}),
            "producer_surge",
        ),
        (json!({"group.lag": 50_000, "group.consume_rate": 900}), "consumer_slow"),
        (json!({"group.lag": 50_000, "group.rebalances": 2}), "rebalance_storm"),
        (json!({"group.lag": 5, "group.members": 0}), "empty_group"),
        (json!({"group.lag": 50_000, "group.overtaken_in_s": 900_000}), "retention_overtaking"),
        // A group that waits for a transaction is neither slow nor has it a hot partition.
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10, "group.consume_rate": 60,
                "group.open_transactions": transaction(false)}),
            "consumer_slow",
        ),
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10, "group.consume_rate": 60,
                "group.hottest_lag_share": 0.97, "group.hottest_produce_share": 0.9,
                "group.open_transactions": transaction(false)}),
            "hot_partition",
        ),
        // Nobody is named without a name, nor for a group that nobody is in.
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10}),
            "open_transaction",
        ),
        (
            json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10, "group.members": 0,
                "group.open_transactions": transaction(false)}),
            "open_transaction",
        ),
        // What a few seconds produce is not behind.
        (
            json!({"group.lag": 1000, "group.held_back_lag": 990, "group.readable_lag": 10,
                "group.open_transactions": transaction(false)}),
            "open_transaction",
        ),
    ];
    for (more, code) in table {
        let (codes, _) = answer(lag::RULES, &with(&well(), &more), lag::ESSENTIAL);
        assert!(!codes.contains(&code), "{more}: {codes:?}");
    }
}

#[test]
fn a_transaction_is_named_with_since_when_and_until_when_and_comes_last_where_it_only_adds() {
    let waits = json!({"group.lag": 5000, "group.held_back_lag": 4990, "group.readable_lag": 10,
        "group.consume_rate": 0, "group.open_transactions": transaction(true)});
    let (codes, report) = answer(lag::RULES, &with(&well(), &waits), lag::ESSENTIAL);
    assert_eq!(codes, ["open_transaction"]);
    for said in ["\"pay-1\"", "2026-01-01T00:00:00Z (75 s)", "in 1 partition,", "should have been", "4990 of"]
    {
        assert!(report.summary.contains(said), "{said}: {}", report.summary);
    }
    let ahead = json!({"group.lag": 50_000, "group.held_back_later": 4990, "group.readable_lag": 50_000,
        "group.consume_rate": 60, "group.open_transactions": transaction(false)});
    let (codes, report) = answer(lag::RULES, &with(&well(), &ahead), lag::ESSENTIAL);
    assert_eq!(codes, ["consumer_slow", "open_transaction"]);
    let adds = &report.causes[1];
    assert_eq!((adds.severity, adds.confidence), (Severity::Info, Confidence::Low));
    assert_eq!(adds.counter_evidence_refs, ["group.readable_lag"]);
    // Whoever took over from a lost broker measures time-outs anew.
    let lost = json!({"brokers.lost": ["2"], "transactions.overdue": transaction(true)});
    let (codes, _) = answer(&cluster::rules(), &with(&well(), &lost), cluster::ESSENTIAL);
    assert_eq!(codes, ["broker_down", "open_transaction"]);
    let unheld = json!({"jobs.held": false, "transactions.overdue": transaction(true)});
    let (codes, _) = answer(&cluster::rules(), &with(&well(), &unheld), cluster::ESSENTIAL);
    assert_eq!(codes, ["no_job_holder"]);
}

#[test]
fn what_is_missing_is_no_zero_and_makes_no_cause() {
    let base = well();
    // Without any evidence nothing is found, and nothing is healthy.
    let (codes, report) = answer(lag::RULES, &exhibits(&json!({})), lag::ESSENTIAL);
    assert!(codes.is_empty());
    assert_eq!((report.severity, report.confidence), (Severity::Unknown, Confidence::None));
    assert_eq!(report.rule, "essential_evidence_missing");
    // Whatever single thing is taken away, no cause appears that was not there, and none cites it.
    let whole = with(&base, &json!({"group.lag": 50_000, "group.consume_rate": 60}));
    let all_rules: Vec<Rule> = lag::RULES.iter().copied().chain(cluster::rules()).collect();
    let (known, _) = answer(&all_rules, &whole, &[]);
    for id in base.as_object().unwrap().keys() {
        let without =
            with(&base, &json!({"group.lag": 50_000, "group.consume_rate": 60, (id.as_str()): null}));
        for cause in judge(&all_rules, &without) {
            assert!(known.contains(&cause.code.as_str()), "without {id}: {:?}", cause.code);
            let refs = cause.evidence_refs.iter().chain(&cause.counter_evidence_refs);
            refs.for_each(|cited| assert!(without.has(cited), "{:?} cites {cited}", cause.code));
            assert!(!cause.evidence_refs.is_empty());
        }
    }
    // Rates that are not known are not zero: nobody is called slow or stalled for that.
    let blind = json!({"group.lag": 50_000, "group.consume_rate": null, "group.produce_rate": null});
    assert!(answer(lag::RULES, &with(&base, &blind), lag::ESSENTIAL).0.is_empty());
}

#[test]
fn what_is_wrong_with_the_cluster_is_named() {
    let table = [
        (json!({"etcd.reachable": false, "commit.per_s": null}), "etcd_unreachable", Severity::Critical),
        (json!({"brokers.registered": []}), "no_brokers", Severity::Critical),
        (json!({"brokers.lost": ["2"]}), "broker_down", Severity::Warning),
        (json!({"brokers.unregistered": ["broker-2"]}), "broker_unregistered", Severity::Warning),
        (json!({"brokers.restarting": ["2"]}), "broker_restarting", Severity::Warning),
        (json!({"brokers.behind": ["broker-2"]}), "broker_behind", Severity::Warning),
        (json!({"brokers.draining": ["2"]}), "broker_draining", Severity::Info),
        (json!({"jobs.held": false}), "no_job_holder", Severity::Warning),
        (json!({"transactions.overdue": transaction(true)}), "open_transaction", Severity::Warning),
        (json!({"transactions.long_open": transaction(false)}), "open_transaction", Severity::Info),
        (json!({"commit.failures": 3}), "commit_failing", Severity::Critical),
        (json!({"commit.p99_ms": 4000}), "etcd_slow", Severity::Warning),
        (json!({"produce.slowed_by_etcd_s": 60}), "etcd_nearly_full", Severity::Warning),
        (json!({"produce.slowed_by_state_s": 60}), "state_crowded", Severity::Warning),
        (json!({"s3.failing_brokers": 2}), "storage_failing", Severity::Critical),
        (json!({"s3.failing_brokers": 1}), "storage_failing", Severity::Warning),
        (json!({"s3.denied_per_s": 2, "s3.failing_brokers": 2}), "storage_denied", Severity::Critical),
        (json!({"s3.throttled_per_s": 2, "s3.error_rate": 0.2}), "storage_throttled", Severity::Warning),
        (json!({"s3.error_rate": 0.2}), "storage_errors", Severity::Warning),
        (json!({"s3.put_p99_ms": 3000}), "storage_slow", Severity::Warning),
        (json!({"s3.put_p50_ms": 200}), "storage_slow", Severity::Warning),
        (json!({"metrics.blind": ["metrics:broker-2"]}), "metrics_blind", Severity::Unknown),
        (json!({"access.token_ends_in_s": 60}), "token_expiring", Severity::Info),
    ];
    for (more, first, severity) in table {
        let (codes, report) = answer(&cluster::rules(), &with(&well(), &more), cluster::ESSENTIAL);
        assert_eq!(codes.first(), Some(&first), "{more}: {codes:?}");
        assert_eq!(report.severity, severity, "{more}");
        assert!(report.summary.starts_with(first), "{}", report.summary);
    }
    let (codes, report) = answer(&cluster::rules(), &exhibits(&well()), cluster::ESSENTIAL);
    assert_eq!((codes.len(), report.severity, report.confidence), (0, Severity::Ok, Confidence::High));
    // A PUT that was always as slow is not slower; one that is quick is not slow for having been
    // quicker.
    for more in [json!({"s3.put_p50_ms": 200, "s3.put_p50_before_ms": 190}), json!({"s3.put_p50_ms": 50})] {
        assert!(answer(storage::RULES, &with(&well(), &more), storage::ESSENTIAL).0.is_empty(), "{more}");
    }
}

#[test]
fn what_is_wrong_with_a_broker_is_named() {
    let one = json!({
        "broker.registered": true, "broker.says_registered": true, "broker.scrape": "ok", "broker.draining": false,
        "broker.registrations": 0, "broker.watch_lag": 0, "commit.failures": 0, "s3.scraped_brokers": 1,
        "s3.failing_brokers": 0, "s3.error_rate": 0,
    });
    let table = [
        (
            json!({"broker.registered": false, "broker.scrape": "failed", "broker.says_registered": null}),
            "broker_down",
        ),
        (json!({"broker.says_registered": false}), "broker_unregistered"),
        (json!({"broker.registrations": 3}), "broker_restarting"),
        (json!({"broker.watch_lag": 5000}), "broker_behind"),
        (json!({"broker.draining": true}), "broker_draining"),
        (json!({"broker.scrape": "stale", "broker.says_registered": null}), "metrics_blind"),
        (json!({"commit.failures": 2}), "commit_failing"),
        (json!({"s3.failing_brokers": 1}), "storage_failing"),
    ];
    for (more, first) in table {
        let (codes, _) = answer(&broker::rules(), &with(&one, &more), broker::ESSENTIAL);
        assert_eq!(codes.first(), Some(&first), "{more}: {codes:?}");
    }
    let (codes, report) = answer(&broker::rules(), &exhibits(&one), broker::ESSENTIAL);
    assert_eq!((codes.len(), report.severity), (0, Severity::Ok));
    // One that is gone from etcd and still answers is cut off: that speaks against its being down.
    let (_, report) = answer(&broker::rules(), &with(&one, &json!({"broker.registered": false})), &[]);
    assert_eq!(report.causes[0].counter_evidence_refs, ["broker.scrape"]);
}

#[test]
fn a_finding_that_is_small_does_not_hide_what_is_not_known() {
    let e = with(&well(), &json!({"brokers.draining": ["1"], "s3.failing_brokers": null}));
    let (codes, report) = answer(&cluster::rules(), &e, cluster::ESSENTIAL);
    assert_eq!((codes, report.severity), (vec!["broker_draining"], Severity::Unknown));
    assert!(report.summary.contains("s3.failing_brokers"), "{}", report.summary);
}

#[test]
fn a_cause_without_evidence_is_none_and_counter_evidence_lowers_confidence() {
    let e = exhibits(&json!({"a": 1, "b": 2}));
    let draft = Draft {
        code: Code::ConsumerSlow,
        rule: "r",
        severity: Severity::Warning,
        confidence: Confidence::High,
        evidence: vec!["a"],
        counter_evidence: vec![],
        reasoning: String::new(),
    };
    assert_eq!(Cause::of(draft.clone(), &e).unwrap().confidence, Confidence::High);
    let half = Draft { evidence: vec!["a", "missing"], ..draft.clone() };
    let half = Cause::of(half, &e).unwrap();
    assert_eq!((half.confidence, half.evidence_refs.len()), (Confidence::Medium, 1));
    let contested = Draft { counter_evidence: vec!["b"], ..draft.clone() };
    assert_eq!(Cause::of(contested, &e).unwrap().confidence, Confidence::Medium);
    assert_eq!(Cause::of(Draft { evidence: vec!["missing"], ..draft }, &e), None);
}

#[test]
fn codes_are_sorted_as_they_explain_each_other_and_each_has_a_name_of_its_own() {
    assert!(Code::ALL.is_sorted());
    let names: std::collections::BTreeSet<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    for code in Code::ALL {
        assert_eq!(advice(*code).is_none(), *code == Code::NoLag, "{}", code.as_str());
    }
}

#[test]
fn evidence_of_one_of_several_has_a_name_of_its_own() {
    let own = exhibits(&json!({"group.lag": 5, "group.members": 0, "s3.error_rate": 0.5, "group.x": null}));
    let mut all = exhibits(&json!({"s3.error_rate": 0.5}));
    all.absorb(&own, "group", 2);
    assert!(all.has("group:2.lag") && !all.has("group.lag"));
    assert_eq!((all.present().len(), all.missing()[0].id.as_str()), (3, "group:2.x"));
    let cause = Cause {
        code: Code::EmptyGroup,
        rule: "r",
        severity: Severity::Warning,
        confidence: Confidence::High,
        evidence_refs: vec!["group.lag".to_owned(), "s3.error_rate".to_owned()],
        counter_evidence_refs: vec![],
        reasoning: "why".to_owned(),
    };
    let named = cause.of_one("group", 2, "shop");
    assert_eq!(named.evidence_refs, ["group:2.lag", "s3.error_rate"]);
    assert_eq!(named.reasoning, "group \"shop\": why");
}
