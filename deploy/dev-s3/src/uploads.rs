//! Multipart uploads under way. They are kept in memory, wherever objects are kept: one that was
//! not completed when the process ends is gone, as if it had been aborted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use s3s::{S3Result, s3_error};

use crate::body::Content;

/// Most bytes of all uploads under way together.
const MAX_PENDING_BYTES: u64 = 4 << 30;

#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    started: u64,
    pending_bytes: u64,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, Content>,
}

impl Uploads {
    pub(crate) fn create(&self, bucket: String, key: String) -> String {
        let mut state = self.lock();
        state.started += 1;
        let id = format!("upload-{}", state.started);
        state.uploads.insert(id.clone(), Upload { bucket, key, parts: BTreeMap::new() });
        id
    }

    pub(crate) fn add(&self, id: &str, bucket: &str, key: &str, number: i32, part: Content) -> S3Result<()> {
        let mut state = self.lock();
        if state.pending_bytes + part.size > MAX_PENDING_BYTES {
            return Err(s3_error!(EntityTooLarge, "too many bytes in uploads that were not completed"));
        }
        let (added, upload) = (part.size, state.find(id, bucket, key)?);
        let replaced = upload.parts.insert(number, part).map_or(0, |old| old.size);
        state.pending_bytes = state.pending_bytes + added - replaced;
        Ok(())
    }

    /// Ends an upload with the parts of these numbers and etags, in this order.
    pub(crate) fn complete(
        &self,
        id: &str,
        bucket: &str,
        key: &str,
        parts: &[(i32, Option<String>)],
    ) -> S3Result<Content> {
        let mut state = self.lock();
        let upload = state.find(id, bucket, key)?;
        if parts.is_empty() || !parts.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let mut chosen = Vec::with_capacity(parts.len());
        for (number, etag) in parts {
            match upload.parts.get(number) {
                Some(part) if etag.as_ref().is_none_or(|etag| *etag == part_etag(part)) => {
                    chosen.push(part.clone());
                }
                _ => return Err(s3_error!(InvalidPart)),
            }
        }
        state.remove(id);
        drop(state);
        Ok(Content::joined(chosen))
    }

    pub(crate) fn abort(&self, id: &str, bucket: &str, key: &str) -> S3Result<()> {
        let mut state = self.lock();
        state.find(id, bucket, key)?;
        state.remove(id);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, id: &str, bucket: &str, key: &str) -> S3Result<&mut Upload> {
        self.uploads
            .get_mut(id)
            .filter(|upload| upload.bucket == bucket && upload.key == key)
            .ok_or_else(|| s3_error!(NoSuchUpload))
    }

    fn remove(&mut self, id: &str) {
        if let Some(upload) = self.uploads.remove(id) {
            self.pending_bytes -= upload.parts.values().map(|part| part.size).sum::<u64>();
        }
    }
}

/// The etag of a part.
pub(crate) fn part_etag(part: &Content) -> String {
    format!("{:016x}", part.crc64)
}
