//! A folder as a store: for one broker, or several on one machine.
//!
//! A PUT writes `<key>#<n>`, flushes it to the disk, renames it to `<key>` and flushes the folder,
//! so that what was acknowledged survives a kill and a power cut, and nobody ever sees half an
//! object. A kill in the middle leaves the `#` file behind; nothing lists it, so it is swept here.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use object_store::local::LocalFileSystem;

use crate::error::StoreError;
use crate::limits::ABANDONED_AFTER;

/// A file that shows that the folder can be written, and what time it is there.
const PROBE: &str = ".strandline-probe";

/// Opens a folder, making it if absent, and sweeps what killed processes left in it.
pub(super) fn open(path: &Path, fsync: bool) -> Result<LocalFileSystem, StoreError> {
    let fail = |error: &dyn std::fmt::Display| {
        StoreError::invalid(format!("the folder {} cannot be used: {error}", path.display()))
    };
    fs::create_dir_all(path).map_err(|error| fail(&error))?;
    let now = probe(path).map_err(|error| fail(&error))?;
    if let Some(long_ago) = now.checked_sub(ABANDONED_AFTER) {
        sweep(path, long_ago).map_err(|error| fail(&error))?;
    }
    let folder = LocalFileSystem::new_with_prefix(path).map_err(|error| fail(&error))?;
    // Every write object has a sub-folder of its own, which must go with it.
    Ok(folder.with_fsync(fsync).with_automatic_cleanup(true))
}

/// Writes a file and says when the folder's own clock thinks that was.
fn probe(path: &Path) -> io::Result<SystemTime> {
    let probe = path.join(format!("{PROBE}-{}", std::process::id()));
    let mut file = File::create(&probe)?;
    file.write_all(b"x")?;
    let now = file.metadata()?.modified();
    fs::remove_file(&probe)?;
    now
}

fn sweep(folder: &Path, long_ago: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // What vanishes meanwhile was somebody else's to remove.
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            match sweep(&entry.path(), long_ago) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if entry.file_name().to_str().is_some_and(is_unfinished) && found.modified()? < long_ago {
            tracing::info!(file = %entry.path().display(), "removing what a killed process left behind");
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a file is a PUT under way. No key has a `#`.
fn is_unfinished(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_is_unfinished_and_old_is_swept() {
        let folder = std::env::temp_dir().join(format!("strandline-sweep-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("wal/0")).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        for (name, is_old) in
            [("wal/0/1-1", true), ("wal/0/1-2#1", true), ("wal/0/1-3#12", false), ("wal/0/x#y", true)]
        {
            let file = File::create(folder.join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        open(&folder, true).unwrap();
        let mut left: Vec<String> = fs::read_dir(folder.join("wal/0"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["1-1", "1-3#12", "x#y"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "the probe is gone");
        fs::remove_dir_all(folder).unwrap();
    }
}
