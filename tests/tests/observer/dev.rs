//! The observer beside a single broker as a developer starts it: metadata are in the broker, and
//! are read as etcd's are.

use serde_json::json;
use strandline_tests::client::Client;
use strandline_tests::member::{Group, stable};
use strandline_tests::observer::observe;
use strandline_tests::process::{Nest, eventually, free_port};
use strandline_tests::records::batch;
use strandline_tests::single::start_dev;
use strandline_tests::surroundings::now_ms;

use crate::SEEN;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_etcd_is_observed_as_others_are() {
    let nest = Nest::new().expect("there is room for a test");
    let metadata = free_port();
    let (_broker, address) = start_dev(&nest, "broker", metadata).await;
    let mut client = Client::connect(&address).await.expect("a connection");
    client.create_topic("t", 3, &[("retention.ms", "3600000")]).await.expect("a topic");
    let values: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 10]).collect();
    let records = batch(&values, now_ms(), None, kafka_protocol::records::Compression::None);
    client.produce("t", 1, records).await.expect("a produce");
    let (ids, generation) = stable("g", std::slice::from_ref(&address), 1).await;
    let mut group = Group::new("g", vec![address]);
    assert_eq!(group.commit(&ids[0], generation, 1, 40).await, 0);

    let (_process, observer) =
        observe(&nest, "strandline", &format!("http://127.0.0.1:{metadata}"), &[]).await;
    // Watermarks are written now and then.
    let lag = eventually("the lag is known", SEEN, async || {
        let lag = observer.call("get_group_lag", json!({"group_id": "g"})).await;
        (lag["total_lag"] == 60).then_some(lag)
    })
    .await;
    assert_eq!((&lag["state"], &lag["member_count"]), (&json!("Stable"), &json!(1)), "{lag:#}");
    let status = observer.call("cluster_status", json!({})).await;
    assert_eq!((&status["topics"][0]["name"], &status["etcd"]["state"]), (&json!("t"), &json!("ok")));
    assert_eq!(status["brokers"][0]["leased"], true, "{status:#}");
    let configs = observer.call("describe_configs", json!({"names": ["t"]})).await;
    assert_eq!(configs["configs"][0]["retention_ms"], 3_600_000, "{configs:#}");
    eventually("its metrics are read", SEEN, async || {
        let metrics = observer.call("cluster_metrics", json!({})).await;
        (metrics["requests_per_s"].is_number() && metrics["meta"]["partial"] == false).then_some(())
    })
    .await;
    // Changes are followed as well.
    client.create_topic("later", 1, &[]).await.expect("a topic");
    eventually("the new topic is seen as a change", SEEN, async || {
        let changes = observer.call("recent_changes", json!({"kinds": ["topic"]})).await;
        (changes["changes"][0]["name"] == "later" && changes["changes"][0]["action"] == "created")
            .then_some(())
    })
    .await;
}
