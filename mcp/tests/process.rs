//! The real process against a real etcd: what its user may do there, and whom it connects to.
//!
//! Without `etcd` on the PATH the test says SKIPPED and passes, unless `STRANDLINE_REQUIRE_ETCD=1`
//! is set.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use strandline_metadata::keys::{Key, Keyspace};
use strandline_metadata::values::{BrokerValue, ClusterValue, TopicValue, VALUE_FORMAT, Value as _};

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..600 {
        if check() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} did not happen");
}

struct Etcd {
    port: u16,
    _process: Running,
    _folder: tempfile::TempDir,
}

fn start_etcd() -> Option<Etcd> {
    let folder = tempfile::tempdir().unwrap();
    let (port, peer) = (free_port(), free_port());
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let spawned = Command::new("etcd")
        .args(["--data-dir", folder.path().to_str().unwrap(), "--log-level", "error", "--unsafe-no-fsync"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let process = match spawned {
        Ok(process) => Running(process),
        Err(error) => {
            #[expect(clippy::disallowed_methods, reason = "a test may be told what must be there")]
            let required = std::env::var("STRANDLINE_REQUIRE_ETCD").is_ok_and(|value| value == "1");
            assert!(!required, "there is no etcd on the PATH: {error}");
            eprintln!("SKIPPED: there is no etcd on the PATH");
            return None;
        }
    };
    until("etcd answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    Some(Etcd { port, _process: process, _folder: folder })
}

impl Etcd {
    fn ctl(&self, user: Option<&str>, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", format!("http://127.0.0.1:{}", self.port));
        if let Some(user) = user {
            command.env("ETCDCTL_USER", user);
        }
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    fn put(&self, key: &Key, value: &[u8]) {
        let key = Keyspace::new("t").unwrap().encode(key);
        let done =
            self.ctl(Some("broker:local-dev-broker"), &["put", std::str::from_utf8(&key).unwrap()], value);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn make_roles(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/scripts/etcd-roles.sh");
        // Twice: it may run again.
        for _ in 0..2 {
            let done = Command::new(&script)
                .arg("t")
                .env("ETCDCTL_ENDPOINTS", format!("http://127.0.0.1:{}", self.port))
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
    }
}

/// A port that counts who connects to it.
fn trap() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    (port, count)
}

/// A metrics endpoint that answers one request per connection.
fn metrics() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { continue };
            let text = "strandline_connections 1\nstrandline_object_store_healthy 1\n";
            let _ = write!(
                connection,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = std::io::Read::read(&mut connection, &mut [0; 4096]);
        }
    });
    port
}

/// The ports at the other ends of a process's TCP connections that it opened or accepted.
fn remote_ports(pid: u32) -> BTreeSet<u16> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(Result::ok) {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if let Some(inode) = target
            .to_string_lossy()
            .strip_prefix("socket:[")
            .and_then(|s| s.strip_suffix(']').map(str::to_owned))
        {
            inodes.insert(inode);
        }
    }
    let tables =
        ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/{pid}/net/{t}")).unwrap_or_default());
    let mut ports = BTreeSet::new();
    for line in tables.iter().flat_map(|t| t.lines().skip(1)) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(9).is_some_and(|inode| inodes.contains(*inode)) {
            let port = fields[2].rsplit_once(':').and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
            ports.extend(port.filter(|p| *p != 0));
        }
    }
    ports
}

fn observe(etcd: &Etcd, port: u16) -> Running {
    let endpoints = format!("http://127.0.0.1:{}", etcd.port);
    let child = Command::new(env!("CARGO_BIN_EXE_strandline-mcp"))
        .args(["--cluster", "t", "--token", "local-dev-token", "--listen", &format!("127.0.0.1:{port}")])
        .args([
            "--etcd-endpoints",
            &endpoints,
            "--etcd-user",
            "observer",
            "--etcd-password",
            "local-dev-observer",
        ])
        .args(["--scrape-interval-ms", "200", "--audit-log", "off"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

async fn call(port: u16, tool: &str) -> Result<Value, String> {
    let body =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}});
    let client = reqwest::Client::builder().no_proxy().build().map_err(|e| e.to_string())?;
    let response = client
        .post(format!("http://127.0.0.1:{port}/mcp"))
        .header("authorization", "Bearer local-dev-token")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_string())
        .send()
        .await
        .map_err(|e| e.to_string())?;
    let text = response.text().await.map_err(|e| e.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    Ok(answer["result"]["structuredContent"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn its_user_cannot_write_and_it_connects_to_etcd_and_metrics_only() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(etcd) = start_etcd() else { return };
    etcd.make_roles();
    let ((kafka, connected), metrics) = (trap(), metrics());
    etcd.put(
        &Key::Cluster,
        &ClusterValue {
            format: VALUE_FORMAT,
            cluster_id: "cid".to_owned(),
            feature_level: 1,
            unknown: std::collections::BTreeMap::new(),
        }
        .encode(),
    );
    let broker = BrokerValue {
        format: VALUE_FORMAT,
        node_id: 1,
        process_id: uuid::Uuid::nil(),
        host: "127.0.0.1".to_owned(),
        port: kafka,
        zone: String::new(),
        version: "0.1.0".to_owned(),
        metrics_url: format!("http://127.0.0.1:{metrics}/metrics"),
        registered_at_ms: 0,
        draining: false,
    };
    etcd.put(&Key::Broker(1), &broker.encode());
    let topic = TopicValue {
        format: VALUE_FORMAT,
        topic_id: uuid::Uuid::from_u128(3),
        partitions: 2,
        configs: std::collections::BTreeMap::new(),
        created_at_ms: 0,
        unknown: std::collections::BTreeMap::new(),
        replication_factor: None,
    };
    etcd.put(&Key::Topic("orders".to_owned()), &topic.encode());

    // The observer's user: reads what it needs, not the log, and writes nothing.
    let observer = Some("observer:local-dev-observer");
    let refused = |arguments: &[&str]| {
        let done = etcd.ctl(observer, arguments, b"");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains("permission denied"), "{arguments:?}: {said}");
    };
    refused(&["put", "/strandline/t/topics/orders", "x"]);
    refused(&["put", "/strandline/t/new", "x"]);
    refused(&["del", "/strandline/t/topics/orders"]);
    refused(&["del", "--prefix", "/strandline/t/"]);
    refused(&["get", "--prefix", "/strandline/t/log/"]);
    refused(&["get", "--prefix", "/strandline/other/"]);
    assert!(etcd.ctl(observer, &["get", "/strandline/t/topics/orders"], b"").status.success());

    let port = free_port();
    let running = observe(&etcd, port);
    let mut status = Value::Null;
    for _ in 0..300 {
        if let Ok(answer) = call(port, "cluster_status").await
            && answer["brokers"][0]["scrape"] == "ok"
        {
            status = answer;
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status["topics"][0]["name"], "orders", "{status}");
    assert_eq!(status["s3"]["state"], "ok");
    let mut seen = BTreeSet::new();
    for tool in
        ["describe_topics", "list_groups", "storage_status", "explain_current_state", "recent_changes"]
    {
        call(port, tool).await.unwrap();
        seen.extend(remote_ports(running.0.id()));
    }
    assert!(seen.contains(&etcd.port), "{seen:?}");
    assert!(!seen.contains(&9092) && !seen.contains(&9000) && !seen.contains(&kafka), "{seen:?}");
    assert_eq!(connected.load(Ordering::SeqCst), 0, "somebody connected to the Kafka port");
}

#[test]
fn without_a_token_it_does_not_start_and_help_names_every_setting() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_strandline-mcp")).args(arguments).env_clear().output().unwrap()
    };
    let refused = run(&[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("token"));
    let refused = run(&["--no-auth", "true", "--listen", "0.0.0.0:0"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("loopback"));
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for setting in strandline_mcp::config::SETTINGS {
        assert!(help.contains(&format!("--{}", setting.key.replace('_', "-"))), "{}", setting.key);
    }
}
