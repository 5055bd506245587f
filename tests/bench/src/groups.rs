//! Consumer groups: what a commit costs beyond etcd's own transaction, what a thousand members cost
//! etcd, and how long nobody reads when a coordinator is killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::OffsetCommitRequest;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use strandline_metadata::backend::etcd::{Etcd, EtcdConfig};
use strandline_metadata::backend::{Backend, Compare, Op, Txn};
use strandline_tests::client::{Client, topic};
use strandline_tests::member::{Group, stable};
use tokio::time::sleep;

use crate::load::kib_batch;
use crate::report::{Bound, Report, percentile};
use crate::stack::{Broker, Stack};

const QUICK: &[&str] = &["--group-initial-rebalance-delay-ms", "200"];

/// Commits of one member, with a pause between them, beside etcd's own transaction of the same
/// size.
pub async fn commits(stack: &mut Stack, report: &mut Report) {
    let (broker, _) = stack.broker(1, "commits", QUICK).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    client.create_topic("t", 4, &[]).await.expect("a topic");
    let addresses = vec![broker.address.clone()];
    let (ids, generation) = stable("g", &addresses, 1).await;
    let mut group = Group::new("g", addresses);
    let backend = Etcd::new(&EtcdConfig::new([stack.etcd_url()])).await;
    let backend = backend.expect("etcd answers");
    let (mut commits, mut txns) = (Vec::new(), Vec::new());
    let mut revision = 0;
    for i in 0..200 {
        let begun = Instant::now();
        assert_eq!(group.commit(&ids[0], generation, 0, i).await, 0);
        commits.push(begun.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(20)).await;
        let key = Bytes::from_static(b"/bench/commit");
        let txn = Txn {
            compares: vec![Compare::ModRevision(key.clone(), revision)],
            then: vec![Op::put(key, vec![b'x'; 300])],
            otherwise: Vec::new(),
        };
        let begun = Instant::now();
        revision = backend.txn(txn).await.expect("a transaction").revision;
        txns.push(begun.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(20)).await;
    }
    let (commit, txn) = (percentile(&mut commits, 0.5), percentile(&mut txns, 0.5));
    report.figure("offset commit: etcd's own transaction, median", txn, "ms");
    report.figure("offset commit: median", commit, "ms");
    report.figure("offset commit: p99", percentile(&mut commits, 0.99), "ms");
    let what = "offset commit: median beyond etcd's own transaction";
    report.target(what, commit - txn, "ms", Bound::AtMost, 5.0);
}

/// A thousand members in ten groups over three brokers, each committing a hundred partitions every
/// five seconds.
pub async fn thousand_members(stack: &mut Stack, report: &mut Report) {
    let brokers = three(stack, "thousand-members").await;
    let addresses: Vec<String> = brokers.iter().map(|b| b.address.clone()).collect();
    let mut client = Client::connect(&addresses[0]).await.expect("a connection");
    client.create_topic("t", 10_000, &[]).await.expect("a topic");
    let mut members = Vec::new();
    for group in 0..10 {
        let id = format!("thousand-{group}");
        let (ids, generation) = stable(&id, &addresses, 100).await;
        members.extend(ids.into_iter().enumerate().map(|(i, member)| (id.clone(), member, generation, i)));
    }
    let cpu = brokers.iter().map(|b| b.process.cpu_s()).sum::<f64>();
    let (before, begun) = (stack.etcd_txns().await, Instant::now());
    let rounds = 4;
    let tasks: Vec<_> = members
        .into_iter()
        .enumerate()
        .map(|(n, (group, member, generation, place))| {
            let mut group = Group::new(&group, addresses.clone());
            tokio::spawn(async move {
                // They do not commit in step.
                sleep(Duration::from_millis(5 * n as u64)).await;
                let mut samples = Vec::new();
                for round in 0..rounds {
                    let request = hundred(&group, &member, generation, place as i32 * 100, round);
                    let begun = Instant::now();
                    let code = |r: &kafka_protocol::messages::OffsetCommitResponse| {
                        r.topics[0].partitions.iter().map(|p| p.error_code).max().unwrap_or(0)
                    };
                    let answer = group.call(&request, 8, code).await.expect("a commit is answered");
                    assert_eq!(code(&answer), 0);
                    samples.push(begun.elapsed().as_secs_f64() * 1000.0);
                    group.heartbeat(&member, generation).await;
                    sleep(Duration::from_secs(5).saturating_sub(begun.elapsed())).await;
                }
                samples
            })
        })
        .collect();
    let mut samples = Vec::new();
    for task in tasks {
        samples.extend(task.await.expect("a member ends well"));
    }
    let took = begun.elapsed().as_secs_f64() - 5.0;
    let txns = (stack.etcd_txns().await - before) / took;
    let used = brokers.iter().map(|b| b.process.cpu_s()).sum::<f64>() - cpu;
    let what = "1,000 members, 100 partitions each, every 5 s";
    report.target(format!("{what}: etcd transactions"), txns, "1/s", Bound::AtMost, 200.0);
    report.figure(format!("{what}: commit, median"), percentile(&mut samples, 0.5), "ms");
    report.figure(format!("{what}: commit, p99"), percentile(&mut samples, 0.99), "ms");
    report.figure(format!("{what}: processor, all brokers"), used / took * 100.0, "%");
}

fn hundred(group: &Group, member: &str, generation: i32, first: i32, offset: i64) -> OffsetCommitRequest {
    let partitions = (first..first + 100).map(|p| {
        OffsetCommitRequestPartition::default().with_partition_index(p).with_committed_offset(offset)
    });
    let all = OffsetCommitRequestTopic::default().with_name(topic("t")).with_partitions(partitions.collect());
    group.commit_request(member, generation, 0, offset).with_topics(vec![all])
}

/// Kills the coordinator of a group whose member reads, five times over, and looks for the longest
/// time without a record.
pub async fn failover(stack: &mut Stack, report: &mut Report) {
    let (mut gaps, mut beats) = (Vec::new(), Vec::new());
    let mut rebalances = 0.0;
    for round in 0..5 {
        let name = format!("failover-{round}");
        let mut brokers = three(stack, &name).await;
        let addresses: Vec<String> = brokers.iter().map(|b| b.address.clone()).collect();
        let mut client = Client::connect(&addresses[0]).await.expect("a connection");
        client.create_topic("t", 12, &[]).await.expect("a topic");
        let (ids, generation) = stable("g", &addresses, 1).await;
        let group = Group::new("g", addresses.clone());
        let (node_id, _) = group.coordinator().await;
        let victim = usize::try_from(node_id - 1).expect("node ids begin at 1");
        let survivor = addresses[(victim + 1) % 3].clone();
        // A partition whose traffic also goes through the broker that will be killed.
        let metadata = client.metadata(&["t"]).await.expect("metadata");
        let own = metadata.topics[0].partitions.iter().find(|p| p.leader_id.0 == node_id);
        let partition = own.expect("the victim leads one of twelve").partition_index;
        let until = Instant::now() + Duration::from_secs(9);
        let writing = tokio::spawn(write(survivor, partition, until));
        let reading = tokio::spawn(read(addresses.clone(), partition, until));
        let beating = tokio::spawn(beat(group, ids[0].clone(), generation, until));
        sleep(Duration::from_secs(2)).await;
        drop(brokers.remove(victim));
        writing.await.expect("the writer ends well");
        gaps.push(reading.await.expect("the reader ends well"));
        beats.push(beating.await.expect("the member ends well"));
        for broker in &brokers {
            rebalances += broker.metric("strandline_group_rebalances_total", "").await;
        }
    }
    report.figure("coordinator killed: gap in consumption, median", percentile(&mut gaps, 0.5), "s");
    report.target(
        "coordinator killed: gap in consumption, longest of 5",
        percentile(&mut gaps, 1.0),
        "s",
        Bound::AtMost,
        3.0,
    );
    report.figure(
        "coordinator killed: gap between heartbeats, longest of 5",
        percentile(&mut beats, 1.0),
        "s",
    );
    report.target("coordinator killed: rebalances", rebalances, "", Bound::AtMost, 0.0);
}

async fn three(stack: &mut Stack, cluster: &str) -> Vec<Broker> {
    let mut brokers = Vec::new();
    for node_id in 1..=3 {
        brokers.push(stack.broker(node_id, cluster, QUICK).await.0);
    }
    let mut client = Client::connect(&brokers[0].address).await.expect("a connection");
    while client.metadata(&[]).await.expect("metadata").brokers.len() < 3 {
        sleep(Duration::from_millis(20)).await;
    }
    brokers
}

/// A record every 20 ms.
async fn write(address: String, partition: i32, until: Instant) {
    let mut client = Client::connect(&address).await.expect("a connection");
    while Instant::now() < until {
        client.produce("t", partition, kib_batch(1)).await.expect("a survivor takes every record");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Reads where metadata lead, as clients do: after a failure it asks any broker for metadata, and
/// waits 100 ms before it tries again. Gives the longest time between two answers with records, in
/// seconds.
async fn read(addresses: Vec<String>, partition: i32, until: Instant) -> f64 {
    let (mut offset, mut last, mut longest) = (0, None::<Instant>, 0.0_f64);
    let mut connection: Option<Client> = None;
    while Instant::now() < until {
        if connection.is_none() {
            connection = leader(&addresses, partition).await;
        }
        let Some(client) = &mut connection else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok((end, _)) = client.fetch("t", partition, offset, 500).await else {
            connection = None;
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        if end > offset {
            offset = end;
            longest = longest.max(last.map_or(0.0, |last| last.elapsed().as_secs_f64()));
            last = Some(Instant::now());
        }
    }
    longest
}

async fn leader(addresses: &[String], partition: i32) -> Option<Client> {
    for address in addresses {
        let Ok(mut client) = Client::connect(address).await else { continue };
        let Ok(metadata) = client.metadata(&["t"]).await else { continue };
        let brokers: BTreeMap<i32, String> =
            metadata.brokers.iter().map(|b| (b.node_id.0, format!("{}:{}", &*b.host, b.port))).collect();
        let leader =
            metadata.topics[0].partitions.iter().find(|p| p.partition_index == partition)?.leader_id.0;
        return Client::connect(brokers.get(&leader)?).await.ok();
    }
    None
}

/// A heartbeat every 100 ms. Gives the longest time between two that were answered, in seconds.
async fn beat(mut group: Group, member: String, generation: i32, until: Instant) -> f64 {
    let (mut last, mut longest) = (Instant::now(), 0.0_f64);
    while Instant::now() < until {
        assert_eq!(group.heartbeat(&member, generation).await, 0, "the generation goes on");
        longest = longest.max(last.elapsed().as_secs_f64());
        last = Instant::now();
        sleep(Duration::from_millis(100)).await;
    }
    longest
}
