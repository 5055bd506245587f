//! The processes that are measured: etcd, an S3 server in memory, brokers. All of them end when
//! they are dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strandline_storage::store::{self, Secret, Store, StoreConfig};
use strandline_tests::client::Client;
use strandline_tests::http;
use strandline_tests::observer::{self, Observer};
use tokio::time::sleep;

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

/// Processor seconds that a process has used, from `/proc`.
pub fn cpu_s_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a running process");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name in brackets").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    ticks as f64 / 100.0
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("a log file");
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    /// Processor seconds that it has used.
    pub fn cpu_s(&self) -> f64 {
        cpu_s_of(self.0.id())
    }

    /// Resident memory, in MiB.
    pub fn rss_mib(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a running process");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker and where it is.
#[derive(Debug)]
pub struct Broker {
    /// The process.
    pub process: Process,
    /// Where clients connect.
    pub address: String,
    http: String,
}

impl Broker {
    /// The sum of all samples of a metric whose labels contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = get(&self.http, "/metrics").await;
        let lines = text
            .lines()
            .filter(|l| l.starts_with(name) && l[name.len()..].starts_with([' ', '{']) && l.contains(label));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// A minimal HTTP GET: the whole answer's body.
async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("the broker's HTTP port");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// etcd, an S3 server and a folder for both.
#[derive(Debug)]
pub struct Stack {
    etcd: Process,
    s3: Process,
    etcd_url: String,
    s3_url: String,
    s3_admin: u16,
    folder: PathBuf,
    binaries: PathBuf,
    started: u32,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port()
}

async fn wait_for(address: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(Instant::now() < until, "nothing listens on {address}");
        sleep(Duration::from_millis(5)).await;
    }
}

impl Stack {
    /// Starts etcd, with or without fsync, and an S3 server in memory.
    pub async fn start(fsync: bool) -> Self {
        let folder = std::env::temp_dir().join(format!("strandline-bench-{}-{fsync}", std::process::id()));
        // A folder that an earlier run left behind is of no use.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for the run");
        let binaries =
            std::env::current_exe().expect("this program").parent().expect("its folder").to_owned();
        let (client, peer, s3_port, s3_admin) = (free_port(), free_port(), free_port(), free_port());
        let (client_url, peer_url) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.join("etcd"));
        command.args([
            "--log-level",
            "error",
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
        ]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}")]);
        if !fsync {
            command.arg("--unsafe-no-fsync");
        }
        let etcd = Process::start(&mut command, &folder.join("etcd.log"));
        let s3_address = format!("127.0.0.1:{s3_port}");
        let mut command = Command::new(binaries.join("strandline-dev-s3"));
        command.args([
            "--listen",
            &s3_address,
            "--memory",
            "--access-key",
            "bench",
            "--secret-key",
            "bench-secret",
        ]);
        command.args(["--bucket", "bench", "--admin", &format!("127.0.0.1:{s3_admin}")]);
        let s3 = Process::start(&mut command, &folder.join("s3.log"));
        wait_for(&format!("127.0.0.1:{client}")).await;
        wait_for(&s3_address).await;
        Self {
            etcd,
            s3,
            etcd_url: client_url,
            s3_url: format!("http://{s3_address}"),
            s3_admin,
            folder,
            binaries,
            started: 0,
        }
    }

    /// From now on every request to the S3 server takes so much longer, as it does over a network.
    pub async fn s3_latency_ms(&self, ms: u64) {
        let plan = serde_json::json!({ "latency_ms": ms }).to_string();
        let (status, said) =
            http::request(self.s3_admin, "PUT", "/faults", &plan).await.expect("the S3 server's admin port");
        assert_eq!(status, 200, "{said}");
    }

    /// The same S3 server, spoken to by `object_store` alone.
    pub fn raw_store(&self) -> Arc<dyn Store> {
        let mut config = StoreConfig::new("s3://bench/raw".parse().expect("a URL"));
        config.endpoint = Some(self.s3_url.clone());
        config.allow_http = true;
        config.access_key_id = Some("bench".to_owned());
        config.secret_access_key = Some(Secret::new("bench-secret"));
        store::open_backend(&config).expect("a store")
    }

    /// The product, with the cluster's etcd and bucket.
    fn strandline(&self, what: &[&str], cluster: &str) -> Command {
        let mut command = Command::new(self.binaries.join("strandline"));
        command.args(what).args(["--cluster", cluster, "--log", "warn"]);
        command.args(["--etcd-endpoints", &self.etcd_url, "--store-url", "s3://bench"]);
        command.args(["--s3-endpoint", &self.s3_url, "--s3-allow-http", "true"]);
        command.args(["--s3-access-key-id", "bench", "--s3-secret-access-key", "bench-secret"]);
        command
    }

    /// What a quick audit of a cluster says.
    pub fn audit(&self, cluster: &str) -> String {
        let done = self.strandline(&["fsck", "--quick"], cluster).output().expect("the audit ends");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Starts a broker and waits until it is ready; gives it, and how long that took.
    pub async fn broker(&mut self, node_id: u32, cluster: &str, flags: &[&str]) -> (Broker, Duration) {
        let (port, http) = (free_port(), free_port());
        let (address, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{http}"));
        let mut command = self.strandline(&[], cluster);
        command.args(["--node-id", &node_id.to_string(), "--listen", &address, "--http-listen", &http]);
        command.args(flags);
        self.started += 1;
        let log = self.folder.join(format!("broker-{}.log", self.started));
        let begun = Instant::now();
        let process = Process::start(&mut command, &log);
        let until = begun + Duration::from_mins(1);
        loop {
            let is_ready = async {
                let mut client = Client::connect(&address).await.ok()?;
                client.metadata(&[]).await.ok()
            };
            if is_ready.await.is_some_and(|m| !m.brokers.is_empty()) {
                return (Broker { process, address, http }, begun.elapsed());
            }
            assert!(Instant::now() < until, "the broker is not ready; see {}", log.display());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts an observer of a cluster and waits until it has read etcd.
    pub async fn observer(&mut self, cluster: &str, flags: &[&str]) -> (Process, Observer) {
        let observer = Observer::on(free_port());
        let mut command = Command::new(self.binaries.join("strandline-mcp"));
        command.args(["--cluster", cluster, "--listen", &format!("127.0.0.1:{}", observer.port())]);
        command.args(["--token", observer::TOKEN, "--etcd-endpoints", &self.etcd_url]);
        command.args(["--calls-per-minute", "1000000", "--audit-log", "off", "--log", "warn"]).args(flags);
        self.started += 1;
        let log = self.folder.join(format!("observer-{}.log", self.started));
        let process = Process::start(&mut command, &log);
        let until = Instant::now() + Duration::from_mins(1);
        while !observer.is_ready().await {
            assert!(Instant::now() < until, "the observer is not ready; see {}", log.display());
            sleep(Duration::from_millis(20)).await;
        }
        (process, observer)
    }

    /// Where etcd answers.
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// Transactions that etcd has been asked for since it started.
    pub async fn etcd_txns(&self) -> f64 {
        self.etcd_handled("Txn").await
    }

    /// Ranges that etcd has been asked for since it started.
    pub async fn etcd_ranges(&self) -> f64 {
        self.etcd_handled("Range").await
    }

    async fn etcd_handled(&self, method: &str) -> f64 {
        let text = get(self.etcd_url.trim_start_matches("http://"), "/metrics").await;
        let lines = text.lines().filter(|l| {
            l.starts_with("grpc_server_handled_total{") && l.contains(&format!("grpc_method=\"{method}\""))
        });
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Processor seconds of etcd and of the S3 server.
    pub fn cpu_s(&self) -> (f64, f64) {
        (self.etcd.cpu_s(), self.s3.cpu_s())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The processes go with their fields; what is left in the folder is of no use.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
