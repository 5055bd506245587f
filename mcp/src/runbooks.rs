//! Runbooks: versioned Markdown that ships with the server, beside a folder of the operator's own.
//! One of the operator's with the id of a shipped one takes its place.
//!
//! ```text
//! ---
//! id: lag
//! title: A consumer group lags
//! version: 1
//! causes: consumer_stalled, consumer_slow
//! ---
//!
//! # A consumer group lags
//! ```
//!
//! The folder is looked at again when somebody asks, at most once a second. A file that cannot be
//! used is left out and named; at the start it is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::ConfigError;
use crate::foreign::{clean, clean_lines};
use crate::limits::{RUNBOOK_BYTES, RUNBOOKS_OWN};

/// How often it is looked whether the folder changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The runbooks that ship with the server.
const SHIPPED: &[&str] = &[
    include_str!("../runbooks/broker-lost.md"),
    include_str!("../runbooks/credential-expiry.md"),
    include_str!("../runbooks/etcd-slow-or-near-quota.md"),
    include_str!("../runbooks/hot-partition.md"),
    include_str!("../runbooks/lag.md"),
    include_str!("../runbooks/s3-slow-or-failing.md"),
    include_str!("../runbooks/observer-blind.md"),
    include_str!("../runbooks/open-transaction.md"),
    include_str!("../runbooks/rebalance-storm.md"),
    include_str!("../runbooks/retention-overtaking-a-group.md"),
];

/// A runbook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runbook {
    /// Its name, of lower-case letters, digits and `-`.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its version, counted upwards.
    pub version: u32,
    /// The codes of causes that it is for.
    pub causes: Vec<String>,
    /// `shipped` or `operator`.
    pub source: &'static str,
    /// The Markdown behind the front matter.
    pub text: String,
}

impl Runbook {
    /// Reads a runbook. The sentence says what is wrong.
    pub fn parse(text: &str, source: &'static str) -> Result<Self, String> {
        if text.len() > RUNBOOK_BYTES {
            return Err(format!("it has more than {RUNBOOK_BYTES} bytes"));
        }
        let text = clean_lines(text);
        let rest = text.strip_prefix("---\n").ok_or("it does not begin with front matter (---)")?;
        let (front, body) = rest.split_once("\n---\n").ok_or("its front matter does not end (---)")?;
        let mut fields = BTreeMap::new();
        for line in front.lines().filter(|l| !l.trim().is_empty()) {
            let (name, value) =
                line.split_once(':').ok_or_else(|| format!("{:?} is not name: value", clean(line)))?;
            let name = name.trim();
            if !["id", "title", "version", "causes"].contains(&name) {
                return Err(format!("there is no field {:?}", clean(name)));
            }
            fields.insert(name.to_owned(), value.trim().to_owned());
        }
        let field = |name: &str| {
            fields.get(name).filter(|v| !v.is_empty()).cloned().ok_or_else(|| format!("{name} is missing"))
        };
        let id = field("id")?;
        let is_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if id.len() > 64 || !id.chars().all(is_id) {
            return Err("id: at most 64 lower-case letters, digits and -".to_owned());
        }
        let version = field("version")?.parse().map_err(|_| "version: it is a whole number".to_owned())?;
        let causes = fields.get("causes").map(String::as_str).unwrap_or_default();
        Ok(Self {
            id,
            title: clean(&field("title")?),
            version,
            causes: causes.split(',').map(|c| clean(c.trim())).filter(|c| !c.is_empty()).collect(),
            source,
            text: body.trim_start_matches('\n').to_owned(),
        })
    }

    /// The titles of its sections.
    pub fn sections(&self) -> Vec<&str> {
        self.text.lines().filter_map(|l| l.strip_prefix("## ")).map(str::trim).collect()
    }

    /// The first paragraph behind its title.
    pub fn summary(&self) -> String {
        let lines = self.text.lines().skip_while(|l| l.is_empty() || l.starts_with('#'));
        let first: Vec<&str> = lines.take_while(|l| !l.is_empty()).collect();
        clean(&first.join(" "))
    }

    /// How well it answers these words, each in lower case; 0 for not at all.
    fn score(&self, words: &[String]) -> usize {
        let (title, text) = (self.title.to_lowercase(), self.text.to_lowercase());
        let of = |word: &String| {
            let named = usize::from(self.id.contains(word.as_str())) * 8;
            let titled = usize::from(title.contains(word.as_str())) * 5;
            let caused = usize::from(self.causes.iter().any(|c| c.contains(word.as_str()))) * 5;
            named + titled + caused + text.matches(word.as_str()).count().min(3)
        };
        let scores: Vec<usize> = words.iter().map(of).collect();
        // One that has all words is before one that has many of one.
        let found = scores.iter().filter(|s| **s > 0).count();
        if found == 0 { 0 } else { scores.iter().sum::<usize>() + 100 * found }
    }
}

/// What a file of the folder looked like when it was read.
type Stamp = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// All runbooks.
#[derive(Debug)]
pub struct Runbooks {
    folder: Option<PathBuf>,
    known: Mutex<LoadedRunbooks>,
}

#[derive(Debug)]
struct LoadedRunbooks {
    looked: Instant,
    stamp: Stamp,
    all: Arc<Vec<Runbook>>,
    problems: Vec<String>,
}

impl Runbooks {
    /// The shipped ones and those of a folder, which must all be whole.
    pub fn open(folder: Option<PathBuf>) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError::new(format!("runbooks_dir: {why}"));
        let (mut stamp, mut own) = (Stamp::new(), Vec::new());
        if let Some(folder) = &folder {
            stamp = stamp_of(folder).map_err(|e| wrong(format!("{}: {e}", folder.display())))?;
            let (read, problems) = read(&stamp);
            if let Some(problem) = problems.into_iter().next() {
                return Err(wrong(problem));
            }
            own = read;
        }
        let all = Arc::new(merged(own).map_err(wrong)?);
        let known = Mutex::new(LoadedRunbooks { looked: Instant::now(), stamp, all, problems: Vec::new() });
        Ok(Self { folder, known })
    }

    /// All of them, by id.
    pub fn all(&self) -> Arc<Vec<Runbook>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut known);
        known.all.clone()
    }

    /// Files of the folder that cannot be used, and why.
    pub fn problems(&self) -> Vec<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).problems.clone()
    }

    /// The runbook of this id.
    pub fn find(&self, id: &str) -> Option<Runbook> {
        self.all().iter().find(|r| r.id == id).cloned()
    }

    /// The runbook for a cause: one of the operator's own before a shipped one.
    pub fn for_cause(&self, cause: &str) -> Option<String> {
        let all = self.all();
        let mut fitting: Vec<&Runbook> = all.iter().filter(|r| r.causes.iter().any(|c| c == cause)).collect();
        fitting.sort_by_key(|r| (r.source != "operator", r.id.as_str()));
        fitting.first().map(|r| r.id.clone())
    }

    /// Those that answer a query, the best first; all of them for an empty one.
    pub fn search(&self, query: &str, cause: Option<&str>) -> Vec<(usize, Runbook)> {
        let words: Vec<String> = query
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| w.len() > 1)
            .map(str::to_owned)
            .collect();
        let all = self.all();
        let fitting = all.iter().filter(|r| cause.is_none_or(|c| r.causes.iter().any(|own| own == c)));
        let scored = fitting.map(|r| (r.score(&words), r.clone()));
        let mut found: Vec<_> = scored.filter(|(score, _)| words.is_empty() || *score > 0).collect();
        found.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.id.cmp(&y.id)));
        found
    }

    fn look(&self, known: &mut LoadedRunbooks) {
        let Some(folder) = &self.folder else { return };
        if known.looked.elapsed() < LOOK_EVERY {
            return;
        }
        known.looked = Instant::now();
        let stamp = match stamp_of(folder) {
            Ok(stamp) if stamp == known.stamp => return,
            Ok(stamp) => stamp,
            Err(error) => {
                known.problems = vec![format!("the folder of runbooks cannot be read: {}", error.kind())];
                return;
            }
        };
        let (own, mut problems) = read(&stamp);
        known.stamp = stamp;
        match merged(own) {
            Ok(all) => known.all = Arc::new(all),
            Err(problem) => problems.push(problem),
        }
        if problems.is_empty() {
            info!(runbooks = known.all.len(), "the folder of runbooks changed");
        } else {
            warn!(?problems, "runbooks that cannot be used");
        }
        known.problems = problems;
    }
}

fn stamp_of(folder: &Path) -> std::io::Result<Stamp> {
    let mut stamp = Stamp::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, meta) = (entry.path(), std::fs::metadata(entry.path())?);
        if meta.is_file() && path.extension().is_some_and(|e| e == "md") {
            stamp.push((path, meta.modified().ok(), meta.len()));
        }
    }
    stamp.sort();
    Ok(stamp)
}

/// Reads files; what is wrong names the file, not its folder.
fn read(stamp: &Stamp) -> (Vec<Runbook>, Vec<String>) {
    let (mut own, mut problems) = (Vec::new(), Vec::new());
    if stamp.len() > RUNBOOKS_OWN {
        problems.push(format!("there are more than {RUNBOOKS_OWN} files; the rest is left out"));
    }
    for (path, _, bytes) in stamp.iter().take(RUNBOOKS_OWN) {
        let name = path.file_name().map(|n| clean(&n.to_string_lossy())).unwrap_or_default();
        let text = if *bytes > RUNBOOK_BYTES as u64 {
            Err(format!("it has more than {RUNBOOK_BYTES} bytes"))
        } else {
            std::fs::read_to_string(path).map_err(|e| e.to_string())
        };
        match text.and_then(|text| Runbook::parse(&text, "operator")) {
            Ok(runbook) => own.push(runbook),
            Err(why) => problems.push(format!("{name}: {why}")),
        }
    }
    (own, problems)
}

/// The shipped ones with those of the operator in their place, by id.
fn merged(own: Vec<Runbook>) -> Result<Vec<Runbook>, String> {
    let mut all = BTreeMap::new();
    for text in SHIPPED {
        let runbook = Runbook::parse(text, "shipped")?;
        all.insert(runbook.id.clone(), runbook);
    }
    let mut seen = std::collections::BTreeSet::new();
    for runbook in own {
        if !seen.insert(runbook.id.clone()) {
            return Err(format!("two files have the id {}", runbook.id));
        }
        all.insert(runbook.id.clone(), runbook);
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "---\nid: lag\ntitle: Our lag\nversion: 7\ncauses: consumer_slow\n---\n\n# Our lag\n\nCall Ann\u{202e}.\n\n## Steps\n";

    #[test]
    fn what_is_wrong_with_a_runbook_is_said() {
        for (text, named) in [
            ("# no front matter", "front matter"),
            ("---\nid: a\n", "does not end"),
            ("---\nid: a\ntitle: b\n---\n", "version"),
            ("---\nid: A b\ntitle: b\nversion: 1\n---\n", "id"),
            ("---\nid: a\ntitle: b\nversion: x\n---\n", "version"),
            ("---\nid: a\nowner: b\nversion: 1\n---\n", "owner"),
            ("---\nid a\n---\n", "name: value"),
        ] {
            let why = Runbook::parse(text, "operator").unwrap_err();
            assert!(why.contains(named), "{why}");
        }
        let own = Runbook::parse(OWN, "operator").unwrap();
        assert_eq!((own.version, own.sections(), own.summary()), (7, vec!["Steps"], "Call Ann.".to_owned()));
    }

    #[test]
    fn a_search_puts_what_has_all_words_first() {
        let runbooks = Runbooks::open(None).unwrap();
        assert_eq!(runbooks.all().len(), SHIPPED.len(), "no two have the same id");
        for (query, id) in [
            ("lag", "lag"),
            ("etcd NOSPACE quota", "etcd-slow-or-near-quota"),
            ("rebalance storm", "rebalance-storm"),
            ("S3 slow", "s3-slow-or-failing"),
            ("certificate expired", "credential-expiry"),
            ("hot key", "hot-partition"),
            ("hanging transaction read_committed", "open-transaction"),
            ("broker killed", "broker-lost"),
            ("retention overtakes consumer", "retention-overtaking-a-group"),
        ] {
            let found = runbooks.search(query, None);
            assert_eq!(found.first().map(|(_, r)| r.id.as_str()), Some(id), "{query}");
        }
        assert!(runbooks.search("xyzzy", None).is_empty());
        assert_eq!(runbooks.search("", Some("hot_partition")).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_of_the_operators_own_takes_precedence_and_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.md"), OWN).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no runbook").unwrap();
        let runbooks = Runbooks::open(Some(folder.path().to_owned())).unwrap();
        let lag = runbooks.find("lag").unwrap();
        assert_eq!((lag.version, lag.source), (7, "operator"));
        assert_eq!(runbooks.for_cause("consumer_slow").as_deref(), Some("lag"));
        std::fs::write(folder.path().join("a.md"), OWN.replace("version: 7", "version: 18")).unwrap();
        std::fs::write(folder.path().join("bad.md"), "nothing").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(runbooks.find("lag").unwrap().version, 18);
        assert_eq!(runbooks.problems(), ["bad.md: it does not begin with front matter (---)"]);
        let why = Runbooks::open(Some(folder.path().to_owned())).unwrap_err().to_string();
        assert!(why.contains("runbooks_dir") && why.contains("bad.md"), "{why}");
        assert!(Runbooks::open(Some(folder.path().join("none"))).is_err());
    }
}
