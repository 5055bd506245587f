//! What a plan prints is run as it is, by a shell, with Kafka's own tools; then the plan is
//! applied.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use strandline_tests::cluster::{Cluster, Plan};
use strandline_tests::member::Group;
use strandline_tests::observer::Observer;
use strandline_tests::process::eventually;
use strandline_tests::records::batch;
use strandline_tests::surroundings::now_ms;

use crate::SEEN;

/// A folder with Kafka's tools under the names that plans use.
fn tools(cluster: &Cluster) -> PathBuf {
    let folder = cluster.folder().join("tools");
    std::fs::create_dir(&folder).expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mcp/kafka-tool.sh");
    for name in ["kafka-topics.sh", "kafka-configs.sh", "kafka-consumer-groups.sh"] {
        symlink(&script, folder.join(name)).expect("a link");
    }
    folder
}

/// Runs a line as a person would, and says what it said.
fn run(tools: &Path, line: &str) -> String {
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let done = Command::new("sh").args(["-c", line]).env("PATH", path).output().expect("a shell");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{line}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

fn lines(plan: &Value, of: &str) -> Vec<String> {
    let lines = plan[of].as_array().unwrap_or_else(|| panic!("{of} of {plan:#}"));
    lines.iter().map(|l| l.as_str().expect("a line").to_owned()).collect()
}

async fn state(observer: Observer, plan: &Value) -> Value {
    observer.call("check_plan", json!({"plan_id": plan["plan_id"]})).await["state"].clone()
}

/// Makes a plan and does what it says, command by command; then it is applied, and what it gives to
/// look at says so too.
async fn carry_out(observer: Observer, tools: &Path, tool: &str, arguments: Value, shows: &str) -> Value {
    let plan = observer.call(tool, arguments).await;
    assert_eq!(plan["runnable"], true, "{plan:#}");
    assert_eq!(state(observer, &plan).await, "unchanged", "{plan:#}");
    let commands = lines(&plan, "commands");
    assert!(!commands.is_empty(), "{plan:#}");
    for line in commands {
        run(tools, &line);
    }
    assert_eq!(state(observer, &plan).await, "applied", "{plan:#}");
    let seen: String = lines(&plan, "verification").iter().map(|line| run(tools, line)).collect();
    assert!(seen.contains(shows), "{shows:?} is not in {seen}");
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it needs Kafka's tools: make test-mcp"]
async fn what_a_plan_prints_does_what_it_says() {
    let cluster = Cluster::start(Plan::new(1).flag("job-interval-ms", 500)).await;
    let tools = tools(&cluster);
    let (_process, observer) = cluster.observe(&["--plans", "true"]).await;

    let create = json!({"topic": "planned", "partitions": 2, "configs": {"retention.ms": "3600000"}});
    carry_out(observer, &tools, "plan_create_topic", create, "PartitionCount: 2").await;

    let update = json!({"topic": "planned", "set": {"cleanup.policy": "compact,delete", "max.message.bytes": "2000000"},
        "unset": ["retention.ms"]});
    let updated = carry_out(observer, &tools, "plan_update_topic_config", update, "compact,delete").await;
    // The way back is one that can be gone, too.
    for line in lines(&updated["rollback"], "commands") {
        run(&tools, &line);
    }
    let configs = observer.call("describe_configs", json!({"names": ["planned"]})).await;
    assert_eq!(configs["configs"][0]["config"]["cleanup.policy"], "delete", "{configs:#}");
    assert_eq!(configs["configs"][0]["retention_ms"], 3_600_000, "{configs:#}");

    let add = json!({"topic": "planned", "partitions": 5});
    let added = carry_out(observer, &tools, "plan_add_partitions", add, "PartitionCount: 5").await;
    assert_eq!(added["rollback"]["possible"], false);

    let mut client = cluster.client(0).await;
    let values: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 10]).collect();
    let records = batch(&values, now_ms(), None, kafka_protocol::records::Compression::None);
    client.produce("planned", 3, records).await.expect("a produce");
    // A group without members: its offsets are set from outside.
    let group = "it's \"odd\" $HOME";
    let mut outside = Group::new(group, vec![cluster.address(0)]);
    assert_eq!(outside.commit_for("", -1, &[("planned".to_owned(), vec![(3, 40)])]).await, 0);
    eventually("the end is known", SEEN, async || {
        let lag = observer.call("get_group_lag", json!({"group_id": group})).await;
        (lag["total_lag"] == 10).then_some(())
    })
    .await;
    for (to, expected) in [
        (json!({"to": "earliest"}), 0),
        (json!({"to": "offset", "offset": 17}), 17),
        (json!({"to": "latest"}), 50),
    ] {
        let mut reset = json!({"group_id": group, "topic": "planned", "partitions": [3]});
        reset.as_object_mut().expect("an object").extend(to.as_object().expect("an object").clone());
        carry_out(observer, &tools, "plan_reset_offsets", reset, "planned").await;
        let offsets = observer.call("fetch_offsets", json!({"group_id": group, "topics": ["planned"]})).await;
        let at_3 = offsets["offsets"].as_array().and_then(|o| o.iter().find(|o| o["partition"] == 3));
        assert_eq!(at_3.map(|o| &o["offset"]), Some(&json!(expected)), "{offsets:#}");
    }
}
