//! Three members: losing one is a hiccup, losing two is an outage that ends when they are back.

use super::server::{Options, Server, available};
use super::*;

async fn cluster() -> Vec<Server> {
    let mut servers = Server::members(3, &Options::default());
    for server in &mut servers {
        server.spawn();
    }
    for server in &servers {
        server.ready().await;
    }
    servers
}

#[tokio::test]
async fn a_lost_member_is_a_hiccup() {
    if !available("a_lost_member_is_a_hiccup") {
        return;
    }
    let mut servers = cluster().await;
    let store = client(servers.iter().map(Server::url)).await;
    for server in &mut servers {
        let revision =
            eventually("writing works", async || store.txn(put("a", "before")).await).await.revision;
        let mut watch = store.watch(KeyRange::key("a"), revision + 1).await.unwrap();
        // Whichever member this client uses now, and whichever leads, one round or another kills
        // it.
        server.kill();
        let revision =
            eventually("writing goes on", async || store.txn(put("a", "after")).await).await.revision;
        let seen = match next_events(&mut *watch).await {
            Ok(seen) => seen,
            Err(error) => {
                assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
                let mut watch =
                    eventually("watching goes on", async || store.watch(KeyRange::key("a"), revision).await)
                        .await;
                next_events(&mut *watch).await.unwrap()
            }
        };
        assert!(seen.contains(&revision), "{seen:?}, {revision}");
        server.spawn();
        server.ready().await;
    }
}

#[tokio::test]
async fn without_a_majority_nothing_is_acknowledged() {
    if !available("without_a_majority_nothing_is_acknowledged") {
        return;
    }
    let mut servers = cluster().await;
    let store = client(servers.iter().map(Server::url)).await;
    store.txn(put("a", "1")).await.unwrap();
    servers[0].kill();
    servers[1].kill();
    let start = Instant::now();
    let mut certain = false;
    while start.elapsed() < Duration::from_secs(6) {
        match store.txn(put("a", "2")).await {
            Err(BackendError::Unavailable(why)) => certain |= why.contains("no leader"),
            Err(BackendError::OutcomeUnknown(_)) => {}
            other => panic!("{other:?}"),
        }
        let read = get(&store, "a").await;
        assert!(
            matches!(read, Err(BackendError::Unavailable(_))),
            "a linearizable read needs a majority: {read:?}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    assert!(certain, "the member that is left soon says at once that it has no leader");
    servers[0].spawn();
    servers[1].spawn();
    eventually("writing comes back", async || store.txn(put("a", "3")).await).await;
    // Members that have only just come back may still be slow to answer.
    let kv = eventually("reading comes back", async || get(&store, "a").await).await.unwrap();
    assert_eq!(kv.value, "3");
}
