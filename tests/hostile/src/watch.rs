//! What the broker looks like from outside while it is pressed.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strandline_tests::cluster::{CLUSTER, Cluster};
use strandline_tests::http;
use tokio::task::JoinSet;
use tokio::time::sleep;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Looks at a broker's process, and asks for its health, all the time.
#[derive(Debug)]
pub(crate) struct Watch {
    process: u32,
    most_resident: Arc<AtomicU64>,
    worst_health_ms: Arc<AtomicU64>,
    /// The keys of registrations when it began, and when they were made.
    registered: Vec<(String, i64)>,
    _tasks: JoinSet<()>,
}

impl Watch {
    pub(crate) fn start(cluster: &mut Cluster) -> Self {
        let process = cluster.broker(0).id();
        let port = cluster.http_address(0).rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.expect("an address ends with a port");
        let (most_resident, worst_health_ms) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(look(process, Arc::clone(&most_resident)));
        tasks.spawn(ask(port, Arc::clone(&worst_health_ms)));
        let registered = registrations(cluster);
        Self { process, most_resident, worst_health_ms, registered, _tasks: tasks }
    }

    /// Forgets what was seen before.
    pub(crate) fn begin(&self) {
        self.most_resident.store(0, Ordering::Relaxed);
        self.worst_health_ms.store(0, Ordering::Relaxed);
    }

    /// Bytes of memory now.
    pub(crate) fn resident(&self) -> u64 {
        resident(self.process)
    }

    /// The most bytes of memory since the beginning.
    pub(crate) fn most_resident(&self) -> u64 {
        self.most_resident.load(Ordering::Relaxed)
    }

    /// The longest wait for `/healthz` since the beginning.
    pub(crate) fn worst_health(&self) -> Duration {
        Duration::from_millis(self.worst_health_ms.load(Ordering::Relaxed))
    }

    /// Open descriptors now.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process)).map_or(0, Iterator::count)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.resident() > 0
    }

    /// Whether every broker is registered as it was when this began.
    pub(crate) fn is_registered_as_before(&self, cluster: &mut Cluster) -> bool {
        registrations(cluster) == self.registered
    }
}

/// The registrations in etcd, and the revisions in which they were made.
fn registrations(cluster: &mut Cluster) -> Vec<(String, i64)> {
    let prefix = format!("{CLUSTER}/brokers/");
    let said = cluster.etcd().ctl(&["get", "--prefix", &prefix, "-w", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&said).expect("etcdctl answers in JSON");
    let keys = answer["kvs"].as_array().cloned().unwrap_or_default();
    keys.iter().map(|kv| (kv["key"].to_string(), kv["create_revision"].as_i64().unwrap_or(0))).collect()
}

async fn look(process: u32, most: Arc<AtomicU64>) {
    loop {
        most.fetch_max(resident(process), Ordering::Relaxed);
        sleep(LOOK_EVERY).await;
    }
}

async fn ask(port: u16, worst_ms: Arc<AtomicU64>) {
    loop {
        let began = Instant::now();
        let answer = http::get(port, "/healthz").await;
        let mut took = began.elapsed();
        if !matches!(answer, Ok((200, _))) {
            // No answer is worse than a late one.
            took += Duration::from_secs(10);
        }
        worst_ms.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
        sleep(ASK_EVERY).await;
    }
}

fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}
