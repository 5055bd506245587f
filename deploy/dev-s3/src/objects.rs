//! Buckets and objects.
//!
//! An index of everything is in memory; objects are beside it or in files. A folder is read once,
//! at the start, and belongs to one process from then on:
//!
//! ```text
//! <folder>/.lock                    held by the process that serves it
//! <folder>/.incoming/<n>            a PUT under way; swept at the start
//! <folder>/<bucket>/<dir>/<name>~   an object; bytes other than letters, digits and ._=- are written as %XX
//! ```
//!
//! The `~`, which no encoded name contains, lets an object `a` lie beside objects `a/…`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::body::Content;
use crate::config::Place;
use crate::error::StartError;

/// What ends the file name of every object.
const OBJECT_MARK: char = '~';
const LOCK: &str = ".lock";
const INCOMING: &str = ".incoming";

/// What is known of an object without its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) size: u64,
    pub(crate) modified: SystemTime,
    pub(crate) etag: String,
}

/// Where an object's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// In these pieces.
    Memory(Arc<[Bytes]>),
    /// In this file.
    File(Arc<File>),
}

/// What cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    #[error("no such bucket")]
    NoBucket,
    #[error("no such key")]
    NoKey,
    #[error("the object exists")]
    Exists,
    #[error("the bucket exists")]
    BucketExists,
    #[error("the bucket is not empty")]
    NotEmpty,
    #[error("the key is too long for a file name")]
    KeyTooLong,
    #[error("the folder fails: {0}")]
    Io(#[from] io::Error),
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Meta)>,
    /// Keys that were rolled up to their next delimiter.
    pub(crate) prefixes: Vec<String>,
    /// After which key the next page begins, if there is one.
    pub(crate) next_after: Option<String>,
}

/// All buckets.
#[derive(Debug)]
pub(crate) struct Objects {
    index: Arc<Mutex<Index>>,
    folder: Option<Arc<Folder>>,
}

type Index = BTreeMap<String, BTreeMap<String, Entry>>;

#[derive(Clone, Debug)]
struct Entry {
    meta: Meta,
    /// `None` if the bytes are in a file.
    pieces: Option<Arc<[Bytes]>>,
}

impl Objects {
    pub(crate) fn open(place: &Place) -> Result<Self, StartError> {
        let (index, folder) = match place {
            Place::Memory => (Index::new(), None),
            Place::Folder(path) => {
                let (folder, index) = Folder::open(path)?;
                (index, Some(Arc::new(folder)))
            }
        };
        Ok(Self { index: Arc::new(Mutex::new(index)), folder })
    }

    /// Makes a bucket unless it exists.
    pub(crate) fn make_bucket_at_start(&self, bucket: &str) -> Result<(), StartError> {
        if !s3s::path::check_bucket_name(bucket) {
            return Err(StartError::BucketName(bucket.to_owned()));
        }
        match make_bucket(&self.index, self.folder.as_deref(), bucket) {
            Err(ObjectError::Io(source)) => {
                let path = self.folder.as_ref().map(|folder| folder.root.clone()).unwrap_or_default();
                Err(StartError::Folder { path, source })
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn make_bucket(&self, bucket: String) -> Result<(), ObjectError> {
        self.blocking(move |index, folder| make_bucket(index, folder, &bucket)).await
    }

    pub(crate) async fn remove_bucket(&self, bucket: String) -> Result<(), ObjectError> {
        self.blocking(move |index, folder| {
            let mut index = lock(index);
            match index.get(&bucket) {
                None => return Err(ObjectError::NoBucket),
                Some(objects) if !objects.is_empty() => return Err(ObjectError::NotEmpty),
                Some(_) => {}
            }
            if let Some(folder) = folder {
                // Folders that once held objects may be left in it.
                fs::remove_dir_all(folder.root.join(&bucket))?;
            }
            index.remove(&bucket);
            Ok(())
        })
        .await
    }

    pub(crate) fn buckets(&self) -> Vec<String> {
        lock(&self.index).keys().cloned().collect()
    }

    pub(crate) fn has_bucket(&self, bucket: &str) -> bool {
        lock(&self.index).contains_key(bucket)
    }

    /// Writes an object; durable when it returns, if there is a folder.
    pub(crate) async fn put(
        &self,
        bucket: String,
        key: String,
        content: Content,
        only_if_absent: bool,
    ) -> Result<Meta, ObjectError> {
        if self.folder.is_some() {
            return self
                .blocking(move |index, folder| match folder {
                    Some(folder) => folder.put(index, &bucket, &key, &content, only_if_absent),
                    None => Err(ObjectError::NoBucket),
                })
                .await;
        }
        let meta = Meta { size: content.size, modified: now(), etag: format!("{:016x}", content.crc64) };
        let mut index = lock(&self.index);
        let objects = index.get_mut(&bucket).ok_or(ObjectError::NoBucket)?;
        if only_if_absent && objects.contains_key(&key) {
            return Err(ObjectError::Exists);
        }
        objects.insert(key, Entry { meta: meta.clone(), pieces: Some(content.pieces.into()) });
        Ok(meta)
    }

    pub(crate) fn head(&self, bucket: &str, key: &str) -> Result<Meta, ObjectError> {
        Ok(self.entry(bucket, key)?.meta)
    }

    pub(crate) async fn get(&self, bucket: String, key: String) -> Result<(Meta, Data), ObjectError> {
        let entry = self.entry(&bucket, &key)?;
        if let Some(pieces) = entry.pieces {
            return Ok((entry.meta, Data::Memory(pieces)));
        }
        self.blocking(move |_, folder| {
            let folder = folder.ok_or(ObjectError::NoKey)?;
            let file = match File::open(folder.path(&bucket, &key)?) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ObjectError::NoKey),
                opened => opened?,
            };
            // The file is what counts: it may have been replaced a moment ago, or damaged by a
            // test.
            let meta = file_meta(&file.metadata()?);
            Ok((meta, Data::File(Arc::new(file))))
        })
        .await
    }

    /// Deletes an object. What does not exist stays that way.
    pub(crate) async fn delete(&self, bucket: String, key: String) -> Result<(), ObjectError> {
        if self.folder.is_none() {
            let mut index = lock(&self.index);
            index.get_mut(&bucket).ok_or(ObjectError::NoBucket)?.remove(&key);
            return Ok(());
        }
        self.blocking(move |index, folder| {
            let folder = folder.ok_or(ObjectError::NoBucket)?;
            let mut index = lock(index);
            let objects = index.get_mut(&bucket).ok_or(ObjectError::NoBucket)?;
            match fs::remove_file(folder.path(&bucket, &key)?) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            objects.remove(&key);
            Ok(())
        })
        .await
    }

    /// Lists keys that begin with `prefix` and are greater than `after`, in order.
    pub(crate) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, ObjectError> {
        let index = lock(&self.index);
        let objects = index.get(bucket).ok_or(ObjectError::NoBucket)?;
        Ok(page(objects, prefix, delimiter, after, limit))
    }

    fn entry(&self, bucket: &str, key: &str) -> Result<Entry, ObjectError> {
        let index = lock(&self.index);
        let objects = index.get(bucket).ok_or(ObjectError::NoBucket)?;
        objects.get(key).cloned().ok_or(ObjectError::NoKey)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Mutex<Index>, Option<&Folder>) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let (index, folder) = (Arc::clone(&self.index), self.folder.clone());
        spawn_blocking(move || act(&index, folder.as_deref()))
            .await
            .unwrap_or_else(|error| Err(ObjectError::Io(io::Error::other(error))))
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            None => f.write_str("memory"),
            Some(folder) => write!(f, "the folder {}", folder.root.display()),
        }
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make_bucket(index: &Mutex<Index>, folder: Option<&Folder>, bucket: &str) -> Result<(), ObjectError> {
    let mut index = lock(index);
    if index.contains_key(bucket) {
        return Err(ObjectError::BucketExists);
    }
    if let Some(folder) = folder {
        fs::create_dir_all(folder.root.join(bucket))?;
        sync_folder(&folder.root)?;
    }
    index.insert(bucket.to_owned(), BTreeMap::new());
    Ok(())
}

fn page(
    objects: &BTreeMap<String, Entry>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    limit: usize,
) -> Page {
    let mut page = Page::default();
    let mut from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
        _ => Bound::Included(prefix.to_owned()),
    };
    let mut last = None;
    loop {
        let found = objects.range((from, Bound::Unbounded)).next();
        let Some((key, entry)) = found.filter(|(key, _)| key.starts_with(prefix)) else { return page };
        if page.objects.len() + page.prefixes.len() >= limit {
            page.next_after = last;
            return page;
        }
        let rolled_up = delimiter.and_then(|delimiter| {
            let at = key.get(prefix.len()..)?.find(delimiter)?;
            key.get(..prefix.len() + at + delimiter.len())
        });
        let skip_to = if let Some(rolled_up) = rolled_up {
            // A page that began within it has told of it already.
            if after.is_none_or(|after| !after.starts_with(rolled_up)) {
                page.prefixes.push(rolled_up.to_owned());
            }
            // Beyond every key that begins with it.
            format!("{rolled_up}{}", char::MAX)
        } else {
            page.objects.push((key.clone(), entry.meta.clone()));
            key.clone()
        };
        last = Some(skip_to.clone());
        from = Bound::Excluded(skip_to);
    }
}

/// A folder that this process alone serves.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// Names what is incoming.
    counter: AtomicU64,
    /// Holds the lock until the process ends, however it ends.
    _lock: File,
}

impl Folder {
    fn open(root: &Path) -> Result<(Self, Index), StartError> {
        let fail = |source| StartError::Folder { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(fail)?;
        let lock = File::create(root.join(LOCK)).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::Locked(root.to_owned())),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let incoming = root.join(INCOMING);
        let _ = fs::remove_dir_all(&incoming);
        fs::create_dir_all(&incoming).map_err(fail)?;
        let mut index = Index::new();
        for entry in fs::read_dir(root).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let Some(bucket) = name.to_str().filter(|name| s3s::path::check_bucket_name(name)) else {
                continue;
            };
            let mut objects = BTreeMap::new();
            scan(&entry.path(), "", &mut objects).map_err(fail)?;
            index.insert(bucket.to_owned(), objects);
        }
        Ok((Self { root: root.to_owned(), counter: AtomicU64::new(0), _lock: lock }, index))
    }

    fn path(&self, bucket: &str, key: &str) -> Result<PathBuf, ObjectError> {
        let mut path = self.root.join(bucket);
        for segment in encode(key).split('/') {
            // Most file systems take 255 bytes, the mark included.
            if segment.len() > 254 {
                return Err(ObjectError::KeyTooLong);
            }
            path.push(segment);
        }
        path.as_mut_os_string().push(OBJECT_MARK.to_string());
        Ok(path)
    }

    fn put(
        &self,
        index: &Mutex<Index>,
        bucket: &str,
        key: &str,
        content: &Content,
        only_if_absent: bool,
    ) -> Result<Meta, ObjectError> {
        if !lock(index).contains_key(bucket) {
            return Err(ObjectError::NoBucket);
        }
        let path = self.path(bucket, key)?;
        let folder = path.parent().unwrap_or(&self.root).to_owned();
        let incoming =
            self.root.join(INCOMING).join(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let written = write_file(&incoming, content).and_then(|meta| {
            make_folders(&self.root, &folder)?;
            Ok(meta)
        });
        let meta = match written {
            Ok(meta) => meta,
            Err(error) => {
                let _ = fs::remove_file(&incoming);
                return Err(error.into());
            }
        };
        {
            // Under the lock, so that of two PUTs the index and the folder know the same one.
            let mut index = lock(index);
            let objects = index.get_mut(bucket).ok_or(ObjectError::NoBucket)?;
            if only_if_absent && objects.contains_key(key) {
                let _ = fs::remove_file(&incoming);
                return Err(ObjectError::Exists);
            }
            fs::rename(&incoming, &path)?;
            objects.insert(key.to_owned(), Entry { meta: meta.clone(), pieces: None });
        }
        sync_folder(&folder)?;
        Ok(meta)
    }
}

fn write_file(path: &Path, content: &Content) -> io::Result<Meta> {
    let mut file = File::create(path)?;
    for piece in &content.pieces {
        file.write_all(piece)?;
    }
    file.sync_all()?;
    Ok(file_meta(&file.metadata()?))
}

/// Makes a folder and all above it up to the root, each durable in the one above.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder == root {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(root, above)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(above)?,
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn file_meta(found: &fs::Metadata) -> Meta {
    Meta {
        size: found.len(),
        modified: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        etag: format!("{:x}-{:x}{:08x}", found.len(), found.mtime(), found.mtime_nsec()),
    }
}

fn scan(folder: &Path, prefix: &str, objects: &mut BTreeMap<String, Entry>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let found = entry.metadata()?;
        if found.is_dir() {
            scan(&entry.path(), &format!("{prefix}{name}/"), objects)?;
        } else if let Some(key) =
            name.strip_suffix(OBJECT_MARK).and_then(|name| decode(&format!("{prefix}{name}")))
        {
            objects.insert(key, Entry { meta: file_meta(&found), pieces: None });
        }
    }
    Ok(())
}

/// A key as a path. `.`, `..` and the empty segment are names of their own in S3, and something
/// else in a path.
fn encode(key: &str) -> String {
    let segments = key.split('/').map(|segment| match segment {
        "" => "%".to_owned(),
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => segment
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() || b"._=-".contains(&byte) {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            })
            .collect(),
    });
    segments.collect::<Vec<_>>().join("/")
}

fn decode(path: &str) -> Option<String> {
    let mut key = Vec::new();
    for (position, segment) in path.split('/').enumerate() {
        if position > 0 {
            key.push(b'/');
        }
        if segment == "%" {
            continue;
        }
        let mut rest = segment.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digits = [rest.next()?, rest.next()?];
                key.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            } else {
                key.push(byte);
            }
        }
    }
    String::from_utf8(key).ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "S3 tells when an object was written; nothing else here reads a clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_paths_and_come_back() {
        let keys =
            ["a", "a/b", "a//b", "/a", "a/", ".", "../x", "a b%", "ä/ö", "~", "a~/b", "%", "%/%25", "/"];
        let mut paths = Vec::new();
        for key in keys {
            let path = encode(key);
            assert!(path.split('/').all(|segment| !["", ".", ".."].contains(&segment)), "{key}: {path}");
            assert!(!path.contains(OBJECT_MARK) && path.is_ascii(), "{key}: {path}");
            assert_eq!(decode(&path).as_deref(), Some(key));
            paths.push(path);
        }
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), keys.len(), "two keys have one path");
    }

    fn objects(keys: &[&str]) -> BTreeMap<String, Entry> {
        let meta = Meta { size: 1, modified: SystemTime::UNIX_EPOCH, etag: String::new() };
        keys.iter().map(|key| ((*key).to_owned(), Entry { meta: meta.clone(), pieces: None })).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let keys = ["a", "b/1", "b/2", "b/2/x", "b/3", "b0", "c/1", "d"];
        let objects = objects(&keys);
        for (prefix, delimiter, expected) in [
            ("", None, keys.to_vec()),
            ("b/", None, vec!["b/1", "b/2", "b/2/x", "b/3"]),
            ("b", None, vec!["b/1", "b/2", "b/2/x", "b/3", "b0"]),
            ("x", None, vec![]),
            ("", Some("/"), vec!["a", "b/", "b0", "c/", "d"]),
            ("b/", Some("/"), vec!["b/1", "b/2", "b/2/", "b/3"]),
        ] {
            for limit in 1..10 {
                let mut found = Vec::new();
                let mut after = None;
                loop {
                    let page = page(&objects, prefix, delimiter, after.as_deref(), limit);
                    assert!(page.objects.len() + page.prefixes.len() <= limit);
                    found.extend(page.objects.into_iter().map(|(key, _)| key));
                    found.extend(page.prefixes);
                    after = page.next_after;
                    if after.is_none() {
                        break;
                    }
                }
                found.sort_unstable();
                assert_eq!(found, expected, "{prefix:?} {delimiter:?} by {limit}");
            }
        }
        let after = page(&objects, "b/", None, Some("a"), 1);
        assert_eq!(after.objects[0].0, "b/1", "after a key before the prefix");
    }
}
