//! What a broker does when a task of its own dies.

use std::time::Duration;

use strandline_metadata::backend::{RangeRequest, ReadBackend};
use tokio::time::timeout;

use super::Fatal;
use crate::testing::World;

/// The tasks without which a broker would only look alive.
const CRITICAL: [&str; 8] =
    ["barrier", "committer", "flush", "groups", "jobs", "membership", "replica", "watermarks"];

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
