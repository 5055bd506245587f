//! One etcd that dies, hangs, fills up, or whose answers are lost.

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use strandline_metadata::backend::Compare;

use super::proxy::Proxy;
use super::server::{Options, Server, available};
use super::*;

/// How often a counter is incremented while etcd is killed.
const GOAL: i64 = 400;

fn unavailable<T: std::fmt::Debug>(result: &Result<T, BackendError>) {
    assert!(matches!(result, Err(BackendError::Unavailable(_))), "{result:?}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_unavailable() {
    if !available("what_cannot_be_sent_is_unavailable") {
        return;
    }
    let mut server = Server::start().await;
    let never_connected = client([server.url()]).await;
    let connected = client([server.url()]).await;
    connected.txn(put("a", "1")).await.unwrap();
    server.kill();
    sleep(Duration::from_millis(200)).await;
    for store in [&never_connected, &connected] {
        unavailable(&get(store, "a").await);
        unavailable(&store.txn(put("a", "2")).await);
        unavailable(&store.lease_grant(30).await);
        unavailable(&store.watch(KeyRange::key("a"), 1).await);
    }
    server.spawn();
    for store in [&never_connected, &connected] {
        let kv = eventually("reading comes back", async || get(store, "a").await).await.unwrap();
        assert_eq!(kv.version, 1, "nothing that was said not to be executed was executed");
    }
    connected.txn(put("a", "3")).await.unwrap();
}

/// Increments by compare-and-set while etcd is killed again and again. Each increment must count
/// once.
///
/// A transaction whose outcome is unknown is sent again, the same one. A read in between would
/// decide nothing if it found the old value: etcd was seen to execute a lost transaction after a
/// later linearizable read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_survive_kill_9_once_each() {
    if !available("transactions_survive_kill_9_once_each") {
        return;
    }
    let mut server = Server::start().await;
    let store = client([server.url()]).await;
    let first = store.txn(put("counter", "start")).await.unwrap().revision;
    let mut watch = store.watch(KeyRange::key("counter"), first + 1).await.unwrap();

    let counting = async {
        let (mut done, mut unknown, mut unavailable) = (0, 0, 0);
        let (mut newest, mut in_doubt) = (first, false);
        while done < GOAL {
            let txn = Txn {
                compares: vec![Compare::ModRevision("counter".into(), newest)],
                then: vec![Op::put("counter", done.to_string())],
                otherwise: vec![],
            };
            match store.txn(txn).await {
                Ok(response) if response.succeeded => {
                    newest = response.revision;
                    done += 1;
                    in_doubt = false;
                }
                Ok(_) => {
                    assert!(in_doubt, "nobody else counts");
                    let kv = eventually("the counter is read", async || get(&store, "counter").await)
                        .await
                        .unwrap();
                    assert_eq!((kv.version, &kv.value[..]), (done + 2, done.to_string().as_bytes()));
                    newest = kv.mod_revision;
                    done += 1;
                    in_doubt = false;
                }
                Err(BackendError::OutcomeUnknown(_)) => {
                    unknown += 1;
                    in_doubt = true;
                }
                Err(BackendError::Unavailable(_)) => {
                    unavailable += 1;
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
            sleep(Duration::from_millis(2)).await;
        }
        (unknown, unavailable)
    };
    let killing = async {
        for _ in 0..4 {
            sleep(Duration::from_millis(400)).await;
            server.kill();
            sleep(Duration::from_millis(300)).await;
            server.spawn();
            server.ready().await;
        }
    };
    let watching = async {
        let mut seen = Vec::new();
        let mut broken = 0;
        while seen.len() < usize::try_from(GOAL).unwrap() {
            match next_events(&mut *watch).await {
                Ok(revisions) => seen.extend(revisions),
                Err(error) => {
                    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
                    broken += 1;
                    let next = seen.last().copied().unwrap_or(first) + 1;
                    watch = eventually("the watch is opened", async || {
                        store.watch(KeyRange::key("counter"), next).await
                    })
                    .await;
                }
            }
        }
        (seen, broken)
    };
    let ((unknown, unavailable), (), (seen, broken)) = tokio::join!(counting, killing, watching);
    println!("{unknown} unknown, {unavailable} unavailable, {broken} broken watches");
    assert_eq!(seen, (first + 1..=first + GOAL).collect::<Vec<_>>(), "each increment once, and seen once");
    assert!(unavailable > 0 && broken > 0, "the kills were noticed");
    let kv = get(&store, "counter").await.unwrap().unwrap();
    assert_eq!(kv.version, GOAL + 1);
}

#[tokio::test]
async fn a_hanging_etcd_leaves_outcomes_unknown() {
    if !available("a_hanging_etcd_leaves_outcomes_unknown") {
        return;
    }
    let server = Server::start().await;
    let store = client([server.url()]).await;
    let revision = store.txn(put("a", "1")).await.unwrap().revision;
    let lease = store.lease_grant(60).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    let mut watch = store.watch(KeyRange::key("a"), revision + 1).await.unwrap();

    server.pause();
    let lost = store.txn(put("a", "2")).await;
    assert!(matches!(lost, Err(BackendError::OutcomeUnknown(_))), "{lost:?}");
    unavailable(&get(&store, "a").await);
    let lost = store.lease_keep_alive(lease).await;
    assert!(matches!(lost, Err(BackendError::OutcomeUnknown(_))), "{lost:?}");
    // A stuck watch is noticed.
    unavailable(&next_events(&mut *watch).await);

    server.resume();
    let kv = eventually("reading comes back", async || get(&store, "a").await).await.unwrap();
    // The lost transaction was in etcd's socket, so it may have been executed since; unknown is
    // what it was.
    assert!(kv.version == 1 || kv.version == 2, "{kv:?}");
    store.lease_keep_alive(lease).await.unwrap();
    let mut watch = store.watch(KeyRange::key("a"), revision).await.unwrap();
    next_events(&mut *watch).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_not_a_failure() {
    if !available("a_lost_answer_is_not_a_failure") {
        return;
    }
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let direct = client([server.url()]).await;
    let store = client([format!("http://127.0.0.1:{}", proxy.port)]).await;
    store.txn(put("a", "1")).await.unwrap();
    let payload = 200_000;

    proxy.lose_answers(true);
    let before = proxy.sent_bytes();
    let lost = store.txn(put("a", vec![b'x'; payload])).await;
    assert!(matches!(lost, Err(BackendError::OutcomeUnknown(_))), "{lost:?}");
    let kv = get(&direct, "a").await.unwrap().unwrap();
    assert!(kv.version <= 2, "sent once at most: {}", kv.version);
    assert!(proxy.sent_bytes() - before < 2 * payload as u64, "nothing sent it again");
    unavailable(&get(&store, "a").await);
    proxy.lose_answers(false);
    eventually("reading comes back", async || get(&store, "a").await).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(get(&direct, "a").await.unwrap().unwrap().version, kv.version, "and nothing sends it later");
}

/// What [`BackendError::NoSpace`] says of etcd, and the log's writer relies on.
#[tokio::test]
async fn etcd_executes_what_takes_it_over_its_quota_and_refuses_it() {
    if !available("etcd_executes_what_takes_it_over_its_quota_and_refuses_it") {
        return;
    }
    for _ in 0..20 {
        let arguments = vec!["--quota-backend-bytes".to_owned(), (4 * 1024 * 1024).to_string()];
        let server = Server::start_with(Options { arguments, tls: false }).await;
        let store = client([server.url()]).await;
        // Many write at once until there is no room. Those that were let in before, and are carried
        // out after the database has grown over its quota, are executed and refused.
        let writers = (0..40).map(async |writer| {
            for i in 0..1000 {
                let key = format!("big-{writer}-{i}");
                if matches!(store.txn(put(&key, vec![b'x'; 50_000])).await, Err(BackendError::NoSpace)) {
                    return get(&store, &key).await.unwrap().is_some();
                }
            }
            false
        });
        if futures::future::join_all(writers).await.contains(&true) {
            return;
        }
    }
    panic!("whatever was refused for want of space was not executed");
}

#[tokio::test]
async fn a_full_etcd_says_so_and_can_be_helped() {
    if !available("a_full_etcd_says_so_and_can_be_helped") {
        return;
    }
    let arguments = vec!["--quota-backend-bytes".to_owned(), (4 * 1024 * 1024).to_string()];
    let server = Server::start_with(Options { arguments, tls: false }).await;
    let store = client([server.url()]).await;
    let fill = async || {
        for _ in 0..100 {
            match store.txn(put("big", vec![b'x'; 200_000])).await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        panic!("etcd never fills up")
    };
    assert_eq!(fill().await, BackendError::NoSpace);
    assert_eq!(store.txn(put("small", "1")).await.unwrap_err(), BackendError::NoSpace);
    assert_eq!(store.lease_grant(30).await.unwrap_err(), BackendError::NoSpace);

    // Reading, watching, deleting and compacting still work, and with the runbook's two steps the
    // rest.
    let kv = get(&store, "big").await.unwrap().unwrap();
    let mut watch = store.watch(KeyRange::key("big"), kv.mod_revision).await.unwrap();
    next_events(&mut *watch).await.unwrap();
    let delete = Txn { then: vec![Op::Delete(KeyRange::key("big"))], ..Txn::default() };
    let deleted = store.txn(delete).await.unwrap().revision;
    store.compact(deleted).await.unwrap();
    let mut admin = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let start = Instant::now();
    loop {
        admin.defragment().await.unwrap();
        let (get, off, nospace) = (AlarmAction::Get, AlarmAction::Deactivate, AlarmType::Nospace);
        let raised = admin.alarm(get, nospace, None).await.unwrap();
        for alarm in raised.alarms() {
            let mut member = AlarmOptions::new();
            member.with_member(alarm.member_id());
            admin.alarm(off, nospace, Some(member)).await.unwrap();
        }
        match store.txn(put("small", "1")).await {
            Ok(_) => break,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_no_silence() {
    if !available("an_answer_that_is_too_large_is_no_silence") {
        return;
    }
    let server = Server::start().await;
    let store = client([server.url()]).await;
    for n in 0..12 {
        store.txn(put(&format!("big/{n}"), vec![b'x'; 1_000_000])).await.unwrap();
    }
    let request = RangeRequest { keys: KeyRange::prefix("big/"), revision: None, limit: 0, keys_only: false };
    let found = store.range(request).await.unwrap();
    assert_eq!(found.kvs.len(), 12, "three times what tonic takes by default");
}

#[tokio::test]
async fn each_purpose_has_a_connection_of_its_own() {
    if !available("each_purpose_has_a_connection_of_its_own") {
        return;
    }
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let store = client([format!("http://127.0.0.1:{}", proxy.port)]).await;
    assert_eq!(proxy.connections(), 0, "nothing connects before it must");
    let mut connections = Vec::new();
    store.txn(put("a", "1")).await.unwrap();
    get(&store, "a").await.unwrap();
    connections.push(proxy.connections());
    let _watch = store.watch(KeyRange::key("a"), 1).await.unwrap();
    let _other = store.watch(KeyRange::key("a"), 1).await.unwrap();
    connections.push(proxy.connections());
    let lease = store.lease_grant(60).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    connections.push(proxy.connections());
    assert_eq!(connections, [1, 2, 3]);
}

/// As when a firewall forgets a connection: packets vanish, and nobody is told.
#[tokio::test]
async fn a_dead_connection_is_replaced() {
    if !available("a_dead_connection_is_replaced") {
        return;
    }
    let server = Server::start().await;
    let proxy = Proxy::start(server.port).await;
    let store = client([format!("http://127.0.0.1:{}", proxy.port)]).await;
    let revision = store.txn(put("a", "1")).await.unwrap().revision;
    let lease = store.lease_grant(60).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    let mut watch = store.watch(KeyRange::key("a"), revision + 1).await.unwrap();
    proxy.lose_connections();
    let start = Instant::now();
    let lost = store.txn(put("a", "2")).await;
    assert!(matches!(lost, Err(BackendError::OutcomeUnknown(_))), "{lost:?}");
    unavailable(&next_events(&mut *watch).await);
    eventually("writing comes back", async || store.txn(put("a", "3")).await).await;
    eventually("keeping alive comes back", async || store.lease_keep_alive(lease).await).await;
    let mut watch =
        eventually("watching comes back", async || store.watch(KeyRange::key("a"), revision + 1).await).await;
    next_events(&mut *watch).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    println!("a dead connection was replaced after {:?}", start.elapsed());
}
