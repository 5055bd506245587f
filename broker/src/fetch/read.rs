//! Reading what was planned, and giving each batch its offset.

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt as _;
use kafka_protocol::error::ResponseError;
use strandline_metadata::state::{Range, State};
use strandline_storage::error::StoreError;
use strandline_storage::format::batch::patched_prefix;
use strandline_storage::reader::{ReadBatch, ReadKind};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::plan::{self, Assessment, PlannedRange};
use super::{Fetched, PartitionRead};
use crate::Broker;
use crate::limits::{COPIED_BATCH_BYTES, FETCH_READS_FOR, OBJECT_READS_AT_ONCE};
use crate::tasks::TaskKind;

/// Record batches, ready to be sent, in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) bytes: usize,
    /// Records in them.
    pub(crate) count: u64,
}

/// Collects batches; large ones stay in the buffers that they were read into.
#[derive(Debug, Default)]
struct Collector {
    records: Records,
    scratch: BytesMut,
}

impl Collector {
    fn push(&mut self, batch: &ReadBatch, base_offset: i64) {
        self.records.bytes += batch.len();
        self.records.count += u64::try_from(batch.header.record_count).unwrap_or(0);
        let prefix = patched_prefix(&batch.header, base_offset, 0);
        self.scratch.put_slice(&prefix);
        let mut replaced = prefix.len();
        for piece in batch.pieces() {
            let before = replaced.min(piece.len());
            replaced -= before;
            let kept = piece.slice(before..);
            if kept.len() <= COPIED_BATCH_BYTES {
                self.scratch.put_slice(&kept);
                continue;
            }
            if !self.scratch.is_empty() {
                self.records.pieces.push(self.scratch.split().freeze());
            }
            self.records.pieces.push(kept);
        }
    }

    fn finish(mut self) -> Records {
        if !self.scratch.is_empty() {
            self.records.pieces.push(self.scratch.freeze());
        }
        self.records
    }
}

/// Reads one partition: up to `budget` bytes, but always the first batch; nothing if there is no
/// budget.
pub(super) async fn read(
    broker: &Broker,
    wanted: &PartitionRead,
    assessment: Assessment,
    budget: Option<usize>,
) -> Fetched {
    let mut fetched = without_records(&assessment);
    let Some(budget) = budget else { return fetched };
    if let Some(next) = &assessment.next {
        read_ahead(broker, next);
    }
    match read_planned(broker, wanted.offset, &assessment.planned, budget).await {
        Ok(records) => fetched.records = records,
        Err(StoreError::NotFound { key }) => {
            // The object may have been collected since the plan was made. Only if it is still
            // planned is it an error.
            warn!(object = key, "an object that was to be read is not there; planning again");
            if broker.replica.barrier().await.is_err() {
                return Fetched::failed(ResponseError::KafkaStorageError);
            }
            let again = broker.replica.read(|view: &strandline_metadata::replica::View| {
                let state: &State = &view.state;
                plan::assess(state, wanted)
            });
            // Where the partition ends belongs to the plan: what is read now may lie above the old
            // end.
            fetched = without_records(&again);
            if again.is_error() {
                return fetched;
            }
            match read_planned(broker, wanted.offset, &again.planned, budget).await {
                Ok(records) => fetched.records = records,
                Err(failed) => return refuse(broker, wanted, &again, &failed),
            }
        }
        Err(failed) => return refuse(broker, wanted, &assessment, &failed),
    }
    fetched
}

fn without_records(assessment: &Assessment) -> Fetched {
    Fetched {
        error: assessment.error,
        high_watermark: assessment.high_watermark,
        last_stable: assessment.last_stable,
        log_start: assessment.log_start,
        records: Records::default(),
    }
}

/// Gets the next object of a consumer that catches up while this one is being sent. What comes of
/// it is found in the cache, or not; an error is the business of whoever really reads.
fn read_ahead(broker: &Broker, next: &PlannedRange) {
    let PlannedRange { range, object_bytes, tail } = *next;
    if tail || !broker.reader.lacks(range.object, range.position) {
        return;
    }
    let reader = broker.reader.clone();
    broker.tasks.start(TaskKind::Background, "read ahead", async move {
        let span = range.position..range.position + range.bytes;
        if let Err(error) = reader.read_as(ReadKind::CatchUp, range.object, object_bytes, span).await {
            debug!(object = %range.object, %error, "reading ahead failed");
        }
    });
}

fn refuse(broker: &Broker, wanted: &PartitionRead, assessment: &Assessment, failed: &StoreError) -> Fetched {
    error!(
        topic_id = %assessment.topic_id,
        partition = wanted.partition,
        offset = wanted.offset,
        error = %failed,
        "records cannot be read"
    );
    broker.metrics.read_failed();
    Fetched::failed(ResponseError::KafkaStorageError)
}

async fn read_planned(
    broker: &Broker,
    offset: i64,
    planned: &[PlannedRange],
    budget: usize,
) -> Result<Records, StoreError> {
    let mut collector = Collector::default();
    let until = Instant::now() + FETCH_READS_FOR;
    let reads = within(planned, budget).into_iter().map(|planned| read_range(broker, planned));
    let mut reads = futures::stream::iter(reads).buffered(OBJECT_READS_AT_ONCE);
    'ranges: while let Some((range, read)) = reads.next().await {
        let batches = match read {
            Ok(batches) => batches,
            // What lies before a range that cannot be read is served; the next fetch begins at that
            // range and is told. Otherwise a consumer would never get the good records in front of
            // it.
            Err(error) if collector.records.bytes > 0 => {
                debug!(object = %range.object, %error, "a fetch ends before a range that cannot be read");
                break 'ranges;
            }
            Err(error) => return Err(error),
        };
        let mut base_offset = range.base_offset;
        for batch in &batches {
            let end_offset = base_offset + i64::from(batch.header.record_count);
            // A fetch starts at the batch that contains the offset.
            if end_offset > offset {
                let bytes = collector.records.bytes;
                if bytes > 0 && bytes + batch.len() > budget {
                    break 'ranges;
                }
                collector.push(batch, base_offset);
            }
            base_offset = end_offset;
        }
        // Invariant 2 again, after the read: the batches must tile the range that the log promised.
        if base_offset != range.end_offset {
            let what = format!(
                "the batches at {}..{} end at offset {base_offset}, the log says {}",
                range.position,
                range.position + range.bytes,
                range.end_offset
            );
            return Err(StoreError::corrupt(&range.object.key(), what));
        }
        if collector.records.bytes > 0 && Instant::now() >= until {
            break;
        }
    }
    Ok(collector.finish())
}

/// The ranges of which something may fit into `budget` bytes. How much of the first one is wanted
/// is not known before it is read, so it does not count.
fn within(planned: &[PlannedRange], budget: usize) -> Vec<PlannedRange> {
    let mut before = 0;
    let fits = |(i, planned): &(usize, &PlannedRange)| {
        let fits = *i == 0 || before < budget as u64;
        if *i > 0 {
            before += planned.range.bytes;
        }
        fits
    };
    planned.iter().enumerate().take_while(fits).map(|(_, planned)| *planned).collect()
}

/// The batches of a range, and the range that they are of.
async fn read_range(
    broker: &Broker,
    PlannedRange { range, object_bytes, tail }: PlannedRange,
) -> (Range, Result<Vec<ReadBatch>, StoreError>) {
    let kind = if tail { ReadKind::Tail } else { ReadKind::CatchUp };
    let span = range.position..range.position + range.bytes;
    (range, broker.reader.read_batches(kind, range.object, object_bytes, span).await)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kafka_protocol::records::Compression;
    use strandline_storage::error::Operation;
    use strandline_storage::store::{Fault, FaultHandle, FaultPlan, Faulty, ObjectStoreBackend};

    use super::*;
    use crate::records::tests::batch;
    use crate::run::Opened;
    use crate::testing::{TestClient, World};

    /// A broker that reads what another one has written, from a store with faults.
    struct Reading {
        _writer: Opened,
        reader: Opened,
        faults: FaultHandle,
        client: TestClient,
        wanted: PartitionRead,
    }

    impl Reading {
        async fn new() -> Self {
            let faulty = Faulty::new(Arc::new(ObjectStoreBackend::memory()), 1);
            let faults = faulty.handle();
            let world = World::with_store(Arc::new(faulty));
            let writer = world.broker(1, &["--put-budget-per-s", "1000"]).await;
            let reader = world.broker(2, &[]).await;
            let mut client = TestClient::connect(&writer.broker);
            let topic = Ok(client.create_topic("t", 1, &[]).await);
            let wanted =
                PartitionRead { topic, partition: 0, offset: 0, max_bytes: 1 << 20, leader_epoch: -1 };
            Self { _writer: writer, reader, faults, client, wanted }
        }

        /// Writes a record, in an object of its own.
        async fn produce(&mut self) {
            self.client.produce("t", [batch(Compression::None, 0, 1)]).await;
        }

        /// What the reader knows now.
        async fn assess(&self) -> Assessment {
            let replica = &self.reader.broker.replica;
            replica.barrier().await.unwrap();
            replica.read(|view| plan::assess(&view.state, &self.wanted))
        }

        async fn read(&self, assessment: Assessment) -> Fetched {
            read(&self.reader.broker, &self.wanted, assessment, Some(1 << 20)).await
        }
    }

    #[tokio::test]
    async fn what_is_planned_again_has_its_own_end() {
        let mut reading = Reading::new().await;
        reading.produce().await;
        let old = reading.assess().await;
        reading.produce().await;
        assert_eq!(reading.assess().await.high_watermark, 2);
        reading.faults.inject(Operation::Get, Fault::Missing);
        let fetched = reading.read(old).await;
        assert_eq!(reading.faults.injected(), 1);
        assert_eq!((fetched.error, fetched.records.count), (None, 2));
        assert_eq!((fetched.high_watermark, fetched.last_stable), (2, 2), "no record lies above the end");
    }

    #[tokio::test]
    async fn what_cannot_fit_any_more_is_not_read() {
        let mut reading = Reading::new().await;
        for _ in 0..5 {
            reading.produce().await;
        }
        let planned = reading.assess().await.planned;
        let one = usize::try_from(planned[0].range.bytes).unwrap();
        // The first always is, and may give next to nothing.
        let read = [0, 1, one, 2 * one, 100 * one].map(|budget| within(&planned, budget).len());
        assert_eq!(read, [1, 2, 2, 3, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_does_not_wait_for_every_one_of_many_slow_objects() {
        let mut reading = Reading::new().await;
        let at_once = OBJECT_READS_AT_ONCE as u64;
        for _ in 0..at_once * 3 {
            reading.produce().await;
        }
        let slow = FETCH_READS_FOR * 2 / 5;
        reading.faults.set(FaultPlan {
            delay: slow..slow + std::time::Duration::from_millis(1),
            ..FaultPlan::default()
        });
        let assessment = reading.assess().await;
        let fetched = reading.read(assessment).await;
        assert_eq!(
            (fetched.error, fetched.records.count),
            (None, at_once * 2 + 1),
            "the rest is fetched next"
        );
    }
}
