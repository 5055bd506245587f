//! What merging costs, what those who read later have of it, and what it takes from those who
//! write; and the memory that log compaction needs for very many keys.

use std::time::{Duration, Instant};

use strandline_tests::client::Client;
use strandline_tests::table::keyed_batch;
use tokio::time::sleep;

use crate::load::{kib_batch, produce, produce_frames};
use crate::report::{Bound, Report, percentile};
use crate::stack::{Broker, Stack};
use crate::{CONNECTIONS, GIB, MIB, NO_BUDGET, raw_get, raw_put, read_in_parallel};

/// What is merged, and read afterwards, in bytes.
const BACKLOG_BYTES: u64 = 1 << 30;
const PARTITIONS: i32 = 6;
/// Nothing is merged.
const NEVER: &[&str] = &["--merge-interval-ms", "86400000"];
/// What is there is merged at once.
const AT_ONCE: &[&str] = &["--merge-interval-ms", "1000"];
/// How far away S3 is.
const LATENCY_MS: u64 = 30;
/// Produces by which the wait beside merging is measured.
const PROBES: usize = 250;
/// Keys that are changed in one request.
const KEYS_A_REQUEST: u64 = 20_000;
/// How often each key is changed.
const CHANGES: u64 = 10;
/// The budget of log compaction, and the most that its memory may grow by.
const COMPACT_MIB: f64 = 256.0;

/// Merging, reading what is merged, and producing beside it.
pub async fn figures(stack: &mut Stack, report: &mut Report) {
    for (cluster, is_probed) in [("merged", false), ("merged-beside", true)] {
        let (writer, _) = stack.broker(1, cluster, &[NO_BUDGET, NEVER].concat()).await;
        let mut client = Client::connect(&writer.address).await.expect("a connection");
        client.create_topic("load", PARTITIONS, &[]).await.expect("a topic");
        client.create_topic("probe", 1, &[]).await.expect("a topic");
        produce(&writer.address, produce_frames("load", PARTITIONS), BACKLOG_BYTES, CONNECTIONS, None).await;
        let calm = if is_probed { probe(&writer.address).await } else { 0.0 };
        drop(writer);
        let (merger, _) = stack.broker(1, cluster, &[NO_BUDGET, AT_ONCE].concat()).await;
        if is_probed {
            let busy = probe(&merger.address).await;
            assert!(merged(&merger).await > 0.0, "nothing was merged beside the produces");
            report.figure("produce p99 with nothing to merge", calm, "ms");
            report.figure("produce p99 while merging goes on", busy, "ms");
            let what = "produce p99 while merging goes on, against that";
            report.target(what, busy / calm, "ratio", Bound::AtMost, 1.3);
            continue;
        }
        merge(&merger, report).await;
        drop(merger);
        // Nobody rewrites bytes with less, by that client.
        let get = raw_get(stack, BACKLOG_BYTES / 2).await.cpu_s_per_gib;
        let put = raw_put(stack, BACKLOG_BYTES / 2, 5).await.cpu_s_per_gib;
        report.figure("merging from a cold cache: client of a raw GET and a raw PUT", get + put, "CPU-s/GiB");
        catch_up(stack, cluster, report).await;
    }
}

async fn merged(broker: &Broker) -> f64 {
    broker.metric("strandline_merged_bytes_total", "").await
}

/// Waits until all is merged, and says what that took.
async fn merge(merger: &Broker, report: &mut Report) {
    let (cpu, gets, begun) = (merger.process.cpu_s(), gets_of(merger).await, Instant::now());
    let mut last = (0.0, Instant::now());
    // Two looks after the last change there is nothing left.
    while last.0 < BACKLOG_BYTES as f64 * 0.95 || last.1.elapsed() < Duration::from_secs(3) {
        sleep(Duration::from_millis(200)).await;
        let now = merged(merger).await;
        if now > last.0 {
            last = (now, Instant::now());
        }
        assert!(begun.elapsed() < Duration::from_mins(5), "{} bytes are merged after five minutes", last.0);
    }
    let gib = last.0 / GIB;
    let used = (merger.process.cpu_s() - cpu) / gib;
    let rate = last.0 / MIB / (last.1 - begun).as_secs_f64();
    report.figure("merging from a cold cache: rate", rate, "MiB/s");
    report.target("merging from a cold cache: broker", used, "CPU-s/GiB", Bound::AtMost, 0.7);
    report.figure("merging from a cold cache: GETs", (gets_of(merger).await - gets) / gib, "GETs/GiB");
}

async fn gets_of(broker: &Broker) -> f64 {
    broker.metric("strandline_object_store_requests_total", "operation=\"get\"").await
}

/// Reads all of it by a broker that has nothing in memory: as fast as it goes, and from a store as
/// far away as S3 is, where there are processors to spare.
async fn catch_up(stack: &mut Stack, cluster: &str, report: &mut Report) {
    for (what, latency_ms) in [
        ("catch-up from merged objects", 0),
        ("catch-up from merged objects, 30 ms to the store", LATENCY_MS),
    ] {
        let (reader, _) = stack.broker(2, cluster, NEVER).await;
        stack.s3_latency_ms(latency_ms).await;
        let before = raw_get(stack, BACKLOG_BYTES / 2).await;
        let (cpu, gets) = (reader.process.cpu_s(), gets_of(&reader).await);
        let (bytes, took) = read_in_parallel(&reader.address, PARTITIONS).await;
        let gib = bytes as f64 / GIB;
        let used = (reader.process.cpu_s() - cpu) / gib;
        let gets = (gets_of(&reader).await - gets) / gib;
        let after = raw_get(stack, BACKLOG_BYTES / 2).await;
        stack.s3_latency_ms(0).await;
        let raw = f64::midpoint(before.mib_per_s, after.mib_per_s);
        let rate = bytes as f64 / MIB / took.as_secs_f64();
        report.figure(format!("{what}: raw GET"), raw, "MiB/s");
        report.figure(format!("{what}: rate"), rate, "MiB/s");
        report.target(format!("{what}: rate against raw GET"), rate / raw, "ratio", Bound::AtLeast, 0.85);
        if latency_ms == 0 {
            let raw = f64::midpoint(before.cpu_s_per_gib, after.cpu_s_per_gib);
            report.figure(format!("{what}: client of a raw GET"), raw, "CPU-s/GiB");
            report.target(format!("{what}: broker"), used, "CPU-s/GiB", Bound::AtMost, 0.6);
            report.target(format!("{what}: GETs"), gets, "GETs/GiB", Bound::AtMost, 140.0);
        }
    }
}

/// The p99 of small produces, one after the other, in ms.
async fn probe(address: &str) -> f64 {
    let mut client = Client::connect(address).await.expect("a connection");
    let one = kib_batch(1);
    let mut samples = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        let begun = Instant::now();
        client.produce("probe", 0, one.clone()).await.expect("a produce");
        samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(20)).await;
    }
    percentile(&mut samples, 0.99)
}

/// A compacted topic of so many keys, each of which is changed ten times.
pub async fn compaction(stack: &mut Stack, report: &mut Report, keys: u64) {
    let budget = ((COMPACT_MIB as u64) << 20).to_string();
    let flags = ["--compact-memory-bytes", &budget, "--cache-bytes", "67108864"];
    let (writer, _) = stack.broker(1, "compaction", &[NO_BUDGET, NEVER, &flags].concat()).await;
    let mut client = Client::connect(&writer.address).await.expect("a connection");
    let configs = [("cleanup.policy", "compact"), ("segment.ms", "1"), ("min.cleanable.dirty.ratio", "0")];
    client.create_topic("load", 1, &configs).await.expect("a topic");
    for change in 0..CHANGES {
        for first in (0..keys).step_by(KEYS_A_REQUEST as usize) {
            let changes = (first..keys.min(first + KEYS_A_REQUEST))
                .map(|key| (format!("{key:08}"), Some(format!("{change:04}"))));
            client.produce("load", 0, keyed_batch(&changes.collect::<Vec<_>>())).await.expect("a produce");
        }
    }
    drop(writer);
    let (broker, _) = stack.broker(1, "compaction", &[NO_BUDGET, AT_ONCE, &flags].concat()).await;
    let (before, cpu, begun) = (broker.process.rss_mib(), broker.process.cpu_s(), Instant::now());
    let mut most = before;
    while broker.metric("strandline_compacted_partitions_total", "done").await == 0.0 {
        most = most.max(broker.process.rss_mib());
        sleep(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_mins(30), "it is not compacted after half an hour");
    }
    let what = |what: &str| format!("compaction, {keys} keys changed {CHANGES} times: {what}");
    let read = broker.metric("strandline_compaction_bytes_total", "read").await;
    let superseded = broker.metric("strandline_compacted_away_records_total", "superseded").await;
    report.figure(what("took"), begun.elapsed().as_secs_f64(), "s");
    report.figure(what("broker"), broker.process.cpu_s() - cpu, "CPU-s");
    report.figure(what("read, all walks together"), read / GIB, "GiB");
    report.figure(what("records removed"), superseded, "records");
    assert_eq!(superseded as u64, keys * (CHANGES - 1), "of each key the newest stays");
    // It holds the objects that it reads and writes, too.
    report.target(what("memory beside that of merging"), most - before, "MiB", Bound::AtMost, COMPACT_MIB);
}
