//! Speed, measured side by side with the floor in one run: the machine is noisy, so only figures of
//! the same run mean anything together.
//!
//! Floor: the same bytes PUT to the same S3 server by `object_store` alone. `strandline-bench [NAME
//! …]` runs only the named parts: state, produce, sparse, puts, fetch, many, merged, transactions,
//! wide, start, fair, commits, members, failover, observer. `growth`, a simulated week, takes half
//! an hour, and `growth=HOURS` its share of that; `compaction`, ten million keys, takes some
//! minutes, or `compaction=KEYS`; `audit` writes 100,000 objects, or `audit=OBJECTS`;
//! `observer-soak` takes an hour, or `observer-soak=MINUTES`.
//! These run only if they are named.

mod audit;
mod groups;
mod growth;
mod load;
mod merged;
mod observer;
mod report;
mod stack;
mod state;
mod transactions;
mod wide;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use strandline_storage::path::ObjectId;
use strandline_tests::client::Client;

use crate::load::{fetch_all, kib_batch, produce, produce_frames};
use crate::report::{Bound, Report, percentile};
use crate::stack::Stack;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;
/// Bytes of one sustained run.
const RUN_BYTES: u64 = 1 << 30;
/// Connections of a sustained run: with five requests of 1 MiB each in flight they keep more than
/// four PUTs busy.
const CONNECTIONS: usize = 12;
/// Bytes at 10 MiB/s after which a saved-up burst of PUTs is spent.
const SPEND_BURST: u64 = 40 << 20;
/// What goes on for ever is measured without an hour's savings, which would last for minutes.
const NO_SAVINGS: &[&str] = &["--put-budget-burst", "8"];
const NO_BUDGET: &[&str] = &["--put-budget-per-s", "100000", "--put-budget-burst", "100000"];

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mut report = Report::default();
    if runs("state") {
        state::figures(&mut report).await;
    }
    if let Some(name) = wanted.iter().find(|name| name.split('=').next() == Some("growth")) {
        let hours = name.split_once('=').and_then(|(_, hours)| hours.parse().ok());
        growth::figures(&mut report, hours.unwrap_or(growth::HOURS)).await;
    }
    let is_of_stack = |name: &String| name != "state" && !name.starts_with("growth");
    if !wanted.is_empty() && !wanted.iter().any(is_of_stack) {
        return report.finish();
    }
    for fsync in [true, false] {
        let mut stack = Stack::start(fsync).await;
        if runs("produce") {
            sustained(&mut stack, &mut report, fsync).await;
        }
        if !fsync {
            continue;
        }
        if runs("sparse") {
            sparse(&mut stack, &mut report).await;
        }
        if runs("puts") {
            puts_per_gib(&mut stack, &mut report).await;
        }
        if runs("fetch") {
            fetch(&mut stack, &mut report).await;
        }
        if runs("many") {
            many_objects(&mut stack, &mut report).await;
        }
        if runs("merged") {
            merged::figures(&mut stack, &mut report).await;
        }
        if let Some(keys) = wanted.iter().find_map(|w| w.strip_prefix("compaction")) {
            let keys =
                keys.strip_prefix('=').map_or(10_000_000, |keys| keys.parse().expect("a number of keys"));
            merged::compaction(&mut stack, &mut report, keys).await;
        }
        if let Some(objects) = wanted.iter().find_map(|w| w.strip_prefix("audit")) {
            let objects =
                objects.strip_prefix('=').map_or(100_000, |n| n.parse().expect("a number of objects"));
            audit::figures(&mut stack, &mut report, objects).await;
        }
        if runs("transactions") {
            transactions::figures(&mut stack, &mut report).await;
        }
        if runs("wide") {
            wide::figures(&mut stack, &mut report).await;
        }
        if runs("start") {
            start(&mut stack, &mut report).await;
        }
        if runs("fair") {
            fairness(&mut stack, &mut report).await;
        }
        if runs("commits") {
            groups::commits(&mut stack, &mut report).await;
        }
        if runs("members") {
            groups::thousand_members(&mut stack, &mut report).await;
        }
        if runs("failover") {
            groups::failover(&mut stack, &mut report).await;
        }
        if runs("observer") {
            observer::figures(&mut stack, &mut report).await;
        }
        if let Some(minutes) = wanted.iter().find_map(|w| w.strip_prefix("observer-soak")) {
            let minutes = minutes.strip_prefix('=').map_or(60, |m| m.parse().expect("a number of minutes"));
            observer::soak(&mut stack, &mut report, Duration::from_mins(minutes)).await;
        }
    }
    report.finish();
}

/// PUTs `total` bytes as objects of 8 MiB by `object_store` alone, four at a time.
async fn raw_put(stack: &Stack, total: u64, round: u64) -> Raw {
    let store = stack.raw_store();
    let object = kib_batch(8192);
    let count = total / object.len() as u64;
    let (begun, cpu_s) = (Instant::now(), stack::cpu_s_of(std::process::id()));
    let puts = (0..count).map(|number| {
        let (store, object) = (store.clone(), object.clone());
        let key = ObjectId::write(round as i64, number, number as u32).key();
        tokio::spawn(async move { store.put(&key, object.into()).await.expect("a PUT") })
    });
    futures::stream::iter(puts).buffer_unordered(4).for_each(|done| async { done.expect("a task") }).await;
    let bytes = (count * object.len() as u64) as f64;
    let raw = Raw {
        mib_per_s: bytes / MIB / begun.elapsed().as_secs_f64(),
        cpu_s_per_gib: (stack::cpu_s_of(std::process::id()) - cpu_s) / (bytes / GIB),
    };
    for number in 0..count {
        let key = ObjectId::write(round as i64, number, number as u32).key();
        store.delete(&key).await.expect("a DELETE");
    }
    raw
}

async fn sustained(stack: &mut Stack, report: &mut Report, fsync: bool) {
    let mode = if fsync { "etcd with fsync" } else { "etcd without fsync" };
    for (partitions, cluster) in [(6, "six"), (1000, "thousand")] {
        let (broker, _) = stack.broker(1, cluster, NO_SAVINGS).await;
        let mut client = Client::connect(&broker.address).await.expect("a connection");
        client.create_topic("load", partitions, &[]).await.expect("a topic");
        let frames = produce_frames("load", partitions);
        produce(&broker.address, frames.clone(), RUN_BYTES / 8, CONNECTIONS, None).await;
        let floor_before = raw_put(stack, RUN_BYTES / 2, 1).await.mib_per_s;
        let (cpu, (etcd, s3)) = (broker.process.cpu_s(), stack.cpu_s());
        let took = produce(&broker.address, frames, RUN_BYTES, CONNECTIONS, None).await;
        let used = broker.process.cpu_s() - cpu;
        let (etcd_after, s3_after) = stack.cpu_s();
        let floor_after = raw_put(stack, RUN_BYTES / 2, 2).await.mib_per_s;
        let floor = f64::midpoint(floor_before, floor_after);
        let rate = RUN_BYTES as f64 / MIB / took.as_secs_f64();
        let gib = RUN_BYTES as f64 / GIB;
        let what = format!("produce 1 KiB, {partitions} partitions, {mode}");
        report.figure(format!("{what}: raw PUT"), floor, "MiB/s");
        report.figure(format!("{what}: rate"), rate, "MiB/s");
        let target = if fsync { 0.8 } else { 0.9 };
        report.target(format!("{what}: rate against raw PUT"), rate / floor, "ratio", Bound::AtLeast, target);
        report.target(format!("{what}: broker"), used / gib, "CPU-s/GiB", Bound::AtMost, 1.0);
        report.figure(format!("{what}: etcd"), (etcd_after - etcd) / gib, "CPU-s/GiB");
        report.figure(format!("{what}: S3 server"), (s3_after - s3) / gib, "CPU-s/GiB");
    }
}

/// The median of small PUTs by `object_store` alone, in ms.
async fn raw_put_median(stack: &Stack, bytes: usize) -> f64 {
    let store = stack.raw_store();
    let object = Bytes::from(vec![7; bytes]);
    let mut samples = Vec::new();
    for number in 0..200 {
        let key = ObjectId::write(9, number, 0).key();
        let begun = Instant::now();
        store.put(&key, object.clone().into()).await.expect("a PUT");
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    percentile(&mut samples, 0.5)
}

async fn sparse(stack: &mut Stack, report: &mut Report) {
    let one = kib_batch(1);
    for (per_s, flags, what) in
        [(2.0, &[][..], "2 records/s, default budget"), (10.0, NO_BUDGET, "10 records/s, no budget")]
    {
        let (broker, _) = stack.broker(1, &format!("sparse-{per_s}"), flags).await;
        let mut client = Client::connect(&broker.address).await.expect("a connection");
        client.create_topic("sparse", 1, &[]).await.expect("a topic");
        let put = raw_put_median(stack, one.len() + 100).await;
        let mut samples = Vec::new();
        for _ in 0..30 {
            let begun = Instant::now();
            client.produce("sparse", 0, one.clone()).await.expect("a produce");
            samples.push(begun.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(Duration::from_secs_f64(1.0 / per_s)).await;
        }
        let median = percentile(&mut samples, 0.5);
        report.figure(format!("sparse produce, {what}: PUT alone, median"), put, "ms");
        report.figure(format!("sparse produce, {what}: p99"), percentile(&mut samples, 0.99), "ms");
        report.target(
            format!("sparse produce, {what}: median over the PUT's"),
            median - put,
            "ms",
            Bound::AtMost,
            3.0,
        );
    }
}

async fn puts_per_gib(stack: &mut Stack, report: &mut Report) {
    let total = 160_u64 << 20;
    for partitions in [1, 100, 1000] {
        let cluster = format!("puts-{partitions}");
        let (broker, _) = stack.broker(1, &cluster, NO_SAVINGS).await;
        let mut client = Client::connect(&broker.address).await.expect("a connection");
        client.create_topic("load", partitions, &[]).await.expect("a topic");
        let name = "strandline_object_store_requests_total";
        // The burst that was saved up is spent first: what counts is what goes on for ever.
        produce(&broker.address, produce_frames("load", partitions), SPEND_BURST, 4, Some(10.0 * MIB)).await;
        let before = broker.metric(name, "operation=\"put\"").await;
        produce(&broker.address, produce_frames("load", partitions), total, 4, Some(10.0 * MIB)).await;
        let puts = broker.metric(name, "operation=\"put\"").await - before;
        let per_gib = puts * GIB / total as f64;
        report.target(
            format!("PUTs per GiB at 10 MiB/s, {partitions} partitions"),
            per_gib,
            "PUTs/GiB",
            Bound::AtMost,
            410.0,
        );
    }
    let mut brokers = Vec::new();
    for node_id in 1..=3 {
        brokers.push(stack.broker(node_id, "puts-three", NO_SAVINGS).await.0);
    }
    let mut client = Client::connect(&brokers[0].address).await.expect("a connection");
    client.create_topic("load", 100, &[]).await.expect("a topic");
    let mut puts = 0.0;
    for (sign, bytes) in [(-1.0, SPEND_BURST), (1.0, total)] {
        let loads = brokers.iter().map(|broker| {
            let frames = produce_frames("load", 100);
            async move { produce(&broker.address, frames, bytes / 3, 2, Some(10.0 * MIB / 3.0)).await }
        });
        futures::future::join_all(loads).await;
        for broker in &brokers {
            puts += sign * broker.metric("strandline_object_store_requests_total", "operation=\"put\"").await;
        }
    }
    let what = "PUTs per GiB at 10 MiB/s over three brokers, 100 partitions";
    report.target(what, puts * GIB / total as f64, "PUTs/GiB", Bound::AtMost, 1230.0);
}

async fn fetch(stack: &mut Stack, report: &mut Report) {
    let total = 512_u64 << 20;
    let flags = &["--cache-bytes", "4000000000"][..];
    let (writer, _) = stack.broker(1, "fetch", flags).await;
    let mut client = Client::connect(&writer.address).await.expect("a connection");
    client.create_topic("load", 6, &[]).await.expect("a topic");
    produce(&writer.address, produce_frames("load", 6), total, CONNECTIONS, None).await;
    // What the writer has in memory.
    let cpu = writer.process.cpu_s();
    let (bytes, took) = read_in_parallel(&writer.address, 6).await;
    let used = (writer.process.cpu_s() - cpu) / (bytes as f64 / GIB);
    report.figure("tail fetch from memory: rate", bytes as f64 / MIB / took.as_secs_f64(), "MiB/s");
    report.target("tail fetch from memory: broker", used, "CPU-s/GiB", Bound::AtMost, 0.35);
    // Another broker has nothing in memory.
    let (reader, _) = stack.broker(2, "fetch", &[]).await;
    let raw = raw_get(stack, total).await.mib_per_s;
    let cpu = reader.process.cpu_s();
    let (bytes, took) = read_in_parallel(&reader.address, 6).await;
    let used = (reader.process.cpu_s() - cpu) / (bytes as f64 / GIB);
    let rate = bytes as f64 / MIB / took.as_secs_f64();
    report.figure("catch-up: raw GET of as many bytes in 8 MiB objects", raw, "MiB/s");
    report.figure("catch-up: rate", rate, "MiB/s");
    report.target("catch-up: rate against raw GET", rate / raw, "ratio", Bound::AtLeast, 0.8);
    report.target("catch-up (misses): broker", used, "CPU-s/GiB", Bound::AtMost, 0.7);
    end_to_end(&writer, &reader, stack, report).await;
}

/// A partition that gets little lies in an object for each of its records. The floor is one GET
/// after the other.
async fn many_objects(stack: &mut Stack, report: &mut Report) {
    const OBJECTS: usize = 400;
    const LATENCY_MS: u64 = 30;
    let flags = [NO_BUDGET, &["--linger-ms", "1"]].concat();
    let (writer, _) = stack.broker(1, "many", &flags).await;
    let mut client = Client::connect(&writer.address).await.expect("a connection");
    client.create_topic("load", 1, &[]).await.expect("a topic");
    for _ in 0..OBJECTS {
        client.produce("load", 0, kib_batch(1)).await.expect("a produce");
    }
    let (reader, _) = stack.broker(2, "many", &[]).await;
    let store = stack.raw_store();
    let key = ObjectId::write(7, 0, 0).key();
    store.put(&key, kib_batch(1).into()).await.expect("a PUT");
    stack.s3_latency_ms(LATENCY_MS).await;
    let begun = Instant::now();
    for _ in 0..OBJECTS / 10 {
        store.get(&key, None).await.expect("a GET");
    }
    let raw = begun.elapsed().as_secs_f64() * 10.0;
    let (_, took) = fetch_all(&reader.address, "load", vec![0]).await;
    stack.s3_latency_ms(0).await;
    let what = format!("catch-up, {OBJECTS} objects of one record each, {LATENCY_MS} ms to the store");
    report.figure(format!("{what}: one GET after the other"), raw, "s");
    report.figure(format!("{what}: took"), took.as_secs_f64(), "s");
    report.target(
        format!("{what}: against the GETs"),
        took.as_secs_f64() / raw,
        "ratio",
        Bound::AtMost,
        0.25,
    );
}

async fn read_in_parallel(address: &str, partitions: i32) -> (u64, Duration) {
    let begun = Instant::now();
    let halves = [(0..partitions / 2).collect::<Vec<_>>(), (partitions / 2..partitions).collect()];
    let reads = halves.map(|half| {
        let address = address.to_owned();
        tokio::spawn(async move { fetch_all(&address, "load", half).await })
    });
    let mut total = 0;
    for read in reads {
        total += read.await.expect("a consumer ends well").0;
    }
    (total, begun.elapsed())
}

/// What `object_store` does alone.
#[derive(Clone, Copy, Debug)]
struct Raw {
    mib_per_s: f64,
    /// Of this process, which is the store's client.
    cpu_s_per_gib: f64,
}

/// GETs of 8 MiB objects by `object_store` alone, four at a time.
async fn raw_get(stack: &Stack, total: u64) -> Raw {
    let store = stack.raw_store();
    let object = kib_batch(8192);
    let key = |number: u64| ObjectId::write(3, number, 0).key();
    for number in 0..8 {
        store.put(&key(number), object.clone().into()).await.expect("a PUT");
    }
    let count = total / object.len() as u64;
    let (begun, cpu_s) = (Instant::now(), stack::cpu_s_of(std::process::id()));
    let gets = (0..count).map(|number| {
        let (store, key) = (store.clone(), key(number % 8));
        tokio::spawn(async move { store.get(&key, None).await.expect("a GET").len() })
    });
    let bytes: usize = futures::stream::iter(gets)
        .buffer_unordered(4)
        .map(|n| n.expect("a task"))
        .fold(0, |a, n| async move { a + n })
        .await;
    Raw {
        mib_per_s: bytes as f64 / MIB / begun.elapsed().as_secs_f64(),
        cpu_s_per_gib: (stack::cpu_s_of(std::process::id()) - cpu_s) / (bytes as f64 / GIB),
    }
}

/// From a produce to a consumer that waits on another broker.
async fn end_to_end(writer: &stack::Broker, reader: &stack::Broker, stack: &Stack, report: &mut Report) {
    let mut producer = Client::connect(&writer.address).await.expect("a connection");
    producer.create_topic("e2e", 1, &[]).await.expect("a topic");
    let mut consumer = Client::connect(&reader.address).await.expect("a connection");
    let one = kib_batch(1);
    let (mut acked, mut received) = (Vec::new(), Vec::new());
    for offset in 0..20 {
        let fetch = strandline_tests::client::fetch_request("e2e", &[(0, offset)], 10_000, 1 << 20);
        let id = consumer.send(&fetch, 12).await.expect("a fetch is sent");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = Instant::now();
        let (acknowledged, delivered) = futures::join!(
            async {
                producer.produce("e2e", 0, one.clone()).await.expect("a produce");
                begun.elapsed()
            },
            async {
                consumer.receive::<kafka_protocol::messages::FetchRequest>(id, 12).await.expect("a fetch");
                begun.elapsed()
            }
        );
        acked.push(acknowledged.as_secs_f64() * 1000.0);
        received.push(delivered.as_secs_f64() * 1000.0);
    }
    let mut get = Vec::new();
    let store = stack.raw_store();
    let key = ObjectId::write(4, 0, 0).key();
    store.put(&key, one.into()).await.expect("a PUT");
    for _ in 0..50 {
        let begun = Instant::now();
        store.get(&key, None).await.expect("a GET");
        get.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let more = percentile(&mut received, 0.5) - percentile(&mut acked, 0.5);
    report.figure("end to end, other broker: produce, median", percentile(&mut acked, 0.5), "ms");
    report.figure("end to end, other broker: delivered, median", percentile(&mut received, 0.5), "ms");
    report.figure("end to end: one GET, median", percentile(&mut get, 0.5), "ms");
    report.figure("end to end: delivery after the acknowledgement", more, "ms");
}

async fn start(stack: &mut Stack, report: &mut Report) {
    let one = kib_batch(1);
    let begun = Instant::now();
    let (broker, ready) = stack.broker(1, "start-empty", &[]).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    client.create_topic("first", 1, &[]).await.expect("a topic");
    client.produce("first", 0, one.clone()).await.expect("a produce");
    report.figure("start, empty: until it answers", ready.as_secs_f64(), "s");
    report.target(
        "start, empty: to the first acknowledged record",
        begun.elapsed().as_secs_f64(),
        "s",
        Bound::AtMost,
        1.0,
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    report.target("resident memory, idle", broker.process.rss_mib(), "MiB", Bound::AtMost, 40.0);
    drop(broker);

    let (broker, _) = stack.broker(1, "start-large", NO_BUDGET).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    for topic in 0..10 {
        client.create_topic(&format!("large-{topic}"), 1000, &[]).await.expect("a topic");
    }
    many_batches(&broker.address).await;
    report.figure(
        "start, large: ranges in the state",
        broker.metric("strandline_state_ranges", "").await,
        "ranges",
    );
    report.figure("start, large: resident memory of the writer", broker.process.rss_mib(), "MiB");
    drop(broker);
    let begun = Instant::now();
    let (broker, ready) = stack.broker(1, "start-large", &[]).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    client.produce("large-0", 0, one).await.expect("a produce");
    let what = "start, 10,000 partitions and a million batches";
    report.figure(format!("{what}: until it answers"), ready.as_secs_f64(), "s");
    report.target(
        format!("{what}: to the first acknowledged record"),
        begun.elapsed().as_secs_f64(),
        "s",
        Bound::AtMost,
        2.0,
    );
}

/// Commits a million batches of one small record over 10,000 partitions.
async fn many_batches(address: &str) {
    use strandline_tests::client::{frame, produce_request};
    let small = strandline_tests::records::batch(
        &["x"],
        load::now_ms(),
        None,
        kafka_protocol::records::Compression::None,
    );
    let batches: Vec<(i32, Bytes)> = (0..1000).map(|p| (p, small.clone())).collect();
    let tasks = (0..10).map(|topic| {
        let frame = frame(&produce_request(&format!("large-{topic}"), &batches, -1), 9, 1, "bench");
        let address = address.to_owned();
        tokio::spawn(async move {
            let mut client = Client::connect(&address).await.expect("a connection");
            for _ in 0..20 {
                for _ in 0..5 {
                    client.send_raw(&frame).await.expect("a request");
                }
                for _ in 0..5 {
                    client.receive_raw().await.expect("an answer");
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a producer ends well");
    }
}

async fn fairness(stack: &mut Stack, report: &mut Report) {
    let (broker, _) = stack.broker(1, "fair", NO_BUDGET).await;
    let mut client = Client::connect(&broker.address).await.expect("a connection");
    client.create_topic("small", 100, &[]).await.expect("a topic");
    client.create_topic("load", 6, &[]).await.expect("a topic");
    let alone = small_producers(&broker.address).await;
    let address = broker.address.clone();
    let big = tokio::spawn(async move {
        produce(&address, produce_frames("load", 6), 600 << 20, 1, Some(50.0 * MIB)).await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = small_producers(&broker.address).await;
    big.await.expect("the big producer ends well");
    report.figure("100 small producers alone: p99", alone, "ms");
    report.figure("100 small producers beside 50 MiB/s: p99", beside, "ms");
    report.target("small producers' p99, beside against alone", beside / alone, "ratio", Bound::AtMost, 2.0);
}

/// A hundred producers of one small record each per 10 ms, for some seconds: their p99 in ms.
async fn small_producers(address: &str) -> f64 {
    let tasks: Vec<_> = (0..100)
        .map(|partition| {
            let address = address.to_owned();
            tokio::spawn(async move {
                let mut client = Client::connect(&address).await.expect("a connection");
                let one = strandline_tests::records::batch(
                    &["small"],
                    load::now_ms(),
                    None,
                    kafka_protocol::records::Compression::None,
                );
                let mut samples = Vec::new();
                let mut due = tokio::time::Instant::now() + Duration::from_micros(100 * partition as u64);
                for _ in 0..500 {
                    tokio::time::sleep_until(due).await;
                    let begun = Instant::now();
                    client.produce("small", partition, one.clone()).await.expect("a produce");
                    samples.push(begun.elapsed().as_secs_f64() * 1000.0);
                    due = (due + Duration::from_millis(10)).max(tokio::time::Instant::now());
                }
                samples
            })
        })
        .collect();
    let mut samples = Vec::new();
    for task in tasks {
        samples.extend(task.await.expect("a producer ends well"));
    }
    percentile(&mut samples, 0.99)
}
