//! The table, and whether every bound was kept.

use std::process::ExitCode;
use std::time::Duration;

use strandline_tests::cluster::Cluster;

use crate::bounds;
use crate::neighbour::Waits;
use crate::watch::Watch;

const MIB: u64 = 1 << 20;
/// A p99 below this is no slowdown, whatever it is a multiple of: it is what a PUT to S3 takes, and
/// here broker, etcd, S3 server, clients and attackers share two processors.
const UNNOTICED: Duration = Duration::from_millis(100);
/// `/healthz` answers within this.
const HEALTH: Duration = Duration::from_secs(2);
/// Descriptors that may come and go by themselves.
const DESCRIPTORS: usize = 20;

/// What one phase has shown.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) during: Waits,
    pub(crate) after: Waits,
    pub(crate) most_resident: u64,
    /// What resident memory may be with the state that there is now.
    pub(crate) allowed_resident: u64,
    pub(crate) health: Duration,
    /// Open descriptors at the last hostile byte, and when the time to recover was over.
    pub(crate) descriptors: (usize, usize),
}

/// What was measured alone, and what was wrong since then.
#[derive(Debug)]
pub(crate) struct Report {
    alone: Waits,
    descriptors: Option<usize>,
    broken: Vec<String>,
}

impl Report {
    pub(crate) fn new(alone: Waits, resident: u64, allowed: u64) -> Self {
        println!(
            "alone: produce p99 {} ms, delivered p99 {} ms, {} records; {} MiB resident, {} MiB allowed",
            alone.produce.as_millis(),
            alone.deliver.as_millis(),
            alone.records,
            resident / MIB,
            allowed / MIB
        );
        println!(
            "{:<28}{:>12}{:>12}{:>9}{:>10}{:>10}{:>10}{:>12}{:>12}{:>12}",
            "kind",
            "produce",
            "deliver",
            "records",
            "resident",
            "allowed",
            "healthz",
            "after",
            "descriptors",
            "verdict"
        );
        Self { alone, descriptors: None, broken: Vec::new() }
    }

    /// Adds a phase; whether the broker is still there.
    pub(crate) fn add(&mut self, kind: &str, line: &Line, is_running: bool) -> bool {
        let mut broken = Vec::new();
        let mut bound = |what: &str, is_kept: bool| {
            if !is_kept {
                broken.push(what.to_owned());
            }
        };
        let limit = |alone: Duration| alone.mul_f64(bounds::SLOWDOWN).max(UNNOTICED);
        bound("the broker is gone", is_running);
        bound("produce is slow", line.during.produce <= limit(self.alone.produce));
        bound("delivery is slow", line.during.deliver <= limit(self.alone.deliver));
        bound("too much memory", line.most_resident <= line.allowed_resident);
        bound("/healthz is slow", line.health <= HEALTH);
        bound("produce stays slow", line.after.produce <= limit(self.alone.produce));
        bound("delivery stays slow", line.after.deliver <= limit(self.alone.deliver));
        let most = *self.descriptors.get_or_insert(line.descriptors.1) + DESCRIPTORS;
        bound("descriptors stay", line.descriptors.1 <= most);
        let ms = |time: Duration| format!("{} ms", time.as_millis());
        println!(
            "{:<28}{:>12}{:>12}{:>9}{:>10}{:>10}{:>10}{:>12}{:>12}   {}",
            kind,
            ms(line.during.produce),
            ms(line.during.deliver),
            line.during.records,
            format!("{} MiB", line.most_resident / MIB),
            format!("{} MiB", line.allowed_resident / MIB),
            ms(line.health),
            ms(line.after.produce.max(line.after.deliver)),
            format!("{}→{}", line.descriptors.0, line.descriptors.1),
            if broken.is_empty() { "kept".to_owned() } else { broken.join(", ") }
        );
        self.broken.extend(broken.into_iter().map(|what| format!("{kind}: {what}")));
        is_running
    }

    /// Looks whether a registration was lost.
    pub(crate) fn registrations(&mut self, watch: &Watch, cluster: &mut Cluster) {
        if !watch.is_registered_as_before(cluster) {
            self.broken.push("a registration was lost".to_owned());
        }
    }

    /// Says what came of it.
    pub(crate) fn finish(mut self, wrong: Vec<String>) -> ExitCode {
        self.broken.extend(wrong);
        if self.broken.is_empty() {
            println!("KEPT: every bound");
            return ExitCode::SUCCESS;
        }
        println!("BROKEN: {}", self.broken.join("; "));
        ExitCode::FAILURE
    }
}
