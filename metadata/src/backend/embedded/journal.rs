//! The file that makes an embedded store survive its process.
//!
//! ```text
//!   magic "SLJOURN" and a version byte
//!   frame: length u32 | CRC-32 of the payload u32 | CRC-32 of these 8 bytes u32 | payload: records
//!   frame
//!   ...
//! ```
//!
//! **A frame is what one write and one fdatasync made durable**: the records of all changes that
//! came together. The next frame is written only after that, so an interrupted write can damage the
//! last frame and no other. Hence, at opening: a last frame that is incomplete or does not match
//! its checksum is cut off, with a warning; nobody was told that it is durable. Damage with a valid
//! frame after it cannot come from an interruption, and such a journal is not opened.
//!
//! **It does not grow for ever.** When it is large and at least twice what it was when it was last
//! rewritten, a compaction (or opening it) writes what is left of the store to `<name>.new`, syncs
//! that, renames it over the journal and syncs the directory.
//!
//! **One process at a time**: `<name>.lock` is locked for as long as the store lives. A file of its
//! own, because the journal is replaced.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::mvcc::Mvcc;
use super::record::Record;

use crate::limits::{JOURNAL_FRAME_BYTES, JOURNAL_LOCK_PATIENCE, JOURNAL_LOCK_POLL, JOURNAL_REWRITE_BYTES};

/// What a journal begins with; the last byte is the format's version.
const MAGIC: [u8; 8] = *b"SLJOURN\x01";

/// Length, checksum of the payload, checksum of these two.
const HEADER_BYTES: usize = 12;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refuses.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another store has it open.
    #[error("the journal {} is in use by another process", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// The file is damaged, or no journal. Restore it from a backup, or move it away to start from
    /// nothing.
    #[error("the journal {} is damaged at byte {offset}: {why}", path.display())]
    Corrupt {
        /// The journal.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
}

/// When a change counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: it survives a power cut.
    #[default]
    Disk,
    /// When the system has it: it survives kill -9 of this process, not a power cut.
    System,
}

/// An open journal, positioned at its end.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// How large it was when it was last rewritten, or opened.
    rewritten_bytes: u64,
    durability: Durability,
    _lock: File,
}

/// A rewritten journal that has not replaced the other one yet.
#[derive(Debug)]
pub(super) struct NewJournal {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Journal {
    /// Opens or creates a journal, and makes the store that it tells of.
    pub(super) fn open(path: &Path, durability: Durability) -> Result<(Self, Mvcc), OpenError> {
        let io = |doing| move |source| OpenError::Io { doing, path: path.to_owned(), source };
        let lock = lock(path)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io("open"))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io("read"))?;
        let (mvcc, valid) = replay(&content).map_err(|(offset, why)| OpenError::Corrupt {
            path: path.to_owned(),
            offset: to_u64(offset),
            why,
        })?;
        if valid < content.len() {
            let (kept, cut) = (valid, content.len() - valid);
            warn!(path = %path.display(), kept, cut, "cut an interrupted write off the end of the journal");
        }
        let mut journal = Self {
            path: path.to_owned(),
            file,
            bytes: to_u64(valid),
            rewritten_bytes: 0,
            durability,
            _lock: lock,
        };
        journal.repair(valid).map_err(io("repair"))?;
        if journal.is_worth_rewriting() {
            let new = journal.write_new(&mvcc.snapshot()).map_err(io("rewrite"))?;
            journal.adopt(new).map_err(io("replace"))?;
        }
        Ok((journal, mvcc))
    }

    /// Appends records, and returns when they are durable.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let frame = frame(records)?;
        self.file.write_all(&frame)?;
        if self.durability == Durability::Disk {
            self.file.sync_data()?;
        }
        self.bytes += to_u64(frame.len());
        Ok(())
    }

    /// Whether so much of it is history that it should be rewritten.
    pub(super) fn is_worth_rewriting(&self) -> bool {
        self.bytes >= JOURNAL_REWRITE_BYTES && self.bytes / 2 >= self.rewritten_bytes
    }

    /// Writes a journal that tells nothing but a snapshot, beside this one, which stays as it is.
    pub(super) fn write_new(&self, snapshot: &[Record]) -> io::Result<NewJournal> {
        let path = sibling(&self.path, "new");
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&MAGIC)?;
        let mut bytes = to_u64(MAGIC.len());
        let mut payload = Vec::new();
        for (index, record) in snapshot.iter().enumerate() {
            record.encode(&mut payload);
            if payload.len() >= JOURNAL_FRAME_BYTES || index + 1 == snapshot.len() {
                let frame = frame(&payload)?;
                file.write_all(&frame)?;
                bytes += to_u64(frame.len());
                payload.clear();
            }
        }
        file.sync_all()?;
        Ok(NewJournal { path, file, bytes })
    }

    /// Goes on with a rewritten journal in place of this one.
    pub(super) fn adopt(&mut self, new: NewJournal) -> io::Result<()> {
        std::fs::rename(&new.path, &self.path)?;
        info!(path = %self.path.display(), before = self.bytes, after = new.bytes, "rewrite the journal");
        self.file = new.file;
        self.bytes = new.bytes;
        self.rewritten_bytes = new.bytes;
        sync_directory(&self.path)
    }

    /// From now on nothing can be written.
    #[cfg(test)]
    pub(super) fn sabotage(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts off what is not valid, and makes a new file a journal.
    fn repair(&mut self, valid: usize) -> io::Result<()> {
        self.file.set_len(to_u64(valid))?;
        self.file.seek(SeekFrom::End(0))?;
        if valid == 0 {
            self.file.write_all(&MAGIC)?;
            self.bytes = to_u64(MAGIC.len());
        }
        self.file.sync_all()?;
        sync_directory(&self.path)?;
        remove_if_there(&sibling(&self.path, "new"))
    }
}

/// Makes the store that a journal tells of. Also says how much of it is valid; what follows is the
/// remains of an interrupted write. An error names where the damage is, and what it is.
fn replay(content: &[u8]) -> Result<(Mvcc, usize), (usize, String)> {
    let mut mvcc = Mvcc::new();
    let Some(frames) = content.strip_prefix(&MAGIC) else {
        // A file that was created, and then nothing more happened.
        return if MAGIC.starts_with(content) {
            Ok((mvcc, 0))
        } else {
            Err((0, "it is no journal".to_owned()))
        };
    };
    let mut rest = frames;
    let offset = |rest: &[u8]| content.len() - rest.len();
    let mut complete = true;
    while !rest.is_empty() {
        let Some((payload, after)) = split_frame(rest) else {
            if let Some(next) = (1..rest.len()).find(|skip| rest.get(*skip..).and_then(split_frame).is_some())
            {
                return Err((
                    offset(rest),
                    format!("checksums do not match, but {next} bytes later they do"),
                ));
            }
            break;
        };
        let mut records = payload;
        while !records.is_empty() {
            let record =
                Record::decode(&mut records).map_err(|garbage| (offset(rest), garbage.to_string()))?;
            match record {
                Record::Base { .. } => complete = false,
                Record::BaseEnd { .. } => complete = true,
                _ => {}
            }
            mvcc.replay(record).map_err(|why| (offset(rest), why))?;
        }
        rest = after;
    }
    // A snapshot is complete before it gets the journal's name, so this is no interrupted write.
    if complete {
        Ok((mvcc, offset(rest)))
    } else {
        Err((offset(rest), "the snapshot ends too early".to_owned()))
    }
}

/// The payload of the frame at the front, and what follows it; `None` if there is no valid frame.
fn split_frame(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = input.split_first_chunk::<HEADER_BYTES>()?;
    let (sums, own_sum) = header.split_last_chunk::<4>()?;
    let (length, sum) = sums.split_first_chunk::<4>()?;
    if crc32fast::hash(sums) != u32::from_le_bytes(*own_sum) {
        return None;
    }
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (payload, after) = rest.split_at_checked(length)?;
    (length > 0 && crc32fast::hash(payload).to_le_bytes() == sum).then_some((payload, after))
}

fn frame(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend(length.to_le_bytes());
    frame.extend(crc32fast::hash(payload).to_le_bytes());
    frame.extend(crc32fast::hash(&frame).to_le_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = sibling(path, "lock");
    let io = |doing| {
        let path = lock_path.clone();
        move |source| OpenError::Io { doing, path, source }
    };
    let file = File::create(&lock_path).map_err(io("create"))?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
            Err(TryLockError::WouldBlock) if waited >= JOURNAL_LOCK_PATIENCE => {
                return Err(OpenError::Locked { path: path.to_owned() });
            }
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(JOURNAL_LOCK_POLL);
                waited += JOURNAL_LOCK_POLL;
            }
        }
    }
}

/// The journal's path with something added to its name.
fn sibling(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A length in memory always fits.
fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
