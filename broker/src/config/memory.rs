//! The memory that the process may use, and how it is shared out among the budgets.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use strandline_settings::{ConfigError, Values};

/// The parts in which memory is shared out.
const PARTS: u64 = 20;
/// How many budgets there are.
const BUDGETS: usize = 7;
/// Each budget, and how many of the parts it has unless it is set. More than a third of the memory
/// is left: to the state (about 100 bytes for each offset range), to fetch sessions (one part) and
/// fetches that wait (half a part), to large requests once they are decoded (two parts), to what
/// lies between two budgets for a moment, to the allocator.
const SHARES: [(&str, u64); BUDGETS] = [
    ("buffer_bytes", 2),
    ("cache_bytes", 2),
    ("read_in_flight_bytes", 1),
    ("request_memory_bytes", 2),
    ("response_memory_bytes", 2),
    ("merge_memory_bytes", 3),
    ("compact_memory_bytes", 1),
];
/// What is shared out at most unless `memory_bytes` is set: on a machine that others use as well, a
/// broker need not take more for being given more.
pub(crate) const DEFAULT_MEMORY_BYTES: u64 = 20 * (128 << 20);
/// What is shared out at least, whatever there is.
const LEAST_MEMORY_BYTES: u64 = 40 << 20;

/// The budgets of memory that the whole broker shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudgets {
    /// What was shared out, in bytes.
    pub memory_bytes: u64,
    /// Bytes of each budget, in the order of the shares.
    budgets: [u64; BUDGETS],
}

impl MemoryBudgets {
    /// What is set, and else shares of what is set or `available`.
    pub(super) fn of(values: &Values, available: u64) -> Result<Self, ConfigError> {
        let memory_bytes = match values.optional("memory_bytes") {
            Some(_) => values.within("memory_bytes", LEAST_MEMORY_BYTES, 1 << 44)?,
            None => available.clamp(LEAST_MEMORY_BYTES, DEFAULT_MEMORY_BYTES),
        };
        let mut budgets = [0; BUDGETS];
        for (bytes, (key, parts)) in budgets.iter_mut().zip(SHARES) {
            *bytes = match values.optional(key) {
                // Any size of a cache is one.
                Some(_) if key == "cache_bytes" => values.get(key)?,
                Some(_) => values.within(key, 1 << 20, 1 << 40)?,
                None => memory_bytes / PARTS * parts,
            };
        }
        Ok(Self { memory_bytes, budgets })
    }

    /// Each budget's key and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SHARES.into_iter().map(|(key, _)| key).zip(self.budgets)
    }

    /// Bytes of a budget.
    pub(super) fn bytes(&self, key: &str) -> u64 {
        self.iter().find(|(own, _)| *own == key).map_or(0, |(_, bytes)| bytes)
    }

    /// Bytes of what fetch sessions remember, out of what is left: about 600,000 partitions by
    /// default.
    pub(crate) fn fetch_session_bytes(&self) -> usize {
        usize::try_from(self.memory_bytes / PARTS).unwrap_or(usize::MAX)
    }

    /// Bytes of what fetches hold while they wait, out of what is left: those of 200,000 partitions
    /// by default.
    pub(crate) fn waiting_fetch_bytes(&self) -> usize {
        self.fetch_session_bytes() / 2
    }

    /// Bytes of large requests that are decoded, out of what is left: by default four of the
    /// largest.
    pub(crate) fn decoded_request_bytes(&self) -> usize {
        self.fetch_session_bytes() * 2
    }

    /// Bytes of all budgets together.
    pub fn sum(&self) -> u64 {
        self.budgets.iter().sum()
    }
}

/// What `--help` says about memory, on a machine where so much is available.
pub(super) fn help(available: u64) -> String {
    let memory = available.clamp(LEAST_MEMORY_BYTES, DEFAULT_MEMORY_BYTES);
    let sum: u64 = SHARES.iter().map(|(_, parts)| memory / PARTS * parts).sum();
    let shared: u64 = SHARES.iter().map(|(_, parts)| parts).sum();
    let names = SHARES.map(|(key, parts)| format!("{key} ({parts}/{PARTS})")).join(", ");
    format!(
        "Memory: memory_bytes is shared out: {names}; together {shared}/{PARTS} of it. Unless it is set it is the least of what the cgroup, \
         ulimit -v and the machine allow, and at most {} MiB: here {} MiB, of which these have {} MiB. Beside that fetch \
         sessions, fetches that wait and large requests once they are decoded have 3.5/{PARTS} of memory_bytes, the state takes about 100 bytes for each offset range, max_state_ranges at most, and each connection a few kilobytes.",
        DEFAULT_MEMORY_BYTES >> 20,
        memory >> 20,
        sum >> 20,
    )
}

/// Bytes that this process may use: the least of what its cgroup, its limit of address space and
/// the machine allow. What cannot be found out limits nothing.
pub fn available() -> u64 {
    let address_space = getrlimit(Resource::As).current;
    let limits = [cgroup(Path::new("/")), address_space, physical(Path::new("/"))];
    limits.into_iter().flatten().min().unwrap_or(DEFAULT_MEMORY_BYTES)
}

fn physical(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit of the process's cgroup and those around it, in version 2 or 1 of the hierarchy.
fn cgroup(root: &Path) -> Option<u64> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = memberships.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // In a container the path may be the host's, and what is visible is the mount itself.
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors().filter_map(|part| limit(&root.join(mount).join(part).join(file))).min()
    });
    limits.min()
}

/// The limit that a file says; `None` for none, which version 1 writes as a huge number.
fn limit(file: &Path) -> Option<u64> {
    let bytes = fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(std::path::PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("strandline-memory-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_least_limit_of_all_cgroups_around_counts() {
        let two = Machine::new(
            "v2",
            &[
                ("proc/self/cgroup", "0::/outer/inner\n"),
                ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
                ("sys/fs/cgroup/outer/memory.max", "1000000\n"),
                ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            ],
        );
        assert_eq!(cgroup(&two.0), Some(1_000_000));
        assert_eq!(physical(&two.0), Some(16 << 20));
        let one = Machine::new(
            "v1",
            &[
                ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ],
        );
        assert_eq!(cgroup(&one.0), Some(512 << 20), "what is visible in a container is the mount");
        let none = Machine::new(
            "none",
            &[
                ("proc/self/cgroup", "4:memory:/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        assert_eq!(cgroup(&none.0), None);
        assert_eq!(physical(&none.0), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available() > 1 << 20);
    }
}
