//! A single broker as a developer starts it, with nothing beside it.

use kafka_protocol::records::Compression;
use strandline_tests::checker::read_partition;
use strandline_tests::client::Client;
use strandline_tests::ctl::etcdctl;
use strandline_tests::process::{Nest, built, free_port};
use strandline_tests::records::batch;
use strandline_tests::single::{start_dev, start_dev_on_a_full_disk};
use strandline_tests::surroundings::now_ms;
use strandline_tests::workload::create_topic;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_shows_what_a_broker_without_etcd_keeps() {
    let nest = Nest::new().expect("there is room for a test");
    let metadata = free_port();
    let (mut broker, address) = start_dev(&nest, "broker", metadata).await;
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
    let (other, address) = start_dev(&nest, "other", metadata).await;
    create_topic(&[address], "unseen", 1).await;
    assert!(other.log().contains("cannot be read with etcdctl"), "{}", other.log());
    assert_eq!(get(), Ok(shown.clone()), "what answers is the first one");
    drop(other);

    broker.kill9();
    let (_broker, _) = start_dev(&nest, "broker", metadata).await;
    assert_eq!(get(), Ok(shown), "it is in the journal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_log_cannot_be_written_serves_all_the_same() {
    let nest = Nest::new().expect("there is room for a test");
    let (mut broker, address) = start_dev_on_a_full_disk(&nest, "broker", free_port()).await;
    create_topic(std::slice::from_ref(&address), "silent", 1).await;
    for offset in 0..3 {
        // Whoever comes, and whoever goes, would be worth a line.
        let mut client = Client::connect(&address).await.expect("it takes connections");
        let record = batch(&["silent"], now_ms(), None, Compression::None);
        assert_eq!(client.produce("silent", 0, record).await.expect("it is written"), offset);
        assert!(client.send_raw(&[0xff; 64]).await.is_ok(), "nonsense at the end");
    }
    assert_eq!(read_partition(&address, "silent", 0).await.batches.len(), 3);
    assert!(broker.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_of_nothing_makes_nothing_and_one_of_a_broker_that_has_ended_is_clean() {
    let nest = Nest::new().expect("there is room for a test");
    let folder = nest.folder().join("broker");
    let audit_with = |flags: &[&str]| {
        let done = std::process::Command::new(built("strandline"))
            .args(["fsck", "--dev", "--log", "warn"])
            .args(flags)
            .arg(format!("--metadata-journal={}", folder.join("metadata.journal").display()))
            .arg(format!("--store-url=file://{}", folder.join("objects").display()))
            .output()
            .expect("the audit runs");
        let said = [&done.stdout[..], &done.stderr[..]].concat();
        (done.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let audit = || audit_with(&[]);
    let (code, said) = audit_with(&["--no-such-setting"]);
    assert_eq!(code, Some(2), "no audit was made: {said}");
    let (code, said) = audit();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("there is no journal"), "{said}");
    assert!(!folder.exists(), "it changes nothing");

    let (mut broker, address) = start_dev(&nest, "broker", free_port()).await;
    create_topic(&[address], "audited", 3).await;
    broker.kill9();
    let (code, said) = audit();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 topics, 3 partitions"), "{said}");
}
