//! Which ranges are merged next: pure, from the state.
//!
//! | level | written by | becomes due |
//! |---|---|---|
//! | 0 | a flush | when it is older than `merge_interval_ms` |
//! | 1 | a merge of many partitions | when a partition has enough of them for an object, or for long |
//! | 2 | a merge of level 1, or of a flush's ranges that are large already | never |
//!
//! So a byte is rewritten at most twice, and what a partition keeps in the state is the flushes of
//! an interval, at most `LEVEL_1_RANGES` ranges of level 1, and one for each object's worth
//! above.

use std::collections::{BTreeMap, VecDeque};

use strandline_metadata::record::MergedPartition;
use strandline_metadata::state::{InputsHash, Marker, Partition, Range, State};
use strandline_storage::format::merged::MergedRange;
use tokio::time::Instant;
use uuid::Uuid;

use crate::limits::{
    LEVEL_1_LOOK, LEVEL_1_LOOKS, LEVEL_1_RANGES, MERGE_INPUTS, MERGED_PARTITIONS_PER_OBJECT,
};

/// Where partitions ended when they were looked at before: what lies below is at least as old.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// In the pass before.
    last: Ends,
    /// At the looks before that count for level 1, the oldest first.
    before: VecDeque<(Instant, Ends)>,
}

impl Looks {
    /// Notes where partitions end now, for the passes to come.
    pub fn note(&mut self, now: Instant, state: &State) {
        self.last = Ends::of(state);
        let last = self.before.back().map(|(at, _)| *at);
        if last.is_none_or(|last| now.saturating_duration_since(last) >= LEVEL_1_LOOK) {
            self.before.push_back((now, self.last.clone()));
            if self.before.len() > LEVEL_1_LOOKS + 1 {
                self.before.pop_front();
            }
        }
    }

    /// What decides about ranges now.
    pub fn rules<'a>(
        &'a self,
        object_bytes: u64,
        unreadable: &'a BTreeMap<(Uuid, u32, i64), Instant>,
    ) -> Rules<'a> {
        let merged_before = self.before.front().filter(|_| self.before.len() > LEVEL_1_LOOKS);
        let merged_before = merged_before.map(|(_, ends)| ends);
        Rules { object_bytes, flushed_before: &self.last, merged_before, unreadable }
    }
}

/// Where every partition ended at some time. What lies below is older than that.
#[derive(Clone, Debug, Default)]
pub struct Ends(BTreeMap<Uuid, Vec<i64>>);

impl Ends {
    /// Where partitions end now.
    pub(super) fn of(state: &State) -> Self {
        let ends = |(id, topic): (&Uuid, &strandline_metadata::state::Topic)| {
            (*id, topic.partitions().iter().map(|partition| partition.end()).collect())
        };
        Self(state.topics().iter().map(ends).collect())
    }

    pub(super) fn of_partition(&self, topic_id: Uuid, partition: u32) -> i64 {
        let ends = self.0.get(&topic_id);
        ends.and_then(|ends| ends.get(partition as usize)).copied().unwrap_or(0)
    }
}

/// What decides about ranges besides themselves.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Most bytes of an object, and so of a range.
    pub(super) object_bytes: u64,
    /// What lies below these ends is old enough for level 1.
    pub(super) flushed_before: &'a Ends,
    /// What lies below these ends has been in level 1 for long; `None` for nothing.
    pub(super) merged_before: Option<&'a Ends>,
    /// Ranges that cannot be read, by partition and first offset: they stay as they are.
    pub(super) unreadable: &'a BTreeMap<(Uuid, u32, i64), Instant>,
}

/// Ranges of a partition that one takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The topic.
    pub topic_id: Uuid,
    /// The partition's number.
    pub partition: u32,
    /// In offset order, each beginning where the one before ends, or behind markers.
    pub inputs: Vec<Range>,
    /// The ends of transactions between them, by offset.
    pub markers: Vec<(i64, Marker)>,
    /// The level of what becomes of them.
    pub level: u8,
    /// Whether some of their records that are kept have no timestamp.
    pub is_untimed: bool,
}

/// What a merged range is in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it begins, in bytes.
    pub position: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its batches.
    pub batches: u32,
    /// Its largest timestamp, ms since 1970.
    pub max_timestamp_ms: i64,
    /// Whether superseded records were left out.
    pub compacted: bool,
}

impl From<&MergedRange> for Output {
    fn from(range: &MergedRange) -> Self {
        Self {
            position: range.position,
            bytes: range.length,
            batches: range.batches,
            max_timestamp_ms: range.max_timestamp,
            compacted: range.flags.compacted,
        }
    }
}

impl Piece {
    /// What a record says of it, whose times are relative to `time_ms`.
    pub fn entry(&self, output: &Output, time_ms: i64) -> MergedPartition {
        let (base_offset, end_offset) = self.offsets();
        MergedPartition {
            partition: self.partition,
            base_offset: base_offset.cast_unsigned(),
            offsets: (end_offset - base_offset).cast_unsigned(),
            inputs: u32::try_from(self.inputs.len()).unwrap_or(u32::MAX),
            inputs_hash: InputsHash::of(&self.inputs).value(),
            position: output.position,
            bytes: output.bytes,
            batches: output.batches,
            max_timestamp_delta_ms: self.max_timestamp_ms(output).wrapping_sub(time_ms),
            level: u32::from(self.level),
            compacted: output.compacted,
        }
    }

    /// What the log says of its inputs, if all their records are in it, or some have no timestamp:
    /// those count as written when they came, which is nowhere else.
    fn max_timestamp_ms(&self, output: &Output) -> i64 {
        let inputs = self.inputs.iter().map(|range| range.max_timestamp_ms).max();
        let is_of_output = output.compacted && output.max_timestamp_ms >= 0 && !self.is_untimed;
        inputs.filter(|_| !is_of_output).unwrap_or(output.max_timestamp_ms)
    }

    /// The bytes of what it takes the place of.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|range| range.bytes).sum()
    }

    /// First and end offset.
    pub fn offsets(&self) -> (i64, i64) {
        let base = self.inputs.first().map_or(0, |range| range.base_offset);
        (base, self.inputs.last().map_or(base, |range| range.end_offset))
    }
}

/// What is due in a partition, the oldest first. `max_span_ms` is the longest time that the records
/// of a range may lie apart; what lies below `held_below` is being compacted.
pub fn pieces(
    state: &State,
    (topic_id, number, partition): (Uuid, u32, &Partition),
    rules: &Rules<'_>,
    (max_span_ms, held_below): (i64, i64),
) -> Vec<Piece> {
    let (old, long) = (
        rules.flushed_before.of_partition(topic_id, number),
        rules.merged_before.map_or(0, |ends| ends.of_partition(topic_id, number)),
    );
    let mut pieces = Vec::new();
    let is_left_alone = |range: &Range| {
        range.base_offset < held_below
            || rules.unreadable.contains_key(&(topic_id, number, range.base_offset))
    };
    for run in runs(partition, is_left_alone) {
        let Some(level) = run.first().map(|first| first.level) else { continue };
        let due_before = if level == 0 { old } else { long };
        let cuts = cut(&run, rules.object_bytes, max_span_ms);
        let count = cuts.len();
        for (place, inputs) in cuts.into_iter().enumerate() {
            let bytes: u64 = inputs.iter().map(|range| range.bytes).sum();
            let is_full = place + 1 < count || bytes >= rules.object_bytes / 4 * 3;
            let is_old = inputs.first().is_some_and(|first| first.base_offset < due_before);
            let is_many = level > 0 && inputs.len() >= LEVEL_1_RANGES;
            // One alone is worth it for the sake of the object that it keeps alive.
            let is_worth_it = match inputs {
                [alone] => is_old && keeps_much_alive(state, alone),
                _ => true,
            };
            if is_worth_it && (is_full || is_old || is_many) {
                let is_large = bytes >= rules.object_bytes / 2;
                let level = if level > 0 || is_large { 2 } else { 1 };
                let markers = markers_between(partition, inputs);
                let (partition, inputs) = (number, inputs.to_vec());
                pieces.push(Piece { topic_id, partition, inputs, markers, level, is_untimed: false });
            }
        }
    }
    pieces
}

/// The ends of transactions between neighbouring ranges of a partition.
pub(super) fn markers_between(partition: &Partition, ranges: &[Range]) -> Vec<(i64, Marker)> {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Vec::new() };
    let between = partition.markers().range(first.base_offset..last.end_offset);
    between.map(|(offset, marker)| (*offset, *marker)).collect()
}

/// Whether an object has at least as many other bytes as a range in it, which would go with it.
fn keeps_much_alive(state: &State, range: &Range) -> bool {
    state.objects().get(&range.object).is_some_and(|object| object.bytes / 2 >= range.bytes)
}

/// The ranges of levels 0 and 1 that are not to be left alone, were never compacted and lie below
/// the last stable offset, in runs of neighbours of the same level, the oldest first.
fn runs(partition: &Partition, is_left_alone: impl Fn(&Range) -> bool) -> Vec<Vec<Range>> {
    let [flushed, merged, _] = partition.ranges().levels();
    let mut left = flushed.ranges + merged.ranges;
    let last_stable = partition.last_stable();
    let mut runs: Vec<Vec<Range>> = Vec::new();
    let mut last = None;
    for range in partition.ranges().newest_first() {
        if left == 0 {
            break;
        }
        if range.level > 1 {
            last = None;
            continue;
        }
        left -= 1;
        if range.compacted || range.end_offset > last_stable || is_left_alone(range) {
            last = None;
            continue;
        }
        match runs.last_mut() {
            Some(run) if last == Some(range.level) => run.push(*range),
            _ => runs.push(vec![*range]),
        }
        last = Some(range.level);
    }
    for run in &mut runs {
        run.reverse();
    }
    runs.reverse();
    runs
}

/// Cuts a run so that no piece is larger than an object, has more inputs than are looked at in one
/// go, or spans more time than it may: from when its first records expire until its last ones do.
/// None expires before those in front of it, since retention goes by offsets: timestamps that go
/// back and forth cut nothing.
pub(super) fn cut(run: &[Range], object_bytes: u64, max_span_ms: i64) -> Vec<&[Range]> {
    let mut cuts = Vec::new();
    let mut rest = run;
    let mut newest_ms = i64::MIN;
    while let Some(first) = rest.first() {
        newest_ms = newest_ms.max(first.max_timestamp_ms);
        let (mut bytes, first_ms) = (0, newest_ms);
        let mut length = 0;
        for range in rest.iter().take(MERGE_INPUTS) {
            bytes += range.bytes;
            let last_ms = newest_ms.max(range.max_timestamp_ms);
            let is_too_much = bytes > object_bytes || last_ms.saturating_sub(first_ms) > max_span_ms;
            if is_too_much && length > 0 {
                break;
            }
            newest_ms = last_ms;
            length += 1;
        }
        let (piece, after) = rest.split_at(length);
        cuts.push(piece);
        rest = after;
    }
    cuts
}

/// Objects whose inputs are read together, so that what lies side by side comes with one GET.
#[derive(Clone, Debug)]
pub struct Load {
    /// The level of all of it.
    pub level: u8,
    /// What goes into each object: pieces of different partitions.
    pub objects: Vec<Vec<Piece>>,
}

/// Puts pieces together that go into objects of at most `object_bytes`, and these into loads of at
/// most `load_bytes`, the lowest level first. Partitions that lie side by side in the inputs do so
/// in the output.
pub fn loads(pieces: Vec<Piece>, object_bytes: u64, load_bytes: u64) -> Vec<Load> {
    let mut loads: Vec<Load> = Vec::new();
    let mut loaded = 0;
    for object in objects(pieces, object_bytes) {
        let Some(level) = object.first().map(|piece| piece.level) else { continue };
        let bytes: u64 = object.iter().map(Piece::bytes).sum();
        let open = loads.last_mut().filter(|load| load.level == level && loaded + bytes <= load_bytes);
        if let Some(load) = open {
            loaded += bytes;
            load.objects.push(object);
        } else {
            loaded = bytes;
            loads.push(Load { level, objects: vec![object] });
        }
    }
    loads
}

/// Puts pieces together that go into one object: the first of every partition, then the second, and
/// so on, since what was written at the same time lies side by side.
pub(super) fn objects(pieces: Vec<Piece>, object_bytes: u64) -> Vec<Vec<Piece>> {
    let mut ranks: BTreeMap<(u8, Uuid, u32), usize> = BTreeMap::new();
    let ranked = |piece: Piece| {
        let rank = ranks.entry((piece.level, piece.topic_id, piece.partition)).or_default();
        *rank += 1;
        (*rank, piece)
    };
    let mut pieces: Vec<(usize, Piece)> = pieces.into_iter().map(ranked).collect();
    pieces.sort_by_key(|(rank, piece)| (piece.level, *rank, piece.topic_id, piece.partition));
    let mut objects: Vec<Vec<Piece>> = Vec::new();
    let mut bytes = 0;
    for (_, piece) in pieces {
        let fits = |object: &Vec<Piece>| {
            let is_behind = object.last().is_some_and(|last| {
                last.level == piece.level
                    && (last.topic_id, last.partition) < (piece.topic_id, piece.partition)
            });
            is_behind && object.len() < MERGED_PARTITIONS_PER_OBJECT && bytes + piece.bytes() <= object_bytes
        };
        if let Some(object) = objects.last_mut().filter(|object| fits(object)) {
            bytes += piece.bytes();
            object.push(piece);
        } else {
            bytes = piece.bytes();
            objects.push(vec![piece]);
        }
    }
    objects
}
