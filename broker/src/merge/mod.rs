//! Merging: small ranges of the log are rewritten into few large ones, so that state, bucket and
//! reads grow with what is stored and not with the number of flushes.
//!
//! Every broker merges the partitions that clients are led to it for: most of their newest bytes
//! are in its cache. Two that both believe to be it do no harm, since the record names its exact
//! inputs and one of them is refused. A merge may be given up at every step: what it leaves behind
//! is an object that nothing refers to.
//!
//! ```text
//! plan (pure) ─▶ for each load: read ─▶ for each object: check, build ─▶ storage: PUT ─▶ metadata: commit `Merged`
//! ```

mod answers;
mod compact;
mod pace;
pub mod plan;
mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_metadata::limits::LEVELS;
use strandline_metadata::state::{LevelTotals, MERGING, Range, State};
use strandline_metadata::turns::Turns;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, warn};
use uuid::Uuid;

use self::answers::Answers;
pub(crate) use self::compact::Tally;
pub use self::compact::rewritten;
use self::pace::{Pace, Paced};
use self::plan::{Load, Looks, Piece};
use self::rewrite::{Read, Unreadable};
use crate::Broker;
use crate::leaders::Leaders;
use crate::limits::{LEAST_SPAN_MS, MERGE_SPAN_PART, UNREADABLE_RANGES, UNREADABLE_REST};
use crate::topic_config::Effective;

/// Merges and compacts whatever is due, again and again, until it is dropped.
pub(crate) async fn run(broker: Arc<Broker>, seed: u64) {
    let shared = Shared::new(&broker, seed);
    let merge = async {
        let mut merger = Merger::default();
        let mut next = Instant::now() + broker.config.merge.interval;
        loop {
            sleep_until(next).await;
            next = Instant::now() + broker.config.merge.interval;
            merger.pass(&broker, &shared, next).await;
        }
    };
    futures::join!(merge, compact::run(&broker, &shared));
}

/// What merging and compaction share.
#[derive(Debug)]
struct Shared {
    /// Whoever reads and rewrites holds it, so that only one does, with one budget.
    rewriting: tokio::sync::Mutex<Pace>,
    /// The partition that is being compacted, and up to which offset: what lies below is not merged
    /// meanwhile.
    compacted: Mutex<Option<(Uuid, u32, i64)>>,
    objects: Mutex<(u64, StdRng)>,
}

/// Gives a partition back when it is dropped.
#[derive(Debug)]
struct Held<'a>(&'a Shared);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.compacted.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Shared {
    fn new(broker: &Broker, seed: u64) -> Self {
        Self {
            rewriting: tokio::sync::Mutex::new(Pace::new(&broker.config.merge)),
            compacted: Mutex::new(None),
            objects: Mutex::new((0, StdRng::seed_from_u64(seed))),
        }
    }

    /// The number and the salt of the next object, which this process gives to no other one.
    fn next_object(&self) -> (u64, u32) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.0 += 1;
        (objects.0, objects.1.random())
    }

    /// Numbers that nobody can foretell.
    fn secrets(&self) -> [u128; 2] {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        [objects.1.random(), objects.1.random()]
    }

    /// Keeps merges away from a partition below an offset. Waits for the one that is under way, so
    /// that what the state says of the partition afterwards stays so.
    async fn hold(&self, topic_id: Uuid, partition: u32, end_offset: i64) -> Held<'_> {
        let _pace = self.rewriting.lock().await;
        *self.compacted.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((topic_id, partition, end_offset));
        Held(self)
    }

    /// Below which offset a partition is kept away from.
    fn held_below(&self, topic_id: Uuid, partition: u32) -> i64 {
        let compacted = *self.compacted.lock().unwrap_or_else(PoisonError::into_inner);
        compacted.filter(|held| (held.0, held.1) == (topic_id, partition)).map_or(0, |held| held.2)
    }
}

/// What a broker remembers between passes.
#[derive(Debug, Default)]
struct Merger {
    looks: Looks,
    /// Ranges that cannot be read, by partition and first offset, and until when they are left
    /// alone.
    unreadable: BTreeMap<(Uuid, u32, i64), Instant>,
}

/// What all partitions have, and what is due.
#[derive(Debug, Default)]
struct Survey {
    pieces: Vec<Piece>,
    /// What lies in each level, over all partitions.
    levels: [LevelTotals; LEVELS],
}

impl Merger {
    /// Looks at all partitions, and merges what is due in this broker's, until about then.
    async fn pass(&mut self, broker: &Broker, shared: &Shared, until: Instant) {
        let state = broker.replica.state();
        if state.feature_level() < MERGING || broker.sessions.current().is_none() {
            return;
        }
        let survey = self.survey(broker, shared, &state).await;
        self.looks.note(Instant::now(), &state);
        broker.metrics.merging().surveyed(&survey.levels, survey.pieces.iter().map(Piece::bytes).sum());
        let merge = &broker.config.merge;
        let (mut is_time_up, mut answers) = (false, Answers::default());
        for load in plan::loads(survey.pieces, merge.object_bytes(), merge.load_bytes()) {
            // What is in the smallest ranges comes first, and again before too much of the rest: of
            // that at least one load has its turn.
            let is_rest = load.level > 1;
            if is_rest && is_time_up {
                break;
            }
            if self.rewrite(broker, shared, &state, load, &mut answers).await.is_break() {
                return;
            }
            is_time_up = is_rest && Instant::now() >= until;
        }
        for (piece, error) in answers.finish() {
            self.leave_alone(broker, &piece, &error);
        }
    }

    /// Rewrites a load. Says whether the pass goes on: not if something failed, which was told.
    async fn rewrite(
        &mut self,
        broker: &Broker,
        shared: &Shared,
        state: &State,
        mut load: Load,
        answers: &mut Answers<(Piece, Unreadable)>,
    ) -> ControlFlow<()> {
        let pace = shared.rewriting.lock().await;
        let mut paced = Paced::begin(broker);
        // It may have been held since the survey.
        let is_held = |piece: &Piece| piece.offsets().0 < shared.held_below(piece.topic_id, piece.partition);
        for pieces in &mut load.objects {
            pieces.retain(|piece| !is_held(piece));
        }
        load.objects.retain(|pieces| !pieces.is_empty());
        let inputs = load.objects.iter().flatten().flat_map(|piece| &piece.inputs);
        let mut read = Read::all(broker, state, inputs).await;
        answers.note(read.answers());
        for pieces in load.objects {
            let Some(session) = broker.sessions.current().filter(|_| !broker.is_draining()) else {
                return ControlFlow::Break(());
            };
            let (number, salt) = shared.next_object();
            let bytes: u64 = pieces.iter().map(Piece::bytes).sum();
            match rewrite::rewrite(broker, (session.incarnation, number, salt), &mut read, pieces).await {
                Ok(done) => {
                    for (piece, error) in done.unreadable {
                        self.leave_alone(broker, &piece, &error);
                    }
                    done.unanswered.into_iter().for_each(|unanswered| answers.add_unanswered(unanswered));
                    debug!(bytes, replaced = done.replaced, refused = done.refused, "ranges are merged");
                }
                Err(error) => {
                    broker.metrics.merging().failed();
                    warn!(%error, "a merge was given up; what it was to merge is as it was");
                    return ControlFlow::Break(());
                }
            }
            pace.wait(broker, paced, bytes, 1).await;
            paced = Paced::begin(broker);
        }
        if answers.is_store_silent() {
            broker.metrics.merging().failed();
            warn!("the store does not answer; what was to be merged is as it was");
            return ControlFlow::Break(());
        }
        for (piece, error) in answers.take_unanswered() {
            self.leave_alone(broker, &piece, &error);
        }
        ControlFlow::Continue(())
    }

    /// What is due in the partitions of this broker.
    async fn survey(&mut self, broker: &Broker, shared: &Shared, state: &State) -> Survey {
        let view = broker.replica.view();
        let leaders = Leaders::registered(&view.names);
        let (dynamic, _) = view.names.broker_configs(None);
        let now = Instant::now();
        self.unreadable.retain(|_, until| *until > now);
        let rules = self.looks.rules(broker.config.merge.object_bytes(), &self.unreadable);
        let mut survey = Survey::default();
        let mut turns = Turns::default();
        for (&topic_id, topic) in state.topics() {
            let span = view.names.topic_by_id(topic_id).map_or(i64::MAX, |info| {
                let (topic, broker) = (&info.value.configs, &broker.config.topics.configs);
                max_span_ms(&Effective { topic, dynamic: &dynamic, broker })
            });
            for (number, partition) in (0..).zip(topic.partitions()) {
                let levels = partition.ranges().levels();
                for (sum, level) in survey.levels.iter_mut().zip(levels) {
                    sum.ranges += level.ranges;
                    sum.bytes += level.bytes;
                }
                let small = levels[0].ranges + levels[1].ranges;
                turns.spend(1 + usize::try_from(small).unwrap_or(usize::MAX)).await;
                if small == 0 || leaders.of_partition(topic_id, number) != broker.config.node_id {
                    continue;
                }
                let place = (topic_id, number, partition.as_ref());
                let held_below = shared.held_below(topic_id, number);
                survey.pieces.append(&mut plan::pieces(state, place, &rules, (span, held_below)));
            }
        }
        survey
    }

    /// A range that cannot be read is not tried again for a while; what lies around it is merged.
    fn leave_alone(&mut self, broker: &Broker, piece: &Piece, error: &Unreadable) {
        let Range { base_offset, end_offset, .. } = error.range;
        let (topic_id, partition) = (piece.topic_id, piece.partition);
        error!(
            %topic_id,
            partition,
            base_offset,
            end_offset,
            %error,
            "records cannot be merged; they stay where they are"
        );
        broker.metrics.merging().unreadable();
        // Those beyond are tried in every pass.
        if self.unreadable.len() < UNREADABLE_RANGES {
            self.unreadable.insert((topic_id, partition, base_offset), Instant::now() + UNREADABLE_REST);
        }
    }
}

/// The longest time that records of one range of a topic may lie apart, so that retention by time,
/// `segment.ms` and `max.compaction.lag.ms` keep their meaning: an eighth of retention and lag, and
/// `segment.ms`, but a minute at least.
fn max_span_ms(configs: &Effective<'_>) -> i64 {
    let of_lag = configs.compaction().map_or(i64::MAX, |rules| rules.max_lag_ms / MERGE_SPAN_PART);
    retention_span_ms(configs).min(of_lag).min(configs.segment_ms()).max(LEAST_SPAN_MS)
}

/// The same for what is compacted, for which only retention counts.
fn retention_span_ms(configs: &Effective<'_>) -> i64 {
    configs.retention_ms().map_or(i64::MAX, |ms| (ms / MERGE_SPAN_PART).max(LEAST_SPAN_MS))
}
