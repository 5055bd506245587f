//! What must be true of what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::session::{self, Read};
use super::{Fate, Payments, TIMEOUT};
use crate::client::Client;
use crate::history::History;

/// Time for what is open to be aborted, and for brokers to have heard of it.
const SETTLE: Duration = TIMEOUT.saturating_mul(4);

/// Where somebody is in the output of a partition.
#[derive(Debug, Default)]
pub(super) struct Follower {
    next: i64,
    end: i64,
    last_stable: i64,
    /// The offset in the input of what was read last.
    input: Option<i64>,
}

impl Follower {
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Takes what was read, and notes what is wrong with it.
    pub(super) fn take(&mut self, history: &History, place: &str, read: Read) {
        if let Some(wrong) = read.wrong {
            history.anomaly("unstable read", format!("{place}: {wrong}"));
        }
        // A process that is behind, or whose place was taken, may show what was.
        let goes_back = read.end >= self.end && read.last_stable < self.last_stable;
        if goes_back || read.last_stable > read.end {
            let what =
                format!("{place}: {} after {}, the end is {}", read.last_stable, self.last_stable, read.end);
            history.anomaly("last stable offset", what);
        }
        self.end = read.end;
        self.last_stable = read.last_stable;
        self.next = read.next;
        for (offset, value) in read.records {
            let input = input_of(&value);
            if input.is_none() || input <= self.input {
                let what = format!("{place}: {value:?} at {offset} comes after input {:?}", self.input);
                history.anomaly("transformed twice", what);
            }
            self.input = input;
        }
    }
}

/// The offset of the input that a value of the output was made of.
fn input_of(value: &str) -> Option<i64> {
    value.strip_prefix("o ")?.split_once(' ')?.0.parse().ok()
}

impl Payments {
    /// Checks everything, when nobody writes any more and all is healed: what was acknowledged as
    /// committed is there, what was aborted is not, no transaction is there in part, and each input
    /// that the group has passed was transformed once.
    pub async fn check(&self) {
        let Some(inputs) = self.read_all(&self.input).await else { return };
        let Some(outputs) = self.read_all(&self.output).await else { return };
        self.check_fed(&inputs);
        let mut rng = StdRng::seed_from_u64(1);
        for partition in 0..self.partitions {
            let committed = match session::committed_offset(self, &mut rng, partition).await {
                Ok(committed) => committed,
                Err(error) => {
                    let what = format!("how far the group is in partition {partition}: {error}");
                    self.history.anomaly("never stable", what);
                    continue;
                }
            };
            let (input, output) = (&inputs[&partition], &outputs[&partition]);
            let passed = input.iter().filter(|(offset, _)| *offset < committed);
            let expected: Vec<String> = passed.map(|(offset, value)| format!("o {offset} {value}")).collect();
            let found: Vec<&String> = output.iter().map(|(_, value)| value).collect();
            if !expected.iter().eq(found.iter().copied()) {
                let at = expected.iter().zip(&found).take_while(|(a, b)| a == *b).count();
                let what = format!(
                    "partition {partition}: {} inputs up to {committed} became {} outputs; at {at}: {:?} instead of {:?}",
                    expected.len(),
                    found.len(),
                    found.get(at),
                    expected.get(at)
                );
                self.history.anomaly("not exactly once", what);
            }
        }
    }

    /// What is committed of a topic, by partition, once nothing is open any more.
    async fn read_all(&self, topic: &str) -> Option<BTreeMap<i32, Vec<(i64, String)>>> {
        let mut all = BTreeMap::new();
        for partition in 0..self.partitions {
            let (deadline, mut next, mut found) = (Instant::now() + SETTLE, 0, Vec::new());
            loop {
                let address = &self.addresses[0];
                let read = async {
                    let mut client = Client::connect(address).await?;
                    client.set_timeout(super::PATIENCE);
                    session::read_committed(&mut client, topic, partition, next).await
                };
                let behind = match read.await {
                    Ok(read) => {
                        if let Some(wrong) = read.wrong {
                            self.history.anomaly("unstable read", wrong);
                        }
                        next = read.next;
                        found.extend(read.records);
                        if next >= read.end {
                            break;
                        }
                        read.end - next
                    }
                    Err(error) => {
                        self.history.error(format!("what is committed cannot be read: {error}"));
                        -1
                    }
                };
                if Instant::now() > deadline {
                    let what =
                        format!("{topic}-{partition}: {behind} offsets are not stable long after everything");
                    self.history.anomaly("hanging transaction", what);
                    return None;
                }
                sleep(Duration::from_millis(200)).await;
            }
            all.insert(partition, found);
        }
        Some(all)
    }

    fn check_fed(&self, inputs: &BTreeMap<i32, Vec<(i64, String)>>) {
        let mut seen: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
        for (partition, records) in inputs {
            let values = seen.entry(*partition).or_default();
            values.extend(records.iter().map(|(_, value)| value.as_str()));
            let distinct: BTreeSet<&&str> = values.iter().collect();
            if distinct.len() != values.len() {
                let what = format!(
                    "partition {partition} has {} of {} twice",
                    values.len() - distinct.len(),
                    values.len()
                );
                self.history.anomaly("duplicate", what);
            }
        }
        for ((feeder, number), fed) in &*self.lock() {
            let prefix = format!("f{feeder} {number} ");
            let (mut whole, mut missing) = (0, 0);
            for (partition, values) in &fed.values {
                let found: Vec<&str> =
                    seen[partition].iter().copied().filter(|value| value.starts_with(&prefix)).collect();
                match found.len() {
                    0 => missing += 1,
                    _ if found == *values => whole += 1,
                    _ => {
                        let what = format!("{prefix}partition {partition}: {found:?} instead of {values:?}");
                        self.history.anomaly("torn transaction", what);
                    }
                }
            }
            let wrong = match fed.fate {
                Fate::Committed if missing > 0 => "lost write",
                Fate::Aborted if whole > 0 => "aborted read",
                Fate::Unknown if whole > 0 && missing > 0 => "torn transaction",
                _ => continue,
            };
            let what = format!("{prefix}{:?}: {whole} partitions have it, {missing} do not", fed.fate);
            self.history.anomaly(wrong, what);
        }
    }
}
