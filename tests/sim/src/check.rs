//! The reckoning: what clients were told against what is there, and what is there against itself.

use std::time::Duration;

use strandline_broker::fsck;
use strandline_metadata::backend::{KeyRange, RangeRequest};
use strandline_metadata::invariants;
use strandline_storage::path::ObjectKey;
use strandline_storage::store::ObjectMeta;
use strandline_tests::checker;
use tokio::time::{sleep, timeout};

use crate::scenario::{TOPIC, World};

/// Time for brokers to have seen the same, when nothing happens any more.
const SETTLE: Duration = Duration::from_mins(1);
/// Time in which whatever is dirty is compacted, also by a broker whose clock is behind by as much
/// as may be.
const COMPACTION: Duration = Duration::from_secs(40);
/// Time in which what could not be read is tried again.
const REST: Duration = Duration::from_mins(11);
/// Time in which the bucket is listed for orphans, by far.
const ORPHANS: Duration = Duration::from_mins(12);
const PAGE: usize = 1000;
/// The numbers of those who write to the compacted topic when nothing goes wrong any more.
const LAST_WRITERS: u32 = 1_000;

/// Checks everything that can be checked when nothing goes wrong any more.
pub(crate) async fn everything(world: &World) {
    let history = &world.history;
    if !world.all_open().await {
        history.anomaly("does not start", "a broker is not open again after everything healed");
        return;
    }
    at_rest(world).await;
    let addresses = world.addresses();
    let all = checker::check(&addresses, TOPIC, world.plan.partitions, history).await;
    if let Some(table) = &world.table {
        // What could not be read once is left alone for a while.
        for (number, rest) in (LAST_WRITERS..).zip([Duration::ZERO, REST]) {
            sleep(rest).await;
            table.write_by_all(number, world.plan.seed).await;
            sleep(COMPACTION).await;
            if table.is_compacted(&addresses[0]).await {
                break;
            }
        }
        table.check(&addresses, true).await;
    }
    if let Some(payments) = &world.payments {
        payments.check().await;
        world.outside.trace.note(&format!("{} transactions are known to be committed", payments.committed()));
    }
    same_state(world).await;
    audit(world, false).await;
    // A broker that starts now has nothing in memory: it reads snapshot, log and every object.
    world.nodes[0].kill();
    if !world.all_open().await {
        history.anomaly("does not start", "a broker does not start from what is stored");
        return;
    }
    checker::check_same(&addresses[0], "before the restart", TOPIC, &all, history).await;
    same_state(world).await;
    if world.plan.waits_for_orphans {
        sleep(ORPHANS).await;
        audit(world, true).await;
    }
}

/// Nobody waits for anything any more, and processes whose place was taken have noticed it.
async fn at_rest(world: &World) {
    let buffered = || {
        let brokers = world.nodes.iter().filter_map(|n| n.broker());
        brokers.map(|b| b.produce_bytes_in_use()).sum::<usize>()
    };
    let at_rest = async {
        while buffered() > 0 || world.nodes.iter().any(|n| n.has_replaced()) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    if timeout(SETTLE, at_rest).await.is_err() {
        if buffered() > 0 {
            let what = format!("{} bytes of producers are held, and nobody sends", buffered());
            world.history.anomaly("never answered", what);
        }
        for node in world.nodes.iter().filter(|n| n.has_replaced()) {
            let what = format!("broker {}: a process whose place was taken goes on", node.id);
            world.history.anomaly("does not end", what);
        }
    }
}

/// All brokers derive the same from the same log, and it is sound in itself.
async fn same_state(world: &World) {
    let states =
        || world.nodes.iter().filter_map(|n| Some((n.id, n.broker()?.replica().state()))).collect::<Vec<_>>();
    let equal = async {
        loop {
            let states = states();
            if states.windows(2).all(|pair| pair[0].1.revision() == pair[1].1.revision()) {
                return states;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let Ok(states) = timeout(SETTLE, equal).await else {
        let revisions: Vec<(i32, i64)> = states().iter().map(|(id, s)| (*id, s.revision())).collect();
        world.history.anomaly("brokers differ", format!("they never are at one revision: {revisions:?}"));
        return;
    };
    for (id, state) in &states {
        if let Err(violation) = invariants::check(state) {
            world.history.anomaly("broken state", format!("broker {id}: {violation}"));
        }
        if *state != states[0].1 {
            let what = format!("broker {id} and broker {} at revision {}", states[0].0, state.revision());
            world.history.anomaly("brokers differ", what);
        }
    }
}

/// What the product's own audit says.
async fn audit(world: &World, orphans_are_gone: bool) {
    let Some(broker) = world.nodes[0].broker() else { return };
    let (backend, store) = (&world.outside.backend, &world.outside.store);
    match fsck::run(backend, store, broker.replica().keys(), true).await {
        Ok(report) => {
            for finding in &report.findings {
                world.history.anomaly("audit", finding.to_string());
            }
            if orphans_are_gone && report.orphans > 0 {
                let what = format!("{} objects that nobody commits any more are still there", report.orphans);
                world.history.anomaly("orphans", what);
            }
        }
        Err(error) => world.history.anomaly("audit", error.to_string()),
    }
}

async fn list(world: &World) -> Vec<ObjectMeta> {
    let mut found: Vec<ObjectMeta> = Vec::new();
    loop {
        let after: Option<ObjectKey> = found.last().map(|meta| meta.key.clone());
        let page = world.outside.store.list("", after.as_ref(), PAGE).await.expect("memory can be listed");
        let full = page.len() == PAGE;
        found.extend(page);
        if !full {
            return found;
        }
    }
}

/// Notes where every broker thinks that the topic and its producers are.
pub(crate) fn describe(world: &World) {
    for node in &world.nodes {
        let Some(broker) = node.broker() else { continue };
        let state = broker.replica().state();
        for (topic_id, topic) in state.topics() {
            for (number, partition) in topic.partitions().iter().enumerate() {
                let (id, end) = (node.id, partition.end());
                world.outside.trace.note(&format!(
                    "broker {id} at revision {}: {topic_id}-{number} ends at {end}, producers {:?}",
                    state.revision(),
                    partition.producers()
                ));
            }
        }
    }
}

/// A digest of what etcd and S3 hold, and of what clients saw.
pub(crate) async fn digest(world: &World) -> u64 {
    let mut hasher = [crc32fast::Hasher::new(), crc32fast::Hasher::new_with_initial(0x5eed)];
    let mut add = |bytes: &[u8]| hasher.iter_mut().for_each(|h| h.update(bytes));
    let keys = KeyRange::prefix("/");
    let request = RangeRequest { keys, revision: None, limit: 0, keys_only: false };
    let read = world.outside.backend.range(request).await.expect("memory can be read");
    add(&read.revision.to_be_bytes());
    for kv in &read.kvs {
        add(&kv.key);
        add(&kv.mod_revision.to_be_bytes());
        add(&kv.value);
    }
    for meta in list(world).await {
        add(meta.key.as_str().as_bytes());
        add(&world.outside.store.get(&meta.key, None).await.expect("it was listed"));
    }
    let inner = world.history.lock();
    for acked in &inner.acked {
        add(format!("{acked:?}").as_bytes());
    }
    add(format!("{:?}{:?}{:?}", inner.seen, inner.errors, inner.sent).as_bytes());
    drop(inner);
    for line in world.outside.trace.lines() {
        add(line.as_bytes());
    }
    let [a, b] = hasher.map(crc32fast::Hasher::finalize);
    (u64::from(a) << 32) | u64::from(b)
}
