//! Reading what was planned, and giving each batch its offset.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;
use strandline_metadata::state::State;
use strandline_storage::error::StoreError;
use strandline_storage::format::batch::patched_prefix;
use strandline_storage::reader::ReadKind;
use tracing::{debug, error, warn};

use super::plan::{self, Assessment, Planned};
use super::{Fetched, Wanted};
use crate::Broker;

/// Batches up to this size are copied behind their patched header: cheaper than another piece to send.
const COPY_BYTES: usize = 1024;

/// Bytes of the prefix that is patched: base offset, length, leader epoch.
const PREFIX_BYTES: usize = 16;

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
    fn push(&mut self, prefix: [u8; PREFIX_BYTES], batch: &Bytes, count: i32) {
        self.records.bytes += batch.len();
        self.records.count += u64::try_from(count).unwrap_or(0);
        self.scratch.put_slice(&prefix);
        let rest = batch.slice(PREFIX_BYTES..);
        if rest.len() <= COPY_BYTES {
            self.scratch.put_slice(&rest);
        } else {
            self.records.pieces.push(self.scratch.split().freeze());
            self.records.pieces.push(rest);
        }
    }

    fn finish(mut self) -> Records {
        if !self.scratch.is_empty() {
            self.records.pieces.push(self.scratch.freeze());
        }
        self.records
    }
}

/// Reads one partition: up to `budget` bytes, but always the first batch; nothing if there is no budget.
pub(super) async fn read(
    broker: &Broker,
    wanted: &Wanted,
    assessment: Assessment,
    budget: Option<usize>,
) -> Fetched {
    let mut fetched = Fetched {
        error: assessment.error,
        high_watermark: assessment.high_watermark,
        last_stable: assessment.last_stable,
        log_start: assessment.log_start,
        records: Records::default(),
    };
    let Some(budget) = budget else { return fetched };
    if let Some(next) = &assessment.next {
        read_ahead(broker, next);
    }
    match read_planned(broker, wanted.offset, &assessment.planned, budget).await {
        Ok(records) => fetched.records = records,
        Err(StoreError::NotFound { key }) => {
            // The object may have been collected since the plan was made. Only if it is still planned is it an error.
            warn!(object = key, "an object that was to be read is not there; planning again");
            if broker.replica.barrier().await.is_err() {
                return Fetched::failed(ResponseError::KafkaStorageError);
            }
            let again = broker.replica.read(|view: &strandline_metadata::replica::View| {
                let state: &State = &view.state;
                plan::assess(state, wanted)
            });
            if again.error.is_some() {
                fetched.error = again.error;
                return fetched;
            }
            match read_planned(broker, wanted.offset, &again.planned, budget).await {
                Ok(records) => fetched.records = records,
                Err(failed) => return refuse(broker, wanted, &assessment, &failed),
            }
        }
        Err(failed) => return refuse(broker, wanted, &assessment, &failed),
    }
    fetched
}

/// Gets the next object of a consumer that catches up while this one is being sent. What comes of it is found in the
/// cache, or not; an error is the business of whoever really reads.
fn read_ahead(broker: &Broker, next: &Planned) {
    let Planned { range, object_bytes, tail } = *next;
    if tail || !broker.reader.lacks(range.object, range.position) {
        return;
    }
    let reader = broker.reader.clone();
    broker.tasks.start("read ahead", async move {
        let span = range.position..range.position + range.bytes;
        if let Err(error) = reader.read_as(ReadKind::CatchUp, range.object, object_bytes, span).await {
            debug!(object = %range.object, %error, "reading ahead failed");
        }
    });
}

fn refuse(broker: &Broker, wanted: &Wanted, assessment: &Assessment, failed: &StoreError) -> Fetched {
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
    planned: &[Planned],
    budget: usize,
) -> Result<Records, StoreError> {
    let mut collector = Collector::default();
    'ranges: for Planned { range, object_bytes, tail } in planned {
        let kind = if *tail { ReadKind::Tail } else { ReadKind::CatchUp };
        let span = range.position..range.position + range.bytes;
        let batches = match broker.reader.read_batches(kind, range.object, *object_bytes, span).await {
            Ok(batches) => batches,
            // What lies before a range that cannot be read is served; the next fetch begins at that range and is told.
            // Otherwise a consumer would never get the good records in front of it.
            Err(error) if collector.records.bytes > 0 => {
                debug!(object = %range.object, %error, "a fetch ends before a range that cannot be read");
                break 'ranges;
            }
            Err(error) => return Err(error),
        };
        let mut base_offset = range.base_offset;
        for (header, batch) in &batches {
            let end_offset = base_offset + i64::from(header.record_count);
            // A fetch starts at the batch that contains the offset.
            if end_offset > offset {
                let bytes = collector.records.bytes;
                if bytes > 0 && bytes + batch.len() > budget {
                    break 'ranges;
                }
                collector.push(patched_prefix(header, base_offset, 0), batch, header.record_count);
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
    }
    Ok(collector.finish())
}
