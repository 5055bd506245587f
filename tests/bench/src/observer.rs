//! The observer over a large cluster: how long each of its tools takes, what a call costs etcd
//! however many ask the same, how large answers are, and how much memory it holds over a long time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{CreateTopicsRequest, InitProducerIdRequest, TransactionalId};
use serde_json::{Value, json};
use strandline_tests::client::{Client, produce_request, text, topic};
use strandline_tests::member::Group;
use strandline_tests::observer::Observer;
use tokio::time::sleep;

use crate::load::kib_batch;
use crate::report::{Bound, Report, percentile};
use crate::stack::{Broker, Stack};

const TOPICS: usize = 5_000;
const PARTITIONS: i32 = 3;
const GROUPS: usize = 1_000;
/// Topics that a group reads.
const TOPICS_PER_GROUP: usize = 5;
/// The id that is described.
const TRANSACTIONAL_ID: &str = "team-00.payments";
/// Calls of each tool.
const CALLS: usize = 40;
/// Callers that ask the same at the same time.
const CALLERS: usize = 200;
/// The largest structured answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// Between two calls while memory is looked at: slow enough to leave the machine to others.
const SOAK_PAUSE: Duration = Duration::from_millis(200);
/// Between two readings of the memory.
const SOAK_STEP: Duration = Duration::from_mins(10);
/// Members say that they live so often that none of them is given up.
const BEAT: Duration = Duration::from_millis(40);

/// A cluster with topics, records, groups with members, and offsets.
struct Large {
    broker: Broker,
    members: Vec<(String, String, i32)>,
}

fn topic_name(n: usize) -> String {
    format!("team-{:02}.topic-{n:04}", n % 50)
}

fn group_name(n: usize) -> String {
    format!("team-{:02}.group-{n:04}", n % 50)
}

/// The topics that a group reads.
fn topics_of(group: usize) -> impl Iterator<Item = String> {
    (0..TOPICS_PER_GROUP).map(move |n| topic_name((group * TOPICS_PER_GROUP + n) % TOPICS))
}

impl Large {
    async fn make(stack: &mut Stack) -> Self {
        let flags = ["--group-initial-rebalance-delay-ms", "0", "--put-budget-per-s", "100000"];
        let (broker, _) = stack.broker(1, "large", &flags).await;
        let mut client = Client::connect(&broker.address).await.expect("a connection");
        for first in (0..TOPICS).step_by(250) {
            let topics = (first..first + 250).map(|n| {
                CreatableTopic::default()
                    .with_name(topic(&topic_name(n)))
                    .with_num_partitions(PARTITIONS)
                    .with_replication_factor(-1)
            });
            let request =
                CreateTopicsRequest::default().with_topics(topics.collect()).with_timeout_ms(60_000);
            let created = client.call(&request, 7).await.expect("topics are created");
            assert!(created.topics.iter().all(|t| t.error_code == 0), "{created:?}");
        }
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(text(TRANSACTIONAL_ID))))
            .with_transaction_timeout_ms(60_000);
        let answer = client.call(&request, 4).await.expect("a producer id");
        assert_eq!(answer.error_code, 0);
        let one = kib_batch(1);
        for n in 0..TOPICS {
            let batches: Vec<(i32, Bytes)> = (0..PARTITIONS).map(|p| (p, one.clone())).collect();
            client.send(&produce_request(&topic_name(n), &batches, 0), 9).await.expect("records are taken");
        }
        let address = broker.address.clone();
        let joining = futures::stream::iter((0..GROUPS).map(|n| {
            let address = address.clone();
            async move { join(n, address).await }
        }));
        let members = joining.buffer_unordered(32).collect().await;
        Self { broker, members }
    }

    /// Members that say now and then that they live, and commit; records that come in. Never ends.
    async fn go_on(self) {
        let mut client = Client::connect(&self.broker.address).await.expect("a connection");
        let one = kib_batch(1);
        for (turn, (id, member, generation)) in self.members.iter().cycle().enumerate() {
            let n: usize = id.rsplit('-').next().and_then(|n| n.parse().ok()).expect("a group's number");
            let mut group = Group::new(id, vec![self.broker.address.clone()]);
            group.heartbeat(member, *generation).await;
            commit(&mut group, n, member, *generation, (turn / GROUPS) as i64 % 2).await;
            let batches = vec![((turn as i32) % PARTITIONS, one.clone())];
            let request = produce_request(&topic_name(turn % TOPICS), &batches, 0);
            client.send(&request, 9).await.expect("records are taken");
            sleep(BEAT).await;
        }
    }
}

/// Joins a group as its only member, and commits once for each partition.
async fn join(n: usize, address: String) -> (String, String, i32) {
    let id = group_name(n);
    let mut group = Group::new(&id, vec![address]);
    let names: Vec<String> = topics_of(n).collect();
    let joined = group.join_for("", &names, Duration::from_mins(30)).await;
    assert_eq!(joined.error_code, 0, "{joined:?}");
    let (member, generation) = (joined.member_id.to_string(), joined.generation_id);
    let assignments = BTreeMap::from([(member.clone(), Bytes::new())]);
    assert_eq!(group.sync(&member, generation, &assignments).await.0, 0);
    commit(&mut group, n, &member, generation, 0).await;
    (id, member, generation)
}

async fn commit(group: &mut Group, n: usize, member: &str, generation: i32, offset: i64) {
    let offsets = topics_of(n).map(|name| (name, (0..PARTITIONS).map(|p| (p, offset)).collect()));
    let offsets: Vec<(String, Vec<(i32, i64)>)> = offsets.collect();
    assert_eq!(group.commit_for(member, generation, &offsets).await, 0);
}

/// Something for every argument that a tool cannot do without.
fn arguments(tool: &str, schema: &Value) -> Value {
    if tool == "query_metric" {
        return json!({"metric": "produce_records"});
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let filled = required.iter().filter_map(Value::as_str).map(|name| {
        let value = match name {
            "group_id" => json!(group_name(500)),
            "topic" => json!(topic_name(2_500)),
            "broker_id" => json!(1),
            "runbook_id" => json!("lag"),
            "transactional_id" => json!(TRANSACTIONAL_ID),
            other => panic!("what to give for {other}?"),
        };
        (name.to_owned(), value)
    });
    Value::Object(filled.collect())
}

/// Every tool, with arguments.
async fn tools(observer: Observer) -> Vec<(String, Value)> {
    let listed = observer.request("tools/list", json!({})).await.expect("the tools are listed");
    let tools = listed["tools"].as_array().expect("a list of tools");
    let filled = tools.iter().map(|tool| {
        let name = tool["name"].as_str().expect("a name");
        (name.to_owned(), arguments(name, &tool["inputSchema"]))
    });
    filled.collect()
}

/// Calls a tool; gives how long it took in ms, and the bytes of its answer.
async fn timed(observer: Observer, tool: &str, arguments: &Value) -> (f64, usize) {
    let begun = Instant::now();
    let answer = observer.call(tool, arguments.clone()).await;
    (begun.elapsed().as_secs_f64() * 1000.0, answer.to_string().len())
}

/// Each tool by itself, then many callers at once.
pub async fn figures(stack: &mut Stack, report: &mut Report) {
    let large = Large::make(stack).await;
    // Etcd is read by calls only, so that each read is one of a call.
    let (process, observer) = stack.observer("large", &["--scrape-interval-ms", "300000"]).await;
    let calling = async {
        let what = format!("observer, {TOPICS} topics, {GROUPS} groups");
        let (mut slowest, mut largest, mut all) = (0.0_f64, 0, Vec::new());
        let (own, (etcd, _), ranges) = (process.cpu_s(), stack.cpu_s(), stack.etcd_ranges().await);
        for (tool, arguments) in tools(observer).await {
            let mut samples = Vec::new();
            for _ in 0..CALLS {
                let (ms, bytes) = timed(observer, &tool, &arguments).await;
                samples.push(ms);
                largest = largest.max(bytes);
            }
            all.extend_from_slice(&samples);
            let median = percentile(&mut samples, 0.5);
            slowest = slowest.max(median);
            report.figure(format!("{what}: {tool}, median"), median, "ms");
            report.figure(format!("{what}: {tool}, p99"), percentile(&mut samples, 0.99), "ms");
        }
        report.figure(format!("{what}: all calls, median"), percentile(&mut all, 0.5), "ms");
        report.figure(format!("{what}: all calls, p99"), percentile(&mut all, 0.99), "ms");
        let (own, etcd) = (process.cpu_s() - own, stack.cpu_s().0 - etcd);
        let calls = all.len() as f64;
        report.figure(format!("{what}: processor of the observer per call"), own * 1000.0 / calls, "ms");
        report.figure(format!("{what}: processor of etcd per call"), etcd * 1000.0 / calls, "ms");
        let ranges = (stack.etcd_ranges().await - ranges) / calls;
        report.target(format!("{what}: etcd ranges per call"), ranges, "", Bound::AtMost, 2.0);
        report.target(format!("{what}: slowest tool's median"), slowest, "ms", Bound::AtMost, 50.0);
        let limit = ANSWER_BYTES as f64;
        report.target(format!("{what}: largest answer"), largest as f64, "bytes", Bound::AtMost, limit);
        for tool in ["list_groups", "list_lagging_groups", "cluster_status"] {
            let (before, begun) = (stack.etcd_ranges().await, Instant::now());
            let nothing = json!({});
            let calls = (0..CALLERS).map(|_| timed(observer, tool, &nothing));
            let mut samples: Vec<f64> =
                futures::future::join_all(calls).await.into_iter().map(|(ms, _)| ms).collect();
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            let ranges = stack.etcd_ranges().await - before;
            let what = format!("{what}: {CALLERS} callers of {tool} at once");
            // Two for each time that all who wait are answered from one read.
            report.figure(format!("{what}, etcd ranges"), ranges, "");
            report.figure(format!("{what}, median"), percentile(&mut samples, 0.5), "ms");
            report.figure(format!("{what}, all answered after"), took, "ms");
        }
        report.figure(format!("{what}: resident memory"), process.rss_mib(), "MiB");
    };
    tokio::select! {
        () = large.go_on() => unreachable!("it never ends"),
        () = calling => {}
    }
}

/// Calls one tool after the other for so long, with the loop at its default interval; looks at the
/// memory every ten minutes.
pub async fn soak(stack: &mut Stack, report: &mut Report, length: Duration) {
    let large = Large::make(stack).await;
    let (process, observer) = stack.observer("large", &[]).await;
    let calling = async {
        let tools = tools(observer).await;
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let (begun, mut next) = (Instant::now(), SOAK_STEP.min(length));
        let (mut calls, mut failed, mut readings) = (0, 0, vec![process.rss_mib()]);
        report.figure("observer's soak: resident memory at the start", process.rss_mib(), "MiB");
        for (tool, arguments) in tools.iter().cycle() {
            let asked = Instant::now();
            let answer = observer.try_call(tool, arguments.clone()).await.expect("the observer answers");
            let (ms, bytes) = (asked.elapsed().as_secs_f64() * 1000.0, answer.to_string().len());
            assert!(bytes <= ANSWER_BYTES, "{tool} answers {bytes} bytes");
            samples.entry(tool).or_default().push(ms);
            calls += 1;
            // Whoever else uses the machine may keep etcd from answering in time; then the answer
            // says so.
            failed += usize::from(answer.get("error").is_some());
            if begun.elapsed() >= next {
                let minutes = next.as_secs() / 60;
                let mib = process.rss_mib();
                readings.push(mib);
                let what = format!("observer's soak: resident memory after {minutes} min");
                report.figure(format!("{what}, {calls} calls"), mib, "MiB");
                if next >= length {
                    break;
                }
                next = (next + SOAK_STEP).min(length);
            }
            sleep(SOAK_PAUSE).await;
        }
        for (tool, samples) in &mut samples {
            report.figure(format!("observer's soak: {tool}, median"), percentile(samples, 0.5), "ms");
            report.figure(format!("observer's soak: {tool}, p99"), percentile(samples, 0.99), "ms");
        }
        report.figure("observer's soak: calls that etcd did not answer in time", failed as f64, "");
        let most = readings.iter().copied().fold(0.0, f64::max);
        report.target("observer's soak: most memory", most, "MiB", Bound::AtMost, 512.0);
    };
    tokio::select! {
        () = large.go_on() => unreachable!("it never ends"),
        () = calling => {}
    }
}
