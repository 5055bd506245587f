//! etcd: one member or several, and what can be done to them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Plan, READY};
use crate::ctl::etcdctl;
use crate::http;
use crate::process::{Nest, Process, eventually, free_port};
use crate::proxy::{Link, PeerProxy};

/// What the name of a folder ends with whose contents come from a backup.
const RESTORED: &str = "restored";

/// etcd: one member, or several.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    flags: Vec<String>,
}

/// A member of etcd.
#[derive(Debug)]
struct Member {
    name: String,
    port: u16,
    peer_port: u16,
    /// What the other members connect to instead.
    peers: Option<PeerProxy>,
    /// The folder of its data, which another one may take the place of.
    data: PathBuf,
    process: Option<Process>,
}

impl Etcd {
    pub(super) async fn new(plan: &Plan, folder: &Path) -> Self {
        let mut members = Vec::new();
        for number in 1..=plan.etcd_members {
            let name = if plan.etcd_members == 1 { "etcd".to_owned() } else { format!("etcd-{number}") };
            let (port, peer_port, data) = (free_port(), free_port(), folder.join(&name));
            let mut peers = None;
            if plan.all_proxies {
                peers = Some(PeerProxy::start(peer_port).await.expect("a proxy"));
            }
            members.push(Member { name, port, peer_port, peers, data, process: None });
        }
        Self { members, flags: plan.etcd_flags.clone() }
    }

    /// The members, as each of them is told of all.
    fn initial_cluster(&self) -> String {
        let one = |m: &Member| format!("{}={}", m.name, m.peer_url());
        self.members.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Starts the members that do not run, and waits until every one answers.
    pub(super) async fn start(&mut self, nest: &Nest) {
        for i in 0..self.members.len() {
            if !self.is_running(i) {
                self.start_member(i, nest);
            }
        }
        self.wait_healthy().await;
    }

    pub(super) fn start_member(&mut self, i: usize, nest: &Nest) {
        assert!(!self.is_running(i), "etcd runs already");
        let cluster = self.initial_cluster();
        let member = &mut self.members[i];
        let client = format!("http://127.0.0.1:{}", member.port);
        let args = [
            ("--name", member.name.clone().into()),
            ("--data-dir", member.data.clone().into_os_string()),
            ("--log-level", "warn".into()),
            ("--logger", "zap".into()),
            ("--listen-client-urls", client.clone().into()),
            ("--advertise-client-urls", client.into()),
            ("--listen-peer-urls", format!("http://127.0.0.1:{}", member.peer_port).into()),
            ("--initial-advertise-peer-urls", member.peer_url().into()),
            ("--initial-cluster", cluster.into()),
        ];
        let mut args: Vec<OsString> = args.into_iter().flat_map(|(k, v)| [k.into(), v]).collect();
        args.push("--unsafe-no-fsync".into());
        args.extend(self.flags.iter().map(OsString::from));
        let process = nest.start(&member.name, Path::new("etcd"), &args);
        member.process = Some(process.expect("etcd starts: is the package etcd-server installed?"));
    }

    async fn wait_healthy(&self) {
        for member in &self.members {
            let (what, port) = (format!("{} answers", member.name), member.port);
            eventually(&what, READY, async || {
                matches!(http::get(port, "/health").await, Ok((200, _))).then_some(())
            })
            .await;
        }
    }

    /// Tells the proxies between members which of them is which.
    pub(super) async fn know_peers(&self) {
        if self.members.iter().all(|m| m.peers.is_none()) {
            return;
        }
        let list =
            eventually("etcd lists its members", READY, async || self.try_ctl(&["member", "list"]).ok());
        for line in list.await.lines() {
            let mut words = line.split(", ");
            let (Some(id), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let who = self.members.iter().position(|m| m.name == name).expect("one of the members");
            for proxy in self.members.iter().filter_map(|m| m.peers.as_ref()) {
                proxy.know(who, id);
            }
        }
    }

    /// How many members there are, running or not.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a member runs.
    pub fn is_running(&mut self, i: usize) -> bool {
        self.members[i].process.as_mut().is_some_and(Process::is_running)
    }

    /// The process of a member, which was started.
    pub fn member(&mut self, i: usize) -> &mut Process {
        self.members[i].process.as_mut().expect("etcd was started")
    }

    /// Changes the link on which `from` connects to `to`. Of what members say to each other, most
    /// is said by the one that was connected to.
    pub fn link(&self, from: usize, to: usize, link: Link) {
        self.members[to].peers.as_ref().expect("the plan has proxies").set(from, link);
    }

    /// Ends it where it stands: every member.
    pub fn kill9(&mut self) {
        (0..self.len()).for_each(|i| self.member(i).kill9());
    }

    /// Stops every member in the middle of whatever it does, until [`Self::resume`].
    pub fn pause(&mut self) {
        (0..self.len()).for_each(|i| self.member(i).signal("STOP"));
    }

    /// Lets every member go on.
    pub fn resume(&mut self) {
        (0..self.len()).for_each(|i| self.member(i).signal("CONT"));
    }

    /// What `etcdctl` says to this; an error is what it complains of.
    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        etcdctl(&self.ports(), args, None)
    }

    /// Puts a value that is too long for a command line.
    pub fn try_put(&self, key: &str, value: &[u8]) -> Result<String, String> {
        etcdctl(&self.ports(), &["put", key], Some(value))
    }

    /// What `etcdctl` says to this when it speaks to one member only.
    pub fn try_ctl_of(&self, i: usize, args: &[&str]) -> Result<String, String> {
        etcdctl(&[self.members[i].port], args, None)
    }

    /// The size of a member's file.
    pub fn db_bytes(&self, i: usize) -> Result<u64, String> {
        let said = self.try_ctl_of(i, &["endpoint", "status", "-w", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&said).map_err(|e| e.to_string())?;
        status[0]["Status"]["dbSize"].as_u64().ok_or_else(|| format!("no size in {said}"))
    }

    /// Where each member takes clients.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|m| m.port).collect()
    }

    /// What `etcdctl` says to this, which must work.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|why| panic!("etcdctl {args:?}: {why}"))
    }

    /// Saves what it has stored as a file.
    pub fn back_up(&self, backup: &Path) {
        let done = self.try_ctl_of(0, &["snapshot", "save", &backup.to_string_lossy()]);
        done.unwrap_or_else(|why| panic!("etcdctl snapshot save: {why}"));
    }

    /// What a file has that [`Self::back_up`] wrote takes the place of everything that it has
    /// stored. No member may run, and none does afterwards.
    pub fn restore(&mut self, backup: &Path) {
        let (cluster, backup) = (self.initial_cluster(), backup.to_string_lossy().into_owned());
        for i in 0..self.len() {
            assert!(!self.is_running(i), "etcd runs");
            let member = &mut self.members[i];
            member.data.set_extension(RESTORED);
            // What an earlier restoration left behind.
            let _ = std::fs::remove_dir_all(&member.data);
            let (name, peer) = (member.name.clone(), member.peer_url());
            let data = member.data.to_string_lossy().into_owned();
            self.ctl(&[
                "snapshot",
                "restore",
                &backup,
                "--name",
                &name,
                "--data-dir",
                &data,
                "--initial-cluster",
                &cluster,
                "--initial-advertise-peer-urls",
                &peer,
            ]);
        }
    }

    /// Goes back to what it had stored before [`Self::restore`]. No member may run, and none does
    /// afterwards.
    pub fn take_back(&mut self) {
        for i in 0..self.len() {
            assert!(!self.is_running(i), "etcd runs");
            self.members[i].data.set_extension("");
        }
    }

    /// The revision that it is at.
    pub fn revision(&self) -> i64 {
        self.try_revision().unwrap_or_else(|why| panic!("etcdctl endpoint status: {why}"))
    }

    fn try_revision(&self) -> Result<i64, String> {
        // A linearizable read of a key that is not there.
        let said = self.try_ctl(&["get", "none", "-w", "json"])?;
        let answer: serde_json::Value = serde_json::from_str(&said).map_err(|e| e.to_string())?;
        answer["header"]["revision"].as_i64().ok_or_else(|| format!("no revision in {said}"))
    }

    /// So many changes of somebody else who uses the same etcd.
    pub async fn write_as_neighbour(&self, changes: i64) {
        // `/neighbour` and `x`, in base64.
        let put = r#"{"key": "L25laWdoYm91cg==", "value": "eA=="}"#;
        for _ in 0..changes {
            let answer = http::request(self.members[0].port, "POST", "/v3/kv/put", put).await;
            assert!(matches!(answer, Ok((200, _))), "etcd takes it: {answer:?}");
        }
    }

    /// Forgets all history.
    pub fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]);
    }

    /// The same, if it answers.
    pub fn try_compact(&self) -> Result<String, String> {
        self.try_ctl(&["compact", &self.try_revision()?.to_string()])
    }
}

impl Member {
    /// Where other members connect.
    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peers.as_ref().map_or(self.peer_port, PeerProxy::port))
    }
}
