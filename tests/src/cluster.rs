//! A whole cluster of real processes: etcd, the S3 server, brokers; and what can be done to them.
//!
//! One cluster runs at a time in a test program: whoever starts another one waits until the first is gone.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::client::Client;
use crate::ctl::etcdctl;
use crate::http;
use crate::observer::{Observer, observe};
use crate::process::{Nest, Process, built, eventually, free_port};
use crate::proxy::{Link, Proxy};

/// Time for a process to be ready: generous, since the machine may be busy with a build.
const READY: Duration = Duration::from_mins(1);
/// Time for a broker to leave when it is asked to.
const LEAVE: Duration = Duration::from_mins(1);
/// The bucket.
const BUCKET: &str = "strandline";
/// The cluster's name, which is the prefix in etcd.
pub const CLUSTER: &str = "t";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many brokers.
    pub brokers: usize,
    /// Flags of every broker, without dashes; they come after the harness's own.
    pub flags: Vec<(&'static str, String)>,
    /// Flags of etcd, with their dashes; they come after the harness's own.
    pub etcd_flags: Vec<String>,
    /// Whether each broker reaches etcd and S3 through proxies, so that its links can be cut.
    pub proxies: bool,
    /// Whether objects are files, which can be damaged; otherwise they are in the S3 server's memory.
    pub folder: bool,
}

impl Plan {
    /// So many brokers, with flushes that are quicker than the defaults: a test does not wait for a bill.
    pub fn new(brokers: usize) -> Self {
        let flags = [("linger-ms", "20"), ("put-budget-per-s", "100"), ("put-budget-burst", "20")];
        let flags = flags.into_iter().map(|(k, v)| (k, v.to_owned())).collect();
        Self { brokers, flags, etcd_flags: Vec::new(), proxies: false, folder: false }
    }

    /// With this flag for every broker.
    #[must_use]
    pub fn flag(mut self, name: &'static str, value: impl Display) -> Self {
        self.flags.push((name, value.to_string()));
        self
    }

    /// With this flag for etcd.
    #[must_use]
    pub fn etcd_flag(mut self, flag: impl Display) -> Self {
        self.etcd_flags.push(flag.to_string());
        self
    }

    /// With proxies before etcd and S3.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxies = true;
        self
    }

    /// With objects in files.
    #[must_use]
    pub fn in_folder(mut self) -> Self {
        self.folder = true;
        self
    }
}

/// One broker, whether it runs or not.
#[derive(Debug)]
pub struct Broker {
    node_id: i32,
    port: u16,
    http_port: u16,
    etcd: Option<Proxy>,
    s3: Option<Proxy>,
    flags: Vec<(&'static str, String)>,
    process: Option<Process>,
}

/// The S3 server.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    admin_port: u16,
    folder: Option<PathBuf>,
    process: Option<Process>,
}

/// etcd.
#[derive(Debug)]
pub struct Etcd {
    port: u16,
    peer_port: u16,
    /// The folder of its data, which another one may take the place of.
    data: PathBuf,
    flags: Vec<String>,
    process: Option<Process>,
}

/// The cluster. Dropping it ends every process.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    brokers: Vec<Broker>,
    etcd: Etcd,
    s3: S3,
    nest: Nest,
    /// Whether an error in the logs that nobody expects fails the test.
    checks_logs: bool,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Cluster {
    /// Starts everything and waits until it is ready.
    pub async fn start(plan: Plan) -> Self {
        let alone = ALONE.lock().await;
        let nest = Nest::new().expect("a folder for the test");
        let (data, flags) = (nest.folder().join("etcd"), plan.etcd_flags.clone());
        let mut etcd = Etcd { port: free_port(), peer_port: free_port(), data, flags, process: None };
        etcd.start(&nest).await;
        let folder = plan.folder.then(|| nest.folder().join("objects"));
        let mut s3 = S3 { port: free_port(), admin_port: free_port(), folder, process: None };
        s3.start(&nest).await;
        let mut cluster =
            Self { plan, brokers: Vec::new(), etcd, s3, nest, checks_logs: true, _alone: alone };
        for i in 0..cluster.plan.brokers {
            cluster.add_broker(i as i32 + 1).await;
            cluster.restart(i);
        }
        for i in 0..cluster.brokers.len() {
            cluster.wait_ready(i).await;
        }
        cluster
    }

    /// Adds a broker with this node id, which does not run yet; gives its number.
    pub async fn add_broker(&mut self, node_id: i32) -> usize {
        let (mut etcd, mut s3) = (None, None);
        if self.plan.proxies {
            etcd = Some(Proxy::start(self.etcd.port).await.expect("a proxy"));
            s3 = Some(Proxy::start(self.s3.port).await.expect("a proxy"));
        }
        let (port, http_port, flags) = (free_port(), free_port(), self.plan.flags.clone());
        self.brokers.push(Broker { node_id, port, http_port, etcd, s3, flags, process: None });
        self.brokers.len() - 1
    }

    /// Changes a flag of a broker, from its next start on.
    pub fn set_flag(&mut self, i: usize, name: &'static str, value: impl Display) {
        self.brokers[i].flags.push((name, value.to_string()));
    }

    /// How many brokers there are, running or not.
    pub fn len(&self) -> usize {
        self.brokers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.brokers.is_empty()
    }

    /// Where clients connect to broker `i`.
    pub fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.brokers[i].port)
    }

    /// Where clients connect, for every broker.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.brokers.len()).map(|i| self.address(i)).collect()
    }

    /// Where clients connect, for every broker that runs.
    pub fn live_addresses(&mut self) -> Vec<String> {
        let live: Vec<usize> = (0..self.len())
            .filter(|&i| self.brokers[i].process.as_mut().is_some_and(Process::is_running))
            .collect();
        live.into_iter().map(|i| self.address(i)).collect()
    }

    /// Kills one of the brokers that run and starts it again; gives its address.
    pub async fn restart_a_live_one(&mut self) -> String {
        let live = |b: &mut Broker| b.process.as_mut().is_some_and(Process::is_running);
        let i = self.brokers.iter_mut().rposition(live).expect("a broker runs");
        self.kill9(i);
        self.restart(i);
        self.wait_ready(i).await;
        self.address(i)
    }

    /// A connection to broker `i`.
    pub async fn client(&self, i: usize) -> Client {
        Client::connect(&self.address(i)).await.expect("a running broker takes connections")
    }

    /// Starts broker `i`, which must not run. Does not wait.
    pub fn restart(&mut self, i: usize) {
        let (etcd_port, s3_port) = (self.etcd.port, self.s3.port);
        let broker = &mut self.brokers[i];
        assert!(broker.process.as_mut().is_none_or(|p| !p.is_running()), "broker {i} runs already");
        let port_of = |proxy: &Option<Proxy>, direct| proxy.as_ref().map_or(direct, Proxy::port);
        let mut flags = vec![
            ("node-id", broker.node_id.to_string()),
            ("cluster", CLUSTER.to_owned()),
            ("listen", format!("127.0.0.1:{}", broker.port)),
            ("http-listen", format!("127.0.0.1:{}", broker.http_port)),
            ("etcd-endpoints", format!("http://127.0.0.1:{}", port_of(&broker.etcd, etcd_port))),
            ("store-url", format!("s3://{BUCKET}")),
            ("s3-endpoint", format!("http://127.0.0.1:{}", port_of(&broker.s3, s3_port))),
            ("s3-allow-http", "true".to_owned()),
            ("s3-access-key-id", "test".to_owned()),
            ("s3-secret-access-key", "test-secret".to_owned()),
        ];
        for (name, value) in &broker.flags {
            // Each flag may be given once only: the last word counts.
            flags.retain(|(known, _)| known != name);
            flags.push((name, value.clone()));
        }
        let args: Vec<OsString> =
            flags.into_iter().flat_map(|(k, v)| [format!("--{k}").into(), v.into()]).collect();
        let name = format!("broker-{}", i + 1);
        let process = self.nest.start(&name, &built("strandline"), &args).expect("a broker starts");
        broker.process = Some(process);
    }

    /// Waits until broker `i` says that it is ready; fails if it ends instead.
    pub async fn wait_ready(&mut self, i: usize) {
        let broker = &mut self.brokers[i];
        let process = broker.process.as_mut().expect("it was started");
        let (port, name) = (broker.http_port, process.name().to_owned());
        let until = std::time::Instant::now() + READY;
        loop {
            if let Some(status) = process.ended() {
                panic!("{name} ended with {status} instead of becoming ready");
            }
            let said = http::get(port, "/readyz").await;
            if matches!(said, Ok((200, _))) {
                return;
            }
            assert!(std::time::Instant::now() < until, "{name} is not ready within {READY:?}: {said:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until every broker that runs is ready.
    pub async fn wait_all_ready(&mut self) {
        for i in 0..self.brokers.len() {
            if self.brokers[i].process.as_mut().is_some_and(Process::is_running) {
                self.wait_ready(i).await;
            }
        }
    }

    /// The process of broker `i`, which has been started.
    pub fn broker(&mut self, i: usize) -> &mut Process {
        self.brokers[i].process.as_mut().expect("the broker was started")
    }

    /// Ends broker `i` where it stands.
    pub fn kill9(&mut self, i: usize) {
        self.broker(i).kill9();
    }

    /// Asks broker `i` to leave, and waits until it has.
    pub async fn stop(&mut self, i: usize) -> ExitStatus {
        self.broker(i).signal("TERM");
        self.broker(i).wait(LEAVE).await
    }

    /// Stops broker `i` in the middle of whatever it does, until [`Self::resume`].
    pub fn pause(&mut self, i: usize) {
        self.broker(i).signal("STOP");
    }

    /// Lets broker `i` go on.
    pub fn resume(&mut self, i: usize) {
        self.broker(i).signal("CONT");
    }

    /// etcd.
    pub fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Starts etcd again, on what it had stored, and waits until it answers.
    pub async fn restart_etcd(&mut self) {
        self.etcd.start(&self.nest).await;
    }

    /// The S3 server.
    pub fn s3(&mut self) -> &mut S3 {
        &mut self.s3
    }

    /// Starts the S3 server again and waits until it answers.
    pub async fn restart_s3(&mut self) {
        self.s3.start(&self.nest).await;
    }

    /// Changes the link between broker `i` and etcd.
    pub fn link_to_etcd(&self, i: usize, link: Link) {
        self.brokers[i].etcd.as_ref().expect("the plan has proxies").set(link);
    }

    /// Changes the link between broker `i` and S3.
    pub fn link_to_s3(&self, i: usize, link: Link) {
        self.brokers[i].s3.as_ref().expect("the plan has proxies").set(link);
    }

    /// The sum of a metric of broker `i` over all its labels that contain `label`; 0 if there is none yet.
    pub async fn metric(&self, i: usize, name: &str, label: &str) -> f64 {
        let (_, text) = http::get(self.brokers[i].http_port, "/metrics").await.expect("metrics are served");
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (known, labels) = series.split_once('{').unwrap_or((series, ""));
            (known == name && labels.contains(label)).then(|| value.parse::<f64>().ok()).flatten()
        });
        values.sum()
    }

    /// Status and text of a page of broker `i`.
    pub async fn page(&self, i: usize, path: &str) -> (u16, String) {
        http::get(self.brokers[i].http_port, path).await.expect("the broker serves HTTP")
    }

    /// Waits until the log of broker `i` says this.
    pub async fn wait_logged(&mut self, i: usize, text: &str, limit: Duration) {
        let what = format!("broker {} logs {text:?}", i + 1);
        let process = self.broker(i);
        eventually(&what, limit, async || process.log().contains(text).then_some(())).await;
    }

    /// Starts an observer of the cluster with these flags beside the harness's own, and waits until it has read etcd.
    pub async fn observe(&self, flags: &[&str]) -> (Process, Observer) {
        let etcd = format!("http://127.0.0.1:{}", self.etcd.port);
        observe(&self.nest, CLUSTER, &etcd, flags).await
    }

    /// Keeps every log, and prints the end of each.
    pub fn show_logs(&self) {
        self.nest.keep_and_show();
    }

    /// Where everything of the cluster is kept.
    pub fn folder(&self) -> &Path {
        self.nest.folder()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut panicked = Vec::new();
        for process in self.brokers.iter().filter_map(|b| b.process.as_ref()) {
            if let Some(line) = process.log().lines().find(|l| l.contains("panicked")) {
                panicked.push(format!("{}: {line}", process.name()));
            }
        }
        if std::thread::panicking() {
            self.nest.keep_and_show();
        } else if self.checks_logs && !panicked.is_empty() {
            self.nest.keep_and_show();
            panic!("a broker panicked: {panicked:?}");
        }
    }
}

impl S3 {
    async fn start(&mut self, nest: &Nest) {
        assert!(self.process.as_mut().is_none_or(|p| !p.is_running()), "the S3 server runs already");
        let args = [
            ("--listen", format!("127.0.0.1:{}", self.port)),
            ("--admin", format!("127.0.0.1:{}", self.admin_port)),
            ("--access-key", "test".to_owned()),
            ("--secret-key", "test-secret".to_owned()),
            ("--bucket", BUCKET.to_owned()),
        ];
        let mut args: Vec<OsString> = args.into_iter().flat_map(|(k, v)| [k.into(), v.into()]).collect();
        match &self.folder {
            None => args.push("--memory".into()),
            Some(path) => args.extend(["--data".into(), path.clone().into_os_string()]),
        }
        self.process =
            Some(nest.start("s3", &built("strandline-dev-s3"), &args).expect("the S3 server starts"));
        let port = self.admin_port;
        eventually("the S3 server answers", READY, async || http::get(port, "/stats").await.ok().map(|_| ()))
            .await;
    }

    /// From now on this goes wrong: a plan as the S3 server's admin port takes it.
    pub async fn faults(&self, plan: serde_json::Value) {
        let (status, said) = http::request(self.admin_port, "PUT", "/faults", &plan.to_string())
            .await
            .expect("the S3 server's admin port answers");
        assert_eq!(status, 200, "the plan {plan} is not taken: {said}");
    }

    /// Nothing goes wrong any more.
    pub async fn heal(&self) {
        self.faults(serde_json::json!({})).await;
    }

    /// Counts of requests by operation.
    pub async fn stats(&self) -> serde_json::Value {
        let (_, text) = http::get(self.admin_port, "/stats").await.expect("the admin port answers");
        serde_json::from_str(&text).expect("statistics are JSON")
    }

    /// Ends it where it stands. Only objects in a folder are there again later.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it was started").kill9();
    }

    /// The files of all objects whose key contains `part`, in the order of their names.
    pub fn files(&self, part: &str) -> Vec<PathBuf> {
        let root = self.folder.as_ref().expect("the plan keeps objects in a folder");
        let mut found = Vec::new();
        let mut folders = vec![root.join(BUCKET)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_string_lossy().contains(part) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Etcd {
    async fn start(&mut self, nest: &Nest) {
        assert!(self.process.as_mut().is_none_or(|p| !p.is_running()), "etcd runs already");
        let client = format!("http://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let args = [
            ("--data-dir", self.data.clone().into_os_string()),
            ("--log-level", "warn".into()),
            ("--logger", "zap".into()),
            ("--listen-client-urls", client.clone().into()),
            ("--advertise-client-urls", client.into()),
            ("--listen-peer-urls", peer.clone().into()),
            ("--initial-advertise-peer-urls", peer.clone().into()),
            ("--initial-cluster", format!("default={peer}").into()),
        ];
        let mut args: Vec<OsString> = args.into_iter().flat_map(|(k, v)| [k.into(), v]).collect();
        args.push("--unsafe-no-fsync".into());
        args.extend(self.flags.iter().map(OsString::from));
        let process = nest.start("etcd", Path::new("etcd"), &args);
        self.process = Some(process.expect("etcd starts: is the package etcd-server installed?"));
        let port = self.port;
        eventually("etcd answers", READY, async || {
            matches!(http::get(port, "/health").await, Ok((200, _))).then_some(())
        })
        .await;
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("etcd was started")
    }

    /// Ends it where it stands.
    pub fn kill9(&mut self) {
        self.process().kill9();
    }

    /// Stops it in the middle of whatever it does, until [`Self::resume`].
    pub fn pause(&mut self) {
        self.process().signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        self.process().signal("CONT");
    }

    /// What `etcdctl` says to this; an error is what it complains of.
    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        etcdctl(self.port, args)
    }

    /// What `etcdctl` says to this, which must work.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|why| panic!("etcdctl {args:?}: {why}"))
    }

    /// Takes the place of everything that it has stored, from a file that `etcdctl snapshot save` has written. It must
    /// not run, and does not afterwards.
    pub fn restore(&mut self, backup: &Path) {
        self.data.set_extension("restored");
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let (data, backup) =
            (self.data.to_string_lossy().into_owned(), backup.to_string_lossy().into_owned());
        let cluster = format!("default={peer}");
        self.ctl(&[
            "snapshot",
            "restore",
            &backup,
            "--data-dir",
            &data,
            "--initial-cluster",
            &cluster,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
    }

    /// The revision that it is at.
    pub fn revision(&self) -> i64 {
        let said = self.ctl(&["endpoint", "status", "-w", "json"]);
        let status: serde_json::Value = serde_json::from_str(&said).expect("etcdctl prints JSON");
        status[0]["Status"]["header"]["revision"].as_i64().expect("a revision")
    }

    /// Forgets all history.
    pub fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]);
    }
}
