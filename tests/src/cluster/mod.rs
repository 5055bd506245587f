//! A whole cluster of real processes: etcd, the S3 server, brokers; and what can be done to them.
//!
//! One cluster runs at a time in a test program: whoever starts another one waits until the first
//! is gone.

mod etcd;
mod plan;
mod s3;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::client::Client;
use crate::http;
use crate::observer::{Observer, observe};
use crate::process::{Nest, Process, built, eventually, free_port};
use crate::proxy::{Link, Proxy};

pub use etcd::Etcd;
pub use plan::Plan;
pub use s3::S3;

/// Time for a process to be ready: generous, since the machine may be busy with a build.
const READY: Duration = Duration::from_mins(1);
/// Settings that builds before 0.3 or 0.4 do not have.
const NEW_FLAGS: [&str; 4] = [
    "log-retention-check-interval-ms",
    "merge-interval-ms",
    "snapshot-interval-ms",
    "snapshot-retention-hours",
];
/// Time for a broker to leave when it is asked to.
const LEAVE: Duration = Duration::from_mins(1);
/// The bucket.
const BUCKET: &str = "strandline";
/// Where brokers keep objects.
pub const BUCKET_URL: &str = "s3://strandline";
/// The cluster's name, which is the prefix in etcd.
pub const CLUSTER: &str = "t";

/// One broker, whether it runs or not.
#[derive(Debug)]
pub struct Broker {
    node_id: i32,
    port: u16,
    http_port: u16,
    /// What its clients connect to instead.
    front: Option<Proxy>,
    /// One before each member, or none.
    etcd: Vec<Proxy>,
    s3: Option<Proxy>,
    flags: Vec<(&'static str, String)>,
    /// What it runs instead of the build that is tested.
    program: Option<PathBuf>,
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
        let mut etcd = Etcd::new(&plan, nest.folder()).await;
        etcd.start(&nest).await;
        etcd.know_peers().await;
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
        let (port, http_port, flags) = (free_port(), free_port(), self.plan.flags.clone());
        let (mut front, mut etcd, mut s3) = (None, Vec::new(), None);
        if self.plan.proxies {
            for port in self.etcd.ports() {
                etcd.push(Proxy::start(port).await.expect("a proxy"));
            }
            s3 = Some(Proxy::start(self.s3.port).await.expect("a proxy"));
        }
        if self.plan.all_proxies {
            front = Some(Proxy::start(port).await.expect("a proxy"));
        }
        let program = self.plan.program.clone();
        self.brokers.push(Broker {
            node_id,
            port,
            http_port,
            front,
            etcd,
            s3,
            flags,
            program,
            process: None,
        });
        self.brokers.len() - 1
    }

    /// Changes a flag of a broker, from its next start on.
    pub fn set_flag(&mut self, i: usize, name: &'static str, value: impl Display) {
        self.brokers[i].flags.push((name, value.to_string()));
    }

    /// Changes what broker `i` runs, from its next start on; `None` is the build that is tested.
    pub fn set_program(&mut self, i: usize, program: Option<PathBuf>) {
        self.brokers[i].program = program;
    }

    /// Whether broker `i` runs another build than the one that is tested, from its next start on.
    pub fn has_other_program(&self, i: usize) -> bool {
        self.brokers[i].program.is_some()
    }

    /// Gives broker `i`, which must not run, another node id.
    pub fn set_node_id(&mut self, i: usize, node_id: i32) {
        assert!(!self.is_running(i), "broker {i} runs");
        self.brokers[i].node_id = node_id;
    }

    /// The node id of broker `i`.
    pub fn node_id(&self, i: usize) -> i32 {
        self.brokers[i].node_id
    }

    /// Whether broker `i` runs.
    pub fn is_running(&mut self, i: usize) -> bool {
        self.brokers[i].process.as_mut().is_some_and(Process::is_running)
    }

    /// Whether broker `i` was ever started.
    pub fn was_started(&self, i: usize) -> bool {
        self.brokers[i].process.is_some()
    }

    /// How broker `i` ended, if it has run and has ended.
    pub fn ended(&mut self, i: usize) -> Option<ExitStatus> {
        self.brokers[i].process.as_mut().and_then(Process::ended)
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
        let broker = &self.brokers[i];
        format!("127.0.0.1:{}", broker.front.as_ref().map_or(broker.port, Proxy::port))
    }

    /// Where broker `i` listens itself, whatever proxy clients are told of.
    pub fn direct_address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.brokers[i].port)
    }

    /// Where broker `i` serves its metrics.
    pub fn http_address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.brokers[i].http_port)
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
        let s3_port = self.s3.port;
        let broker = &mut self.brokers[i];
        assert!(broker.process.as_mut().is_none_or(|p| !p.is_running()), "broker {i} runs already");
        let port_of = |proxy: &Option<Proxy>, direct| proxy.as_ref().map_or(direct, Proxy::port);
        let mut etcd_ports: Vec<u16> = broker.etcd.iter().map(Proxy::port).collect();
        if etcd_ports.is_empty() {
            etcd_ports = self.etcd.ports();
        }
        let endpoints: Vec<String> = etcd_ports.iter().map(|p| format!("http://127.0.0.1:{p}")).collect();
        let mut flags = vec![
            ("node-id", broker.node_id.to_string()),
            ("cluster", CLUSTER.to_owned()),
            ("listen", format!("127.0.0.1:{}", broker.port)),
            ("advertised", format!("127.0.0.1:{}", port_of(&broker.front, broker.port))),
            ("http-listen", format!("127.0.0.1:{}", broker.http_port)),
            ("etcd-endpoints", endpoints.join(",")),
            ("store-url", format!("s3://{BUCKET}")),
            ("s3-endpoint", format!("http://127.0.0.1:{}", port_of(&broker.s3, s3_port))),
            ("s3-allow-http", "true".to_owned()),
            ("s3-access-key-id", "test".to_owned()),
            ("s3-secret-access-key", "test-secret".to_owned()),
        ];
        // Another build may not know what came after it.
        let is_known = |name: &str| broker.program.is_none() || !NEW_FLAGS.contains(&name);
        for (name, value) in broker.flags.iter().filter(|(name, _)| is_known(name)) {
            // Each flag may be given once only: the last word counts.
            flags.retain(|(known, _)| known != name);
            flags.push((name, value.clone()));
        }
        if let Some(program) = &broker.program {
            // It may be older than some of the flags.
            let known = help_of(program);
            flags.retain(|(name, _)| known.contains(&format!("--{name} ")));
        }
        let args: Vec<OsString> =
            flags.into_iter().flat_map(|(k, v)| [format!("--{k}").into(), v.into()]).collect();
        let name = format!("broker-{}", i + 1);
        let program = broker.program.clone().unwrap_or_else(|| built("strandline"));
        let process = match self.plan.descriptors {
            None => self.nest.start(&name, &program, &args),
            Some(most) => {
                // A shell lowers its own limit for good, and becomes the broker.
                let script = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
                let words = [OsString::from("-c"), script.into(), program.into()];
                self.nest.start(&name, Path::new("/bin/sh"), &[&words[..], &args].concat())
            }
        };
        broker.process = Some(process.expect("a broker starts"));
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

    /// Starts the members of etcd that do not run, on what they had stored, and waits until each
    /// answers.
    pub async fn restart_etcd(&mut self) {
        self.etcd.start(&self.nest).await;
    }

    /// Starts a member of etcd, which must not run. Does not wait.
    pub fn restart_member(&mut self, member: usize) {
        self.etcd.start_member(member, &self.nest);
    }

    /// The S3 server.
    pub fn s3(&mut self) -> &mut S3 {
        &mut self.s3
    }

    /// Starts the S3 server again and waits until it answers.
    pub async fn restart_s3(&mut self) {
        self.s3.start(&self.nest).await;
    }

    /// Starts the members of etcd that do not run. Does not wait.
    pub fn restart_members(&mut self) {
        for member in 0..self.etcd.len() {
            if !self.etcd.is_running(member) {
                self.etcd.start_member(member, &self.nest);
            }
        }
    }

    /// Changes the link between broker `i` and etcd.
    pub fn link_to_etcd(&self, i: usize, link: Link) {
        assert!(!self.brokers[i].etcd.is_empty(), "the plan has proxies");
        for proxy in &self.brokers[i].etcd {
            proxy.set(link);
        }
    }

    /// Changes the link between broker `i` and one member of etcd.
    pub fn link_to_etcd_member(&self, i: usize, member: usize, link: Link) {
        self.brokers[i].etcd[member].set(link);
    }

    /// Changes the link between broker `i` and its clients.
    pub fn link_to_clients(&self, i: usize, link: Link) {
        self.brokers[i].front.as_ref().expect("the plan has proxies").set(link);
    }

    /// Changes the link between broker `i` and S3.
    pub fn link_to_s3(&self, i: usize, link: Link) {
        self.brokers[i].s3.as_ref().expect("the plan has proxies").set(link);
    }

    /// The sum of a metric of broker `i` over all its labels that contain `label`; 0 if there is
    /// none yet.
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

    /// Starts an observer of the cluster with these flags beside the harness's own, and waits until
    /// it has read etcd.
    pub async fn observe(&self, flags: &[&str]) -> (Process, Observer) {
        let etcd = format!("http://127.0.0.1:{}", self.etcd.ports()[0]);
        observe(&self.nest, CLUSTER, &etcd, flags).await
    }

    /// Audits everything with the product's own command, which reaches etcd and S3 directly. Gives
    /// its exit code, and what it said.
    pub async fn fsck(&self, words: &[&str]) -> (Option<i32>, String) {
        self.command("fsck", words).await
    }

    /// Runs one of the product's other commands: its exit code, and what it said.
    pub async fn command(&self, command: &str, words: &[&str]) -> (Option<i32>, String) {
        let endpoints: Vec<String> =
            self.etcd.ports().iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let s3 = format!("http://127.0.0.1:{}", self.s3.port);
        let done = tokio::process::Command::new(built("strandline"))
            .arg(command)
            .args(words)
            .args(["--cluster", CLUSTER, "--etcd-endpoints", &endpoints.join(",")])
            .args(["--store-url", &format!("s3://{BUCKET}"), "--s3-endpoint", &s3, "--s3-allow-http", "true"])
            .args(["--s3-access-key-id", "test", "--s3-secret-access-key", "test-secret", "--log", "warn"])
            .kill_on_drop(true)
            .output()
            .await
            .expect("the audit runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout) + &text(&done.stderr))
    }

    /// The lines of all brokers' logs that contain this, each behind its broker's name.
    pub fn logged(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for process in self.brokers.iter().filter_map(|b| b.process.as_ref()) {
            let log = process.log();
            let lines = log.lines().filter(|l| l.contains(text));
            found.extend(lines.map(|line| format!("{}: {line}", process.name())));
        }
        found
    }

    /// Empties every log: nobody needs it any more.
    pub fn forget_logs(&self) {
        self.nest.forget_logs();
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

/// What a program says of its flags.
fn help_of(program: &Path) -> String {
    let said = std::process::Command::new(program).arg("--help").output().expect("the program starts");
    String::from_utf8_lossy(&said.stdout).into_owned()
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
