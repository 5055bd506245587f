//! Users, roles, and tokens that stop being valid.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use strandline_metadata::backend::etcd::{Etcd, EtcdConfig, Password};

use super::server::{Server, available};
use super::*;

/// An etcd where `broker` may do everything under `/mine/`, and `observer` may read it.
async fn guarded() -> Server {
    let server = Server::start().await;
    let mut admin = Client::connect([server.url()], None).await.unwrap();
    admin.user_add("root", "root-secret", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    for (user, kind) in [("broker", PermissionType::Readwrite), ("observer", PermissionType::Read)] {
        admin.user_add(user, format!("{user}-secret"), None).await.unwrap();
        admin.role_add(user).await.unwrap();
        let permission = Permission::new(kind, "/mine/").with_prefix();
        admin.role_grant_permission(user, permission).await.unwrap();
        admin.user_grant_role(user, user).await.unwrap();
    }
    admin.auth_enable().await.unwrap();
    server
}

async fn log_in(server: &Server, user: Option<(&str, &str)>) -> Etcd {
    let config = EtcdConfig {
        user: user.map(|(name, _)| name.to_owned()),
        password: user.map(|(_, password)| Password::new(password)),
        request_timeout: Duration::from_secs(5),
        ..EtcdConfig::new([server.url()])
    };
    Etcd::new(&config).await.unwrap()
}

fn denied<T: std::fmt::Debug>(result: &Result<T, BackendError>) {
    assert!(matches!(result, Err(BackendError::Denied(_))), "{result:?}");
}

#[tokio::test]
async fn a_user_does_what_its_role_allows_and_nothing_else() {
    if !available("a_user_does_what_its_role_allows_and_nothing_else") {
        return;
    }
    let server = guarded().await;
    let broker = log_in(&server, Some(("broker", "broker-secret"))).await;
    broker.txn(put("/mine/a", "1")).await.unwrap();
    assert!(get(&broker, "/mine/a").await.unwrap().is_some());
    let mut watch = broker.watch(KeyRange::prefix("/mine/"), 1).await.unwrap();
    next_events(&mut *watch).await.unwrap();
    let lease = broker.lease_grant(30).await.unwrap();
    broker.lease_keep_alive(lease).await.unwrap();
    broker.lease_revoke(lease).await.unwrap();

    denied(&broker.txn(put("/other", "1")).await);
    denied(&get(&broker, "/other").await);
    denied(&broker.watch(KeyRange::prefix("/"), 1).await);

    let observer = log_in(&server, Some(("observer", "observer-secret"))).await;
    assert!(get(&observer, "/mine/a").await.unwrap().is_some());
    denied(&observer.txn(put("/mine/a", "2")).await);
    assert_eq!(get(&broker, "/mine/a").await.unwrap().unwrap().version, 1);
}

#[tokio::test]
async fn wrong_and_missing_credentials_are_denied() {
    if !available("wrong_and_missing_credentials_are_denied") {
        return;
    }
    let server = guarded().await;
    for user in [None, Some(("broker", "wrong")), Some(("nobody", "broker-secret"))] {
        let store = log_in(&server, user).await;
        denied(&get(&store, "/mine/a").await);
        denied(&store.txn(put("/mine/a", "1")).await);
        denied(&store.watch(KeyRange::prefix("/mine/"), 1).await);
    }
    let error =
        get(&log_in(&server, Some(("broker", "s3cr3t-and-wrong"))).await, "/mine/a").await.unwrap_err();
    assert!(!error.to_string().contains("s3cr3t"), "{error}");
}

/// A restarted etcd has forgotten all tokens of the simple kind, as it does after they expire.
#[tokio::test]
async fn a_forgotten_token_is_renewed() {
    if !available("a_forgotten_token_is_renewed") {
        return;
    }
    let mut server = guarded().await;
    let store = log_in(&server, Some(("broker", "broker-secret"))).await;
    store.txn(put("/mine/a", "1")).await.unwrap();
    let lease = store.lease_grant(60).await.unwrap();
    store.lease_keep_alive(lease).await.unwrap();
    server.kill();
    server.spawn();
    // Reads, so that what comes next is the first use of the old token by a transaction, a watch
    // and a lease.
    let probe = log_in(&server, Some(("broker", "broker-secret"))).await;
    eventually("etcd is back", async || get(&probe, "/mine/a").await).await;

    store.txn(put("/mine/a", "2")).await.unwrap();
    assert_eq!(get(&store, "/mine/a").await.unwrap().unwrap().version, 2, "executed once");

    server.kill();
    server.spawn();
    eventually("etcd is back", async || get(&probe, "/mine/a").await).await;
    let mut watch = store.watch(KeyRange::prefix("/mine/"), 1).await.unwrap();
    next_events(&mut *watch).await.unwrap();
    eventually("a lease is kept alive", async || store.lease_keep_alive(lease).await).await;
}

#[tokio::test]
async fn a_user_means_nothing_while_authentication_is_off() {
    if !available("a_user_means_nothing_while_authentication_is_off") {
        return;
    }
    let server = Server::start().await;
    let store = log_in(&server, Some(("broker", "broker-secret"))).await;
    store.txn(put("/mine/a", "1")).await.unwrap();
    assert!(get(&store, "/mine/a").await.unwrap().is_some());

    // Then it is turned on: the client, which has no token, logs in.
    let mut admin = Client::connect([server.url()], Some(ConnectOptions::new())).await.unwrap();
    admin.user_add("root", "root-secret", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("broker", "broker-secret", None).await.unwrap();
    admin.role_add("broker").await.unwrap();
    let permission = Permission::new(PermissionType::Readwrite, "/mine/").with_prefix();
    admin.role_grant_permission("broker", permission).await.unwrap();
    admin.user_grant_role("broker", "broker").await.unwrap();
    admin.auth_enable().await.unwrap();
    store.txn(put("/mine/a", "2")).await.unwrap();
    assert_eq!(get(&store, "/mine/a").await.unwrap().unwrap().version, 2);
}
