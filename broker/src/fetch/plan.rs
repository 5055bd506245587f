//! What a partition has for a fetch: pure, from the state alone.

use kafka_protocol::error::ResponseError;
use strandline_metadata::state::{AbortedTransaction, Marker, Partition, Range, State};
use strandline_storage::format::batch::CONTROL_BATCH_BYTES;
use strandline_storage::path::ObjectKind;
use strandline_storage::reader::{BlockKey, ReadPart, Stretch, block_at};
use uuid::Uuid;

use super::PartitionRead;
use crate::limits::{
    ABORTED_PER_FETCH, ABORTED_PER_PARTITION, NARROWED_RANGE_BYTES, PLANNED_MARKERS, PLANNED_RANGES,
    PLANNED_RANGES_PER_PARTITION, TAIL_RANGES,
};

/// A range to read, and the length of the object that it lies in.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedRange {
    pub(super) range: Range,
    /// What the partition has in the object around it.
    pub(super) stretch: Stretch,
    pub(super) object_bytes: u64,
    /// Whether it is near the end of the partition.
    pub(super) tail: bool,
    /// Whether it is the part of a merged range behind which there is more.
    pub(super) is_part: bool,
}

impl PlannedRange {
    /// Its bytes.
    pub(super) fn part(&self) -> ReadPart {
        let Range { object, position, bytes, .. } = self.range;
        let range = position..position + bytes;
        ReadPart { object, object_bytes: self.object_bytes, stretch: Some(self.stretch), range }
    }

    /// What is read of it ahead: of a large one its beginning.
    pub(super) fn beginning(self) -> Self {
        let bytes = self.range.bytes.min(NARROWED_RANGE_BYTES);
        Self { range: Range { bytes, ..self.range }, ..self }
    }

    /// The block in which a byte of the object is fetched that the partition has there.
    pub(super) fn block_at(&self, position: u64) -> BlockKey {
        block_at(self.range.object, self.object_bytes, Some(self.stretch), position).0
    }

    /// The block in which it begins.
    pub(super) fn block(&self) -> BlockKey {
        self.block_at(self.range.position)
    }
}

/// What a partition has.
#[derive(Clone, Debug)]
pub(super) struct Assessment {
    pub(super) topic_id: Uuid,
    pub(super) partition: u32,
    pub(super) error: Option<ResponseError>,
    pub(super) high_watermark: i64,
    pub(super) last_stable: i64,
    pub(super) log_start: i64,
    pub(super) planned: Vec<PlannedRange>,
    /// The ends of transactions before, between and behind what is planned, by offset.
    pub(super) markers: Vec<(i64, Marker)>,
    /// Nothing from here on is returned.
    pub(super) below: i64,
    /// The aborted transactions in there; `None` if they are not wanted.
    pub(super) aborted: Option<Vec<AbortedTransaction>>,
    /// What a consumer that goes on will want next, if that lies in another object.
    pub(super) next: Option<PlannedRange>,
    available: usize,
    lag_may_explain: bool,
}

impl Assessment {
    fn failed(topic_id: Uuid, error: ResponseError, lag_may_explain: bool) -> Self {
        Self {
            topic_id,
            partition: 0,
            error: Some(error),
            high_watermark: -1,
            last_stable: -1,
            log_start: -1,
            planned: Vec::new(),
            markers: Vec::new(),
            below: -1,
            aborted: None,
            next: None,
            available: 0,
            lag_may_explain,
        }
    }

    /// What is planned of a partition, as if that were all that it has.
    #[cfg(test)]
    pub(super) fn planned(planned: Vec<PlannedRange>) -> Self {
        let failed = Self::failed(Uuid::nil(), ResponseError::UnknownServerError, false);
        Self { error: None, below: i64::MAX, planned, ..failed }
    }

    /// About how many bytes could be returned, at most what was asked for.
    pub(super) fn available(&self) -> usize {
        self.available
    }

    /// Whether something of a merged object is planned, whose index may say where less is to be
    /// read.
    pub(super) fn has_merged(&self) -> bool {
        self.planned.iter().any(|planned| planned.range.object.kind == ObjectKind::Merge)
    }

    /// Finds the ends of transactions and the aborted ones in what is planned from `offset` on, and
    /// plans no more than goes with so many of them as may be named.
    fn cut(&mut self, partition: &Partition, offset: i64, budget: &mut PlanBudget) {
        let end = self.planned.last().map_or(offset, |last| last.range.end_offset);
        self.below = self.below.min(partition.unmarked_from(end));
        let mut markers = partition.markers().range(offset..self.below).map(|(at, marker)| (*at, *marker));
        self.markers = markers.by_ref().take(PLANNED_MARKERS).collect();
        if let Some((beyond, _)) = markers.next() {
            self.below = beyond;
        }
        if let Some(aborted) = &mut self.aborted {
            let most = budget.aborted.min(ABORTED_PER_PARTITION);
            (*aborted, self.below) = partition.aborted_between(offset, self.below, most);
            budget.aborted -= aborted.len().min(budget.aborted);
        }
        let below = self.below;
        self.markers.retain(|(at, _)| *at < below);
        self.planned.retain(|planned| planned.range.base_offset < below);
    }

    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }

    /// Whether a broker that is ahead might have answered otherwise.
    pub(super) fn lag_may_explain(&self) -> bool {
        self.lag_may_explain
    }

    /// The same where it could not be found out whether lag explains it: an error that a client
    /// retries instead of one that makes it start over.
    pub(super) fn soften(mut self) -> Self {
        if self.lag_may_explain && self.error == Some(ResponseError::OffsetOutOfRange) {
            self.error = Some(ResponseError::NotLeaderOrFollower);
        }
        self
    }
}

/// What a fetch may still plan to read. What lies beyond is not looked at: the answer is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlanBudget {
    bytes: usize,
    ranges: usize,
    /// Aborted transactions that may be named.
    aborted: usize,
}

impl PlanBudget {
    /// For an answer of up to `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        // The first batch comes whatever was asked for.
        Self { bytes: bytes.max(1), ranges: PLANNED_RANGES, aborted: ABORTED_PER_FETCH }
    }

    /// Whether nothing more fits.
    pub(super) fn is_spent(&self) -> bool {
        self.bytes == 0 || self.ranges == 0 || self.aborted == 0
    }
}

/// Looks at one partition, and plans what fits into the budget.
pub(super) fn assess(state: &State, wanted: &PartitionRead, budget: &mut PlanBudget) -> Assessment {
    let topic_id = match wanted.topic {
        Ok(id) => id,
        Err(error) => return Assessment::failed(Uuid::nil(), error, true),
    };
    let number = u32::try_from(wanted.partition).ok();
    let found = number.and_then(|number| Some((number, state.partition(topic_id, number)?)));
    let Some((number, partition)) = found else {
        return Assessment::failed(topic_id, ResponseError::UnknownTopicOrPartition, true);
    };
    // The epoch of every partition is 0 for ever: there are no leaders to elect.
    if wanted.leader_epoch > 0 {
        return Assessment::failed(topic_id, ResponseError::UnknownLeaderEpoch, false);
    }
    let (log_start, end) = (partition.log_start(), partition.end());
    let mut assessment = Assessment {
        topic_id,
        partition: number,
        error: None,
        high_watermark: end,
        last_stable: partition.last_stable(),
        log_start,
        planned: Vec::new(),
        markers: Vec::new(),
        below: if wanted.is_committed { partition.last_stable() } else { end },
        aborted: wanted.is_committed.then(Vec::new),
        next: None,
        available: 0,
        lag_may_explain: false,
    };
    if wanted.offset < log_start || wanted.offset > end {
        assessment.error = Some(ResponseError::OffsetOutOfRange);
        assessment.lag_may_explain = wanted.offset > end;
        return assessment;
    }
    if budget.is_spent() || wanted.offset >= assessment.below {
        return assessment;
    }
    let ranges = partition.ranges();
    let newest = ranges.newest_first().take(TAIL_RANGES).take_while(|r| r.level < 2);
    let tail_offset = newest.last().map_or(end, |r| r.base_offset);
    let plan = |range: &Range| PlannedRange {
        range: *range,
        stretch: range.stretch(),
        object_bytes: state.objects().get(&range.object).map_or(0, |o| o.bytes),
        tail: range.base_offset >= tail_offset,
        is_part: false,
    };
    let (max_bytes, max_ranges) =
        (wanted.max_bytes.min(budget.bytes), budget.ranges.min(PLANNED_RANGES_PER_PARTITION));
    let planned = partition.plan(wanted.offset, max_bytes as u64, max_ranges);
    assessment.planned = planned.iter().map(plan).collect();
    assessment.cut(partition, wanted.offset, budget);
    if let Some(last) = assessment.planned.last().map(|p| p.range) {
        let after = partition.plan(last.end_offset, 1, 1).first().map(plan);
        assessment.next = after.filter(|p| p.range.object != last.object).map(PlannedRange::beginning);
    }
    let planned_bytes: u64 = assessment.planned.iter().map(|p| p.range.bytes).sum();
    let bytes = usize::try_from(planned_bytes).unwrap_or(usize::MAX);
    let bytes = bytes.saturating_add(assessment.markers.len() * CONTROL_BATCH_BYTES);
    assessment.available = bytes.min(wanted.max_bytes.max(1));
    if assessment.planned.is_empty() && assessment.markers.is_empty() {
        assessment.available = 0;
    }
    budget.bytes = budget.bytes.saturating_sub(assessment.available);
    budget.ranges -= assessment.planned.len();
    assessment
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::Compression;

    use super::*;
    use crate::records::tests::batch;
    use crate::testing::{TestClient, World};

    #[tokio::test]
    async fn no_more_is_planned_than_the_answer_has_room_for() {
        let opened = World::new().broker(1, &["--put-budget-per-s", "1000"]).await;
        let mut client = TestClient::connect(&opened.broker);
        let topic = Ok(client.create_topic("t", 2, &[]).await);
        let one = batch(Compression::None, 0, 1);
        for _ in 0..5 {
            client.produce("t", [one.clone(), one.clone()]).await;
        }
        let state = opened.broker.replica.state();
        let wanted = |partition| PartitionRead {
            topic,
            partition,
            offset: 0,
            max_bytes: usize::MAX >> 1,
            leader_epoch: -1,
            is_committed: false,
        };
        for (bytes, ranges, planned) in [
            (usize::MAX >> 1, usize::MAX, [5, 5]),
            (one.len() * 3, usize::MAX, [3, 0]),
            (one.len() * 6, usize::MAX, [5, 1]),
            (usize::MAX >> 1, 7, [5, 2]),
            (usize::MAX >> 1, 2, [2, 0]),
            // The first batch comes whatever there is room for.
            (0, usize::MAX, [1, 0]),
        ] {
            let mut budget = PlanBudget::new(bytes);
            budget.ranges = ranges;
            let assessed = [0, 1].map(|partition| assess(&state, &wanted(partition), &mut budget));
            assert_eq!(
                assessed.each_ref().map(|a| a.planned.len()),
                planned,
                "{bytes} bytes, {ranges} ranges"
            );
            assert!(assessed.iter().all(|a| a.error.is_none() && a.high_watermark == 5));
            assert!(assessed.iter().all(|a| (a.available() == 0) == a.planned.is_empty()));
        }
    }
}
