//! Between etcd's messages and this crate's types. Values are moved, not copied, where etcd-client
//! lets them go.

use bytes::Bytes;
use etcd_client::proto::{PbEvent, PbKeyValue};
use etcd_client::{EventType, GetOptions, WatchOptions};

use crate::backend::{
    BackendError, ChangedRequest, ChangedResponse, Event, KeyRange, KeyValue, RangeRequest, RangeResponse,
};

/// The first key of a range, and its end unless it is one key.
pub(super) fn split(keys: &KeyRange) -> (Vec<u8>, Option<Vec<u8>>) {
    match keys {
        KeyRange::Key(key) => (key.to_vec(), None),
        KeyRange::Span { start, end } => (start.to_vec(), Some(end.to_vec())),
    }
}

/// A linearizable read, unless it is of the past.
pub(super) fn get_options(request: &RangeRequest, end: Option<Vec<u8>>) -> Result<GetOptions, BackendError> {
    let limit = i64::try_from(request.limit)
        .map_err(|_| BackendError::Broken(format!("a limit of {} keys", request.limit)))?;
    let options = GetOptions::new().with_limit(limit).with_revision(request.revision.unwrap_or(0));
    let options = if request.keys_only { options.with_keys_only() } else { options };
    Ok(up_to(options, end))
}

/// The same for what was put after a revision. etcd sorts out what is older after it has counted.
pub(super) fn changed_options(request: &ChangedRequest, end: Option<Vec<u8>>) -> GetOptions {
    let options = GetOptions::new().with_revision(request.revision.unwrap_or(0));
    up_to(options.with_min_mod_revision(request.after.saturating_add(1)), end)
}

fn up_to(options: GetOptions, end: Option<Vec<u8>>) -> GetOptions {
    match end {
        Some(end) => options.with_range(end),
        None => options,
    }
}

/// A watch whose large responses come in fragments, so that each has a bounded size.
pub(super) fn watch_options(end: Option<Vec<u8>>, revision: i64) -> WatchOptions {
    let options = WatchOptions::new().with_start_revision(revision).with_progress_notify().with_fragment();
    match end {
        Some(end) => options.with_range(end),
        None => options,
    }
}

pub(super) fn range_response(response: etcd_client::GetResponse) -> Result<RangeResponse, BackendError> {
    let etcd_client::GetResponse(response) = response;
    let header = response.header.ok_or_else(headless)?;
    let kvs = response.kvs.into_iter().map(key_value).collect();
    Ok(RangeResponse { revision: header.revision, kvs, more: response.more })
}

pub(super) fn changed_response(response: etcd_client::GetResponse) -> Result<ChangedResponse, BackendError> {
    let count = usize::try_from(response.count())
        .map_err(|_| BackendError::Broken(format!("a range of {} keys", response.count())))?;
    let RangeResponse { revision, kvs, .. } = range_response(response)?;
    Ok(ChangedResponse { revision, kvs, count })
}

pub(super) fn key_value(kv: PbKeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::from(kv.key),
        value: Bytes::from(kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

pub(super) fn event(event: PbEvent) -> Result<Event, BackendError> {
    let kind = EventType::try_from(event.r#type);
    let kv = event.kv.ok_or_else(|| BackendError::Broken("an event without a key".to_owned()))?;
    match kind {
        Ok(EventType::Put) => Ok(Event::Put(key_value(kv))),
        Ok(EventType::Delete) => Ok(Event::Delete { key: Bytes::from(kv.key), revision: kv.mod_revision }),
        Err(unknown) => Err(BackendError::Broken(format!("an event of unknown kind {unknown}"))),
    }
}

fn headless() -> BackendError {
    BackendError::Broken("an answer without a header".to_owned())
}
