//! Processes that are started, hurt and certainly ended.
//!
//! All processes of a cluster share one process group, whose leader does nothing. A guard, a shell
//! that reads from a pipe that this process holds, kills the group when the pipe closes: also when
//! the test panics, is killed itself or never drops anything. So no process outlives its test.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What is shown of a log when a test fails: so many lines, and so much of each.
const SHOWN_LINES: usize = 40;
const SHOWN_CHARS: usize = 400;

/// Time for a process to stand still when it is told to.
const STANDSTILL: Duration = Duration::from_mins(1);

/// A folder and a process group that end together.
#[derive(Debug)]
pub struct Nest {
    /// Does nothing but keep the group's id from being given to others.
    leader: Child,
    guard: Child,
    line: Option<ChildStdin>,
    folder: PathBuf,
}

/// Waits for the end of its input, then kills the group and removes the folder unless that is to be
/// kept.
const GUARD: &str = r#"
cat >/dev/null
kill -9 "-$1"
[ -e "$2/keep" ] || rm -rf "$2" || { sleep 1; rm -rf "$2"; }
"#;

impl Nest {
    /// A new folder, and a group without members.
    pub fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("strandline-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let leader = Command::new("sleep")
            .arg("2147483647")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &leader.id().to_string()])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The terminal's ^C ends the test; the guard must outlive it.
            .process_group(0)
            .spawn()?;
        let line = guard.stdin.take();
        Ok(Self { leader, guard, line, folder })
    }

    /// Where everything of the nest is kept.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts `program` as a member of the group; what it says goes to `<name>.log`, after what is
    /// there.
    pub fn start(&self, name: &str, program: &Path, args: &[OsString]) -> io::Result<Process> {
        let log_path = self.folder.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&log_path)?;
        let child = Command::new(program)
            .args(args)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(self.leader.id() as i32)
            .spawn()
            .map_err(|e| io::Error::other(format!("cannot start {}: {e}", program.display())))?;
        Ok(Process { name: name.to_owned(), child, log_path, ended: None })
    }

    /// Empties every log.
    pub fn forget_logs(&self) {
        for path in self.logs() {
            // Whoever writes it appends.
            let _ = OpenOptions::new().write(true).truncate(true).open(path);
        }
    }

    fn logs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut logs: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
        logs.sort();
        logs
    }

    /// Keeps the folder when the nest ends, and prints the end of every log in it: a test has
    /// failed.
    pub fn keep_and_show(&self) {
        // Only for the reader of a failed test; there is nobody to tell if it fails.
        let _ = File::create(self.folder.join("keep"));
        eprintln!("---- everything is kept in {}", self.folder.display());
        for path in self.logs() {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<String> = text.lines().map(|l| l.chars().take(SHOWN_CHARS).collect()).collect();
            let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("---- {}\n{tail}", path.display());
        }
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        // Closing the line makes the guard act; it is awaited so that the ports are free when this
        // returns.
        self.line.take();
        let _ = self.guard.wait();
        let _ = self.leader.wait();
    }
}

/// One process, and what has become of it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log_path: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its name, as in its log file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be asked");
        }
        self.ended
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// Ends it where it stands, and waits until it is gone.
    pub fn kill9(&mut self) {
        if self.is_running() {
            // It may end by itself at this very moment.
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Sends it a signal, by name. Returns from STOP when it stands still: until each of its
    /// threads has been told, some may go on, for as long as the machine is busy.
    pub fn signal(&mut self, signal: &str) {
        if !self.is_running() {
            return;
        }
        let done = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.id())]).status();
        assert!(done.is_ok_and(|s| s.success()), "{} cannot be sent SIG{signal}", self.name);
        let until = Instant::now() + STANDSTILL;
        while signal == "STOP" && self.is_running() && !self.stands_still() {
            assert!(Instant::now() < until, "{} does not stop within {STANDSTILL:?}", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether every thread is stopped.
    fn stands_still(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.id())) else { return false };
        threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state is behind the name, which is in brackets and may contain anything.
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// Waits until it has ended; panics after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < until, "{} has not ended within {limit:?}", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything that it has said since the log file began.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log_path).unwrap_or_default()).into_owned()
    }

    /// Memory in use now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Whether a process ended by a signal that it did not handle.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal().is_some()
}

/// A port that nobody listens on, below the ports that the system gives to outgoing connections: so
/// nobody takes it while its owner restarts.
pub fn free_port() -> u16 {
    const FIRST: u32 = 17_000;
    const COUNT: u32 = 15_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(613);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + begin.wrapping_add(step) % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("there is no free port");
}

/// A program of this workspace, which must have been built before.
pub fn built(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("this program has a path");
    // target/<profile>/deps/<test>, or target/<profile>/<binary>.
    let found = me.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not built: run `cargo build --workspace --bins` with the same profile first")
    })
}

/// Polls until `done` gives something; panics with `what` after `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
