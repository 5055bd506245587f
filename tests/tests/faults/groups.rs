//! Coordinators that die, stop, leave, and come back when another one has taken over.

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use strandline_tests::client::Client;
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::member::{Group, stable};
use strandline_tests::process::eventually;
use strandline_tests::proxy::Link;
use strandline_tests::workload::create_topic;
use tokio::time::{Instant, sleep};

/// Three brokers on which a first rebalance hardly waits, with a topic.
async fn cluster(plan: Plan) -> Cluster {
    let cluster = Cluster::start(plan.flag("group-initial-rebalance-delay-ms", 300)).await;
    create_topic(&cluster.addresses(), "t", 4).await;
    cluster
}

/// Which broker of the cluster coordinates a group.
async fn coordinator(cluster: &Cluster, group: &Group) -> usize {
    let (_, address) = group.coordinator().await;
    (0..cluster.len())
        .find(|i| cluster.address(*i) == address)
        .expect("the coordinator is one of the brokers")
}

/// Rebalances that all brokers that are running have begun.
async fn rebalances(cluster: &Cluster, brokers: &[usize]) -> f64 {
    let mut sum = 0.0;
    for i in brokers {
        sum += cluster.metric(*i, "strandline_group_rebalances_total", "").await;
    }
    sum
}

/// Waits until another broker than `old` is named as coordinator.
async fn moved(cluster: &Cluster, group: &Group, old: usize) -> usize {
    eventually("another broker coordinates the group", Duration::from_secs(20), async || {
        let now = coordinator(cluster, group).await;
        (now != old).then_some(now)
    })
    .await
}

/// Whoever coordinated the group before: its members go on with the same generation, and what is
/// committed is there.
async fn goes_on(group: &mut Group, ids: &[String], generation: i32, next_offset: i64) {
    for id in ids {
        assert_eq!(group.heartbeat(id, generation).await, 0, "the generation goes on");
    }
    assert_eq!(group.commit(&ids[0], generation, 0, next_offset).await, 0);
    assert_eq!(group.committed().await.get(&0), Some(&next_offset));
}

/// A group at rest, whose coordinator is about to get into trouble.
struct Settled {
    group: Group,
    /// Its two members.
    ids: Vec<String>,
    generation: i32,
    /// Which broker coordinates it.
    old: usize,
    /// A connection to that one, on which answers are waited for while it is in trouble.
    client: Client,
}

/// A group of two members that has committed something.
async fn settled(cluster: &Cluster) -> Settled {
    let mut group = Group::new("g", cluster.addresses());
    let (ids, generation) = stable("g", &cluster.addresses(), 2).await;
    goes_on(&mut group, &ids, generation, 1).await;
    let old = coordinator(cluster, &group).await;
    let mut client = cluster.client(old).await;
    client.set_timeout(Duration::from_secs(30));
    Settled { group, ids, generation, old, client }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_go_on_when_their_coordinator_is_killed_and_when_it_leaves() {
    let mut cluster = cluster(Plan::new(3).flag("drain-ms", 1_000)).await;
    let mut group = Group::new("g", cluster.addresses());
    let (ids, generation) = stable("g", &cluster.addresses(), 3).await;
    assert_eq!(group.commit(&ids[1], generation, 1, 7).await, 0);
    goes_on(&mut group, &ids, generation, 1).await;
    let mut new = Group::new("new", cluster.addresses());
    let joined = new.consumer_heartbeat("m", 0).await;
    assert_eq!(joined.error_code, 0, "{:?}", joined.error_message);

    for (round, kill) in [true, false, true].into_iter().enumerate() {
        let old = coordinator(&cluster, &group).await;
        let others: Vec<usize> = (0..3).filter(|i| *i != old).collect();
        let before = rebalances(&cluster, &others).await;
        if kill {
            cluster.kill9(old);
        } else {
            assert!(cluster.stop(old).await.success());
        }
        goes_on(&mut group, &ids, generation, 10 + round as i64).await;
        let beat = new.consumer_heartbeat("m", joined.member_epoch).await;
        assert_eq!((beat.error_code, beat.member_epoch), (0, joined.member_epoch));
        assert!(rebalances(&cluster, &others).await <= before, "nobody was made to join again");
        assert_eq!(group.committed().await.get(&1), Some(&7), "what was committed before is kept");
        cluster.restart(old);
        cluster.wait_ready(old).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_replaced_while_it_stood_still_commits_nothing() {
    let mut cluster = cluster(Plan::new(3)).await;
    let Settled { group, ids, generation, old, mut client } = settled(&cluster).await;
    // A commit that reaches the old coordinator while it stands still, and is handled when it wakes
    // up.
    cluster.pause(old);
    let stale = group.commit_request(&ids[0], generation, 0, 666);
    let sent = client.send(&stale, 8).await.expect("the socket takes it");
    let mut others: Vec<String> = cluster.addresses();
    others.remove(old);
    let mut group = Group::new("g", others);
    moved(&cluster, &group, old).await;
    goes_on(&mut group, &ids, generation, 2).await;
    cluster.resume(old);
    let answer = client.receive::<kafka_protocol::messages::OffsetCommitRequest>(sent, 8).await;
    if let Ok(answer) = answer {
        let code = answer.topics[0].partitions[0].error_code;
        assert_eq!(code, ResponseError::NotCoordinator.code(), "it may not say that it has committed");
    }
    assert_eq!(group.committed().await.get(&0), Some(&2), "an offset went back");
    cluster.wait_logged(old, "the registration is gone", Duration::from_mins(1)).await;
    // Registered again, it may be the coordinator again, with the same generation.
    let mut group = Group::new("g", cluster.addresses());
    goes_on(&mut group, &ids, generation, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_cut_off_from_etcd_answers_heartbeats_and_commits_nothing() {
    let cluster = cluster(Plan::new(2).proxied()).await;
    let Settled { group, ids, generation, old, mut client } = settled(&cluster).await;
    cluster.link_to_etcd(old, Link::Silent);
    let answer =
        client.call(&group.commit_request(&ids[0], generation, 0, 666), 8).await.expect("it answers");
    let code = answer.topics[0].partitions[0].error_code;
    let unavailable =
        [ResponseError::CoordinatorNotAvailable, ResponseError::NotCoordinator].map(|e| e.code());
    assert!(unavailable.contains(&code), "{code}");
    cluster.link_to_etcd(old, Link::Up);
    let mut group = Group::new("g", cluster.addresses());
    goes_on(&mut group, &ids, generation, 700).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_outlive_etcds_absence_and_the_restart_of_everything() {
    let mut cluster = cluster(Plan::new(3)).await;
    let mut group = Group::new("g", cluster.addresses());
    let (ids, generation) = stable("g", &cluster.addresses(), 2).await;
    goes_on(&mut group, &ids, generation, 1).await;
    cluster.etcd().kill9();
    sleep(Duration::from_secs(3)).await;
    cluster.restart_etcd().await;
    goes_on(&mut group, &ids, generation, 2).await;
    for i in 0..3 {
        cluster.kill9(i);
    }
    for i in 0..3 {
        cluster.restart(i);
    }
    cluster.wait_all_ready().await;
    goes_on(&mut group, &ids, generation, 3).await;
    // Members that died with everything are given up, counted from when a coordinator took the
    // group up.
    let started = Instant::now();
    eventually("silent members are given up", Duration::from_mins(1), async || {
        let id = &ids[0];
        sleep(Duration::from_millis(500)).await;
        let code = Group::new("g", cluster.addresses()).heartbeat(id, generation).await;
        (code == ResponseError::RebalanceInProgress.code()).then_some(())
    })
    .await;
    assert!(started.elapsed() > Duration::from_secs(5), "their sessions had begun anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_never_go_back_while_coordinators_come_and_go() {
    let mut cluster = cluster(Plan::new(3)).await;
    let (ids, generation) = stable("g", &cluster.addresses(), 2).await;
    // Two members commit to partitions of their own in the same key, so each commit competes with
    // the other's.
    let committers: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(partition, id)| {
            let mut group = Group::new("g", cluster.addresses());
            let (id, partition) = (id.clone(), i32::try_from(partition).expect("two members"));
            tokio::spawn(async move {
                let until = Instant::now() + Duration::from_secs(15);
                let mut offset = 0;
                while Instant::now() < until {
                    offset += 1;
                    let code = group.commit(&id, generation, partition, offset).await;
                    assert_eq!(code, 0, "a commit of {offset}");
                    let stored = group.committed().await.get(&partition).copied();
                    assert_eq!(stored, Some(offset), "what was acknowledged is what is read");
                    let _ = group.heartbeat(&id, generation).await;
                }
                offset
            })
        })
        .collect();
    for round in 0..4 {
        sleep(Duration::from_millis(800)).await;
        let old = coordinator(&cluster, &Group::new("g", cluster.addresses())).await;
        if round % 2 == 0 {
            cluster.kill9(old);
            sleep(Duration::from_secs(2)).await;
            cluster.restart(old);
            cluster.wait_ready(old).await;
        } else {
            cluster.pause(old);
            sleep(Duration::from_secs(4)).await;
            cluster.resume(old);
        }
    }
    for committer in committers {
        let offset = committer.await.expect("every commit was acknowledged and read back");
        assert!(offset > 20, "only {offset} commits in all that time");
    }
}
