//! What is done to a cluster, at random: each fault begins, holds for a while, and ends.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use strandline_hostile::attacks::{ATTACKS, Press, Target};
use strandline_tests::cluster::Cluster;
use strandline_tests::process::{eventually, was_killed};
use strandline_tests::proxy::Link;

/// The broker that comes and goes under ever other node ids is the last one.
pub(crate) const RESIDENTS: usize = 3;
/// The first node id of that one.
const FIRST_GUEST: i32 = 10;
/// Room for one process to do what it is asked to, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_mins(2);
/// What etcd may store: small enough to be filled quickly, large enough for what the brokers need.
pub(crate) const QUOTA_BYTES: u64 = 96 << 20;
/// What fills etcd: junk of this size, under this prefix.
const JUNK_BYTES: usize = 1 << 20;
const JUNK: &str = "/junk/";
/// What hostile clients claim.
const CROWD: &str = "crowd";

/// How a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Held(Link),
    /// Down and up again, every now and then.
    Flapping,
}

/// Between whom a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    BrokerAndEtcd(usize),
    BrokerAndMember(usize, usize),
    BrokerAndStore(usize),
    BrokerAndClients(usize),
    Members(usize, usize),
}

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    KillBroker(usize),
    PauseBroker(usize),
    StopBroker(usize),
    KillBrokers,
    /// The guest comes with a node id that nobody had, or goes.
    NewNode,
    /// The guest takes the node id of a broker that stands still meanwhile.
    TakeNodeId(usize),
    KillMember(usize),
    PauseMember(usize),
    StopMember(usize),
    KillEtcd,
    PauseEtcd,
    Compact,
    FillEtcd,
    KillStore,
    PauseStore,
    Store(Value),
    Cut(Ends, Cut),
    KillEverything,
    /// Hostile clients of this kind press on a broker.
    Hostile(usize, &'static str),
    /// A broker is killed and comes back as the other build: an older one, or the one that is
    /// tested.
    OtherBuild(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillBroker(i) => write!(f, "kill -9 broker {}", i + 1),
            Self::PauseBroker(i) => write!(f, "SIGSTOP broker {}", i + 1),
            Self::StopBroker(i) => write!(f, "SIGTERM broker {}", i + 1),
            Self::KillBrokers => write!(f, "kill -9 all brokers"),
            Self::NewNode => write!(f, "a broker with a new node id comes or goes"),
            Self::TakeNodeId(i) => {
                write!(f, "another process takes the node id of broker {}, which stands still", i + 1)
            }
            Self::KillMember(i) => write!(f, "kill -9 etcd {}", i + 1),
            Self::PauseMember(i) => write!(f, "SIGSTOP etcd {}", i + 1),
            Self::StopMember(i) => write!(f, "SIGTERM etcd {}", i + 1),
            Self::KillEtcd => write!(f, "kill -9 all members of etcd"),
            Self::PauseEtcd => write!(f, "SIGSTOP all members of etcd"),
            Self::Compact => write!(f, "etcd forgets its history"),
            Self::FillEtcd => write!(f, "etcd without space"),
            Self::KillStore => write!(f, "kill -9 S3"),
            Self::PauseStore => write!(f, "SIGSTOP S3"),
            Self::Store(plan) => write!(f, "S3 answers badly: {plan}"),
            Self::Cut(ends, cut) => {
                match ends {
                    Ends::BrokerAndEtcd(i) => write!(f, "link between broker {} and etcd", i + 1)?,
                    Ends::BrokerAndMember(i, m) => {
                        write!(f, "link between broker {} and etcd {}", i + 1, m + 1)?;
                    }
                    Ends::BrokerAndStore(i) => write!(f, "link between broker {} and S3", i + 1)?,
                    Ends::BrokerAndClients(i) => write!(f, "link between broker {} and its clients", i + 1)?,
                    Ends::Members(a, b) => write!(f, "link between etcd {} and etcd {}", a + 1, b + 1)?,
                }
                match cut {
                    Cut::Held(link) => write!(f, " is {link:?}"),
                    Cut::Flapping => write!(f, " flaps"),
                }
            }
            Self::KillEverything => write!(f, "kill -9 everything"),
            Self::Hostile(i, kind) => write!(f, "hostile clients at broker {}: {kind}", i + 1),
            Self::OtherBuild(i) => write!(f, "kill -9 broker {}, which comes back as the other build", i + 1),
        }
    }
}

impl Fault {
    /// Any fault. Builds change only if there are two.
    pub(crate) fn any(rng: &mut StdRng, are_builds_mixed: bool) -> Self {
        let broker = rng.random_range(0..=RESIDENTS);
        let resident = rng.random_range(0..RESIDENTS);
        let member = rng.random_range(0..3);
        match rng.random_range(0..if are_builds_mixed { 125 } else { 110 }) {
            0..14 => Self::KillBroker(broker),
            14..22 => Self::PauseBroker(broker),
            22..28 => Self::StopBroker(broker),
            28..30 => Self::KillBrokers,
            30..34 => Self::NewNode,
            34..37 => Self::TakeNodeId(resident),
            37..43 => Self::KillMember(member),
            43..48 => Self::PauseMember(member),
            48..51 => Self::StopMember(member),
            51..54 => Self::KillEtcd,
            54..56 => Self::PauseEtcd,
            56..60 => Self::Compact,
            60..62 => Self::FillEtcd,
            62..65 => Self::KillStore,
            65..67 => Self::PauseStore,
            67..77 => Self::Store(store_plan(rng)),
            77..98 => {
                let ends = match rng.random_range(0..5) {
                    0 => Ends::BrokerAndEtcd(broker),
                    1 => Ends::BrokerAndMember(broker, member),
                    2 => Ends::BrokerAndStore(broker),
                    3 => Ends::BrokerAndClients(broker),
                    _ => Ends::Members(member, (member + rng.random_range(1..3)) % 3),
                };
                let cuts = [Link::Down, Link::Silent, Link::OneWay, Link::OtherWay];
                let cut = match cuts.get(rng.random_range(0..=cuts.len())) {
                    Some(link) => Cut::Held(*link),
                    None => Cut::Flapping,
                };
                Self::Cut(ends, cut)
            }
            98..100 => Self::KillEverything,
            100..110 => {
                let kinds: Vec<&str> = ATTACKS.iter().filter(|a| a.is_passing()).map(|a| a.name).collect();
                Self::Hostile(resident, kinds[rng.random_range(0..kinds.len())])
            }
            _ => Self::OtherBuild(resident),
        }
    }

    /// Two faults that have one of these in common do not go together.
    pub(crate) fn claims(&self) -> Vec<String> {
        let broker = |i: &usize| format!("broker {i}");
        let member = |i: &usize| format!("etcd {i}");
        let brokers = || (0..=RESIDENTS).map(|i| broker(&i));
        let members = || (0..3).map(|i| member(&i));
        match self {
            Self::KillBroker(i) | Self::PauseBroker(i) | Self::StopBroker(i) => vec![broker(i)],
            Self::KillBrokers => brokers().collect(),
            Self::NewNode => vec![broker(&RESIDENTS)],
            Self::TakeNodeId(i) => vec![broker(i), broker(&RESIDENTS)],
            Self::KillMember(i) | Self::PauseMember(i) | Self::StopMember(i) => vec![member(i)],
            // Filling needs a healthy etcd.
            Self::FillEtcd => {
                let links = (0..3).flat_map(|a| (0..3).map(move |b| format!("peers {a} {b}")));
                members().chain(links).collect()
            }
            Self::KillEtcd | Self::PauseEtcd | Self::Compact => members().collect(),
            Self::KillStore | Self::PauseStore | Self::Store(_) => vec!["S3".to_owned()],
            Self::Cut(ends, _) => match ends {
                Ends::BrokerAndEtcd(i) => (0..3).map(|m| format!("link {i} etcd {m}")).collect(),
                Ends::BrokerAndMember(i, m) => vec![format!("link {i} etcd {m}")],
                Ends::BrokerAndStore(i) => vec![format!("link {i} S3")],
                Ends::BrokerAndClients(i) => vec![format!("link {i} clients")],
                Ends::Members(a, b) => vec![format!("peers {} {}", a.min(b), a.max(b))],
            },
            Self::KillEverything => brokers().chain(members()).chain(["S3".to_owned()]).collect(),
            Self::Hostile(..) => vec![CROWD.to_owned()],
            // An older build need not stand hostile clients.
            Self::OtherBuild(i) => vec![broker(i), CROWD.to_owned()],
        }
    }

    pub(crate) async fn begin(&self, cluster: &mut Cluster, surroundings: &mut Surroundings) {
        match self {
            Self::KillBroker(i) => kill_broker(cluster, *i),
            Self::PauseBroker(i) if cluster.is_running(*i) => cluster.pause(*i),
            Self::StopBroker(i) if cluster.is_running(*i) => cluster.broker(*i).signal("TERM"),
            Self::KillBrokers => (0..cluster.len()).for_each(|i| kill_broker(cluster, i)),
            Self::NewNode if cluster.is_running(RESIDENTS) => cluster.kill9(RESIDENTS),
            Self::NewNode => come(cluster),
            Self::TakeNodeId(i) => {
                kill_broker(cluster, RESIDENTS);
                cluster.pause(*i);
                cluster.set_node_id(RESIDENTS, cluster.node_id(*i));
                cluster.restart(RESIDENTS);
            }
            Self::KillMember(i) => cluster.etcd().member(*i).kill9(),
            Self::PauseMember(i) => cluster.etcd().member(*i).signal("STOP"),
            Self::StopMember(i) => cluster.etcd().member(*i).signal("TERM"),
            Self::KillEtcd => cluster.etcd().kill9(),
            Self::PauseEtcd => cluster.etcd().pause(),
            Self::Compact => {
                // It may have no majority because of what else is broken.
                let _ = cluster.etcd().try_compact();
            }
            Self::FillEtcd => fill(cluster),
            Self::KillStore => cluster.s3().kill9(),
            Self::PauseStore => cluster.s3().signal("STOP"),
            Self::Store(plan) => cluster.s3().faults(plan.clone()).await,
            Self::Cut(ends, Cut::Held(link)) => set(cluster, *ends, *link),
            Self::Cut(ends, Cut::Flapping) => set(cluster, *ends, Link::Down),
            Self::KillEverything => {
                (0..cluster.len()).for_each(|i| kill_broker(cluster, i));
                cluster.etcd().kill9();
                cluster.s3().kill9();
            }
            Self::Hostile(i, kind) if !cluster.has_other_program(*i) => {
                let attacks: Vec<_> = ATTACKS.iter().filter(|attack| attack.name == *kind).collect();
                surroundings.press = Some(Press::start(&Target::of(cluster, *i), &attacks));
            }
            Self::OtherBuild(i) => {
                kill_broker(cluster, *i);
                let other = if cluster.has_other_program(*i) { None } else { surroundings.older.clone() };
                cluster.set_program(*i, other);
                cluster.restart(*i);
            }
            Self::PauseBroker(_) | Self::StopBroker(_) | Self::Hostile(..) => {}
        }
    }

    /// Now and then while the fault holds.
    pub(crate) fn tick(&self, cluster: &mut Cluster, rng: &mut StdRng) {
        if let Self::Cut(ends, Cut::Flapping) = self {
            let links = [Link::Up, Link::Down, Link::Silent];
            set(cluster, *ends, links[rng.random_range(0..links.len())]);
        }
    }

    /// Ends the fault. Nothing here waits for anything that another fault may prevent.
    pub(crate) async fn end(&self, cluster: &mut Cluster, surroundings: &mut Surroundings) {
        match self {
            Self::KillBroker(i) => start_broker(cluster, *i),
            Self::PauseBroker(i) if cluster.is_running(*i) => cluster.resume(*i),
            Self::KillBrokers => (0..cluster.len()).for_each(|i| start_broker(cluster, i)),
            Self::TakeNodeId(i) => {
                cluster.resume(*i);
                // Whichever registered last stays; both are ended, and the resident comes back.
            }
            Self::KillMember(i) => cluster.restart_member(*i),
            Self::PauseMember(i) => cluster.etcd().member(*i).signal("CONT"),
            Self::StopMember(i) => {
                cluster.etcd().member(*i).wait(PATIENCE).await;
                cluster.restart_member(*i);
            }
            Self::KillEtcd => cluster.restart_members(),
            Self::PauseEtcd => cluster.etcd().resume(),
            Self::KillStore => cluster.restart_s3().await,
            Self::PauseStore => cluster.s3().signal("CONT"),
            Self::Store(_) => cluster.s3().heal().await,
            Self::Cut(ends, _) => set(cluster, *ends, Link::Up),
            Self::KillEverything => {
                cluster.restart_s3().await;
                cluster.restart_members();
                (0..cluster.len()).for_each(|i| start_broker(cluster, i));
            }
            Self::FillEtcd => make_room(cluster).await,
            Self::Hostile(..) => {
                if let Some(press) = surroundings.press.take() {
                    press.end().await;
                }
            }
            Self::PauseBroker(_)
            | Self::StopBroker(_)
            | Self::NewNode
            | Self::Compact
            | Self::OtherBuild(_) => {}
        }
    }

    /// What must have come of it, once all faults of the step have ended.
    pub(crate) async fn settle(&self, cluster: &mut Cluster) {
        match self {
            Self::StopBroker(i) if cluster.was_started(*i) => {
                let status = cluster.broker(*i).wait(PATIENCE).await;
                assert!(
                    status.success() || was_killed(status),
                    "broker {} was asked to leave and ended with {status}",
                    i + 1
                );
                start_broker(cluster, *i);
            }
            Self::TakeNodeId(i) => {
                // The one that stood still has lost its node id, if the other one had the time to
                // take it: then it ends.
                eventually("one of two brokers with the same node id ends", PATIENCE, async || {
                    (!cluster.is_running(*i) || !cluster.is_running(RESIDENTS)).then_some(())
                })
                .await;
                kill_broker(cluster, RESIDENTS);
                kill_broker(cluster, *i);
                come(cluster);
                cluster.restart(*i);
            }
            _ => {}
        }
    }
}

/// What faults need beside the cluster.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// An older build's program.
    pub(crate) older: Option<PathBuf>,
    /// Hostile clients that press now.
    press: Option<Press>,
}

impl Surroundings {
    pub(crate) fn new(older: Option<PathBuf>) -> Self {
        Self { older, press: None }
    }
}

/// The guest comes, with a node id that nobody had before.
fn come(cluster: &mut Cluster) {
    static NEXT: AtomicI32 = AtomicI32::new(FIRST_GUEST);
    cluster.set_node_id(RESIDENTS, NEXT.fetch_add(1, Ordering::Relaxed));
    cluster.restart(RESIDENTS);
}

fn kill_broker(cluster: &mut Cluster, i: usize) {
    if cluster.was_started(i) {
        cluster.kill9(i);
    }
}

/// The guest stays away if it was not there.
fn start_broker(cluster: &mut Cluster, i: usize) {
    if cluster.was_started(i) && !cluster.is_running(i) {
        cluster.restart(i);
    }
}

fn set(cluster: &mut Cluster, ends: Ends, link: Link) {
    match ends {
        Ends::BrokerAndEtcd(i) => cluster.link_to_etcd(i, link),
        Ends::BrokerAndMember(i, m) => cluster.link_to_etcd_member(i, m, link),
        Ends::BrokerAndStore(i) => cluster.link_to_s3(i, link),
        Ends::BrokerAndClients(i) => cluster.link_to_clients(i, link),
        Ends::Members(a, b) => {
            cluster.etcd().link(a, b, link);
            cluster.etcd().link(b, a, link);
        }
    }
}

fn store_plan(rng: &mut StdRng) -> Value {
    let mixed = json!({"error_rate": 0.1, "slowdown_rate": 0.1, "lost_answer_rate": 0.1, "reset_rate": 0.1,
        "truncate_rate": 0.1, "flip_rate": 0.05, "latency_jitter_ms": 100});
    let plans = [
        mixed.clone(),
        mixed,
        json!({"lost_answer_rate": 0.5}),
        json!({"slowdown_rate": 1.0}),
        json!({"truncate_rate": 0.4, "flip_rate": 0.4}),
        json!({"missing_rate": 0.3}),
        json!({"latency_ms": 900, "latency_jitter_ms": 2500}),
        json!({"hang": true}),
        json!({"deny": true}),
        json!({"hang": true, "operations": ["put"]}),
        json!({"lost_answer_rate": 1.0, "operations": ["put", "delete"]}),
    ];
    plans[rng.random_range(0..plans.len())].clone()
}

/// Fills etcd until it takes no more.
fn fill(cluster: &mut Cluster) {
    let junk = vec![b'x'; JUNK_BYTES];
    for number in 0..1_000 {
        if cluster
            .etcd()
            .try_put(&format!("{JUNK}{number}"), &junk)
            .is_err_and(|why| why.contains("space exceeded"))
        {
            return;
        }
    }
    panic!("etcd takes everything");
}

/// What an operator does about an etcd without space.
async fn make_room(cluster: &mut Cluster) {
    eventually("etcd has room again", PATIENCE, async || {
        let etcd = cluster.etcd();
        etcd.try_ctl(&["del", "--prefix", JUNK]).ok()?;
        // What is compacted already needs no compaction.
        let compacted = etcd.try_compact();
        if compacted.as_ref().is_err_and(|why| !why.contains("has been compacted")) {
            return None;
        }
        for i in 0..etcd.len() {
            etcd.try_ctl_of(i, &["defrag", "--command-timeout=60s"]).ok()?;
            // A member that had not done its compaction yet has kept its size, and would raise the
            // alarm again.
            if etcd.db_bytes(i).ok()? > QUOTA_BYTES / 2 {
                return None;
            }
        }
        etcd.try_ctl(&["alarm", "disarm"]).ok()?;
        let alarms = etcd.try_ctl(&["alarm", "list"]).ok()?;
        alarms.trim().is_empty().then_some(())
    })
    .await;
}

/// Ends whatever holds, and starts whatever does not run, but for the guest. All brokers are of the
/// build that is tested then.
pub(crate) async fn heal(cluster: &mut Cluster) {
    for i in 0..RESIDENTS {
        if cluster.has_other_program(i) {
            kill_broker(cluster, i);
            cluster.set_program(i, None);
            cluster.restart(i);
        }
    }
    cluster.restart_etcd().await;
    cluster.s3().heal().await;
    for i in 0..cluster.len() {
        cluster.link_to_etcd(i, Link::Up);
        cluster.link_to_s3(i, Link::Up);
        cluster.link_to_clients(i, Link::Up);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_kind_of_fault_comes_up_and_a_seed_repeats_it() {
        let list = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..30_000).map(|_| Fault::any(&mut rng, true)).collect::<Vec<_>>()
        };
        let faults = list(3);
        assert_eq!(faults, list(3));
        let kinds: BTreeSet<String> = faults
            .iter()
            .map(|f| format!("{f:?}").split(['(', ' ']).next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(kinds.len(), 20, "{kinds:?}");
        let mut rng = StdRng::seed_from_u64(3);
        let alone = (0..30_000).map(|_| Fault::any(&mut rng, false));
        assert!(alone.filter(|fault| matches!(fault, Fault::OtherBuild(_))).count() == 0);
        let links: BTreeSet<String> = faults
            .iter()
            .filter_map(
                |f| if let Fault::Cut(ends, cut) = f { Some(format!("{ends:?} {cut:?}")) } else { None },
            )
            .collect();
        // Four brokers with etcd, each of its members, S3 and clients, and three pairs of members
        // in two orders.
        assert_eq!(links.len(), (4 * (1 + 3 + 1 + 1) + 6) * 5);
    }

    #[test]
    fn faults_that_hurt_the_same_do_not_go_together() {
        let together = |a: &Fault, b: &Fault| !a.claims().iter().any(|claim| b.claims().contains(claim));
        assert!(!together(&Fault::KillBroker(1), &Fault::PauseBroker(1)));
        assert!(together(&Fault::KillBroker(1), &Fault::PauseBroker(2)));
        assert!(!together(&Fault::KillEverything, &Fault::Store(json!({"deny": true}))));
        assert!(!together(&Fault::FillEtcd, &Fault::Cut(Ends::Members(2, 0), Cut::Flapping)));
        assert!(!together(&Fault::TakeNodeId(0), &Fault::NewNode));
        assert!(together(&Fault::Hostile(0, "garbage"), &Fault::KillBroker(0)));
        assert!(!together(&Fault::Hostile(0, "garbage"), &Fault::OtherBuild(0)));
    }
}
