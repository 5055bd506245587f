//! What a broker does when a task of its own dies.

use std::time::Duration;

use strandline_metadata::backend::{RangeRequest, ReadBackend};
use tokio::time::{Instant, timeout};

use super::Fatal;
use crate::testing::World;

/// The tasks without which a broker would only look alive.
const CRITICAL: [&str; 14] = [
    "barrier",
    "beacon",
    "committer",
    "flush",
    "groups",
    "jobs",
    "membership",
    "merge",
    "open transactions",
    "readiness",
    "replica",
    "space",
    "unwanted",
    "watermarks",
];

#[tokio::test(start_paused = true)]
async fn the_death_of_each_critical_task_ends_the_broker_and_its_registration() {
    for name in CRITICAL {
        let world = World::new();
        let mut opened = world.broker(1, &[]).await;
        // Tasks that others start have had their turn by then.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut started = opened.broker.tasks.critical();
        started.sort_unstable_by_key(|(name, _)| *name);
        assert_eq!(started.iter().map(|(name, _)| *name).collect::<Vec<_>>(), CRITICAL);
        let (_, task) = started.iter().find(|(started, _)| *started == name).unwrap();
        task.abort();
        let reason = timeout(Duration::from_secs(1), opened.fatal.recv()).await;
        let Ok(Some(reason @ Fatal::Task(_))) = reason else { panic!("{name}: {reason:?}") };
        assert!(reason.to_string().contains(name), "{reason}");

        let keys = opened.broker.replica.keys().brokers();
        opened.abandon().await;
        let request = RangeRequest { keys, revision: None, limit: 0, keys_only: true };
        let registered = world.backend.range(request).await.unwrap().kvs;
        assert!(registered.is_empty(), "{name}: others would wait for the lease to end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_leaving_does_not_wait_for_a_task_that_is_dead() {
    let world = World::new();
    let opened = world.broker(1, &[]).await;
    let broker = opened.broker.clone();
    tokio::time::sleep(Duration::from_millis(10)).await;
    // What nobody will ever write.
    let space = broker.buffer.reserve(1 << 20).await.unwrap();
    let flush = broker.tasks.critical().into_iter().find(|(name, _)| *name == "flush").unwrap().1;
    let begun = Instant::now();
    let (drained, ()) = futures::join!(opened.drain(), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        flush.abort();
    });
    assert!(matches!(drained, Err(Fatal::Task(_))), "{drained:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(space);
}
