//! A single broker as a developer starts it, with nothing beside it.

use std::ffi::OsString;
use std::time::Duration;

use strandline_tests::ctl::etcdctl;
use strandline_tests::http;
use strandline_tests::process::{Nest, Process, built, eventually, free_port};
use strandline_tests::workload::create_topic;

/// How long a broker may take to be ready on a busy machine.
const READY: Duration = Duration::from_mins(1);

/// Starts `strandline --dev` on ports of its own, and waits until it serves. Gives the address for Kafka clients.
async fn dev(nest: &Nest, name: &str, metadata_port: u16) -> (Process, String) {
    let (port, http_port) = (free_port(), free_port());
    let folder = nest.folder().join(name);
    let args = [
        "--dev".to_owned(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--http-listen=127.0.0.1:{http_port}"),
        format!("--metadata-listen=127.0.0.1:{metadata_port}"),
        format!("--metadata-journal={}", folder.join("metadata.journal").display()),
        format!("--store-url=file://{}", folder.join("objects").display()),
    ];
    let process = nest.start(name, &built("strandline"), &args.map(OsString::from)).expect("it starts");
    eventually("the broker is ready", READY, async || {
        matches!(http::get(http_port, "/readyz").await, Ok((200, _))).then_some(())
    })
    .await;
    (process, format!("127.0.0.1:{port}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_shows_what_a_broker_without_etcd_keeps() {
    let nest = Nest::new().expect("there is room for a test");
    let metadata = free_port();
    let (mut broker, address) = dev(&nest, "broker", metadata).await;
    create_topic(&[address], "seen", 3).await;
    let topic = "/strandline/strandline/topics/seen";
    let get = || etcdctl(&[metadata], &["get", "--prefix", "/strandline/strandline/topics/"], None);
    let shown = get().expect("it is read");
    assert!(shown.starts_with(&format!("{topic}\n{{")) && shown.contains("\"partitions\":3"), "{shown}");
    let refused = etcdctl(&[metadata], &["put", topic, "{}"], None).expect_err("only the broker writes");
    assert!(refused.contains("PermissionDenied"), "{refused}");
    assert_eq!(get(), Ok(shown.clone()));
    let leases = etcdctl(&[metadata], &["lease", "list"], None).expect("it is told");
    assert!(leases.contains("found 1 leases"), "the broker's registration: {leases}");

    // Another one that finds the port taken serves all the same, and says so.
    let (other, address) = dev(&nest, "other", metadata).await;
    create_topic(&[address], "unseen", 1).await;
    assert!(other.log().contains("cannot be read with etcdctl"), "{}", other.log());
    assert_eq!(get(), Ok(shown.clone()), "what answers is the first one");
    drop(other);

    broker.kill9();
    let (_broker, _) = dev(&nest, "broker", metadata).await;
    assert_eq!(get(), Ok(shown), "it is in the journal");
}
