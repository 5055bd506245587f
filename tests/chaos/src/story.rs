//! What has happened so far: said as it happens, and kept for whoever has to understand a
//! violation.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strandline_tests::history::History;
use strandline_tests::surroundings::now_ms;

use crate::Options;

/// Lines that are kept for the report.
const MAX_LINES: usize = 2_000;

/// The story. Shared by everybody who adds to it.
#[derive(Debug, Default)]
pub(crate) struct Story {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    began: Option<Instant>,
    folder: Option<PathBuf>,
    lines: VecDeque<String>,
    faults: u64,
    /// Of this round, by topic.
    histories: Vec<(String, History)>,
}

impl Story {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, folder: &Path) {
        let mut inner = self.lock();
        inner.began = Some(Instant::now());
        inner.folder = Some(folder.to_owned());
    }

    pub(crate) fn say(&self, what: &str) {
        let mut inner = self.lock();
        let seconds = inner.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let line = format!("{} {seconds:9.3} s  {what}", now_ms());
        println!("{line}");
        inner.lines.push_back(line);
        if inner.lines.len() > MAX_LINES {
            inner.lines.pop_front();
        }
    }

    pub(crate) fn fault(&self, what: &str) {
        self.lock().faults += 1;
        self.say(what);
    }

    pub(crate) fn faults(&self) -> u64 {
        self.lock().faults
    }

    /// A round begins, with these histories.
    pub(crate) fn watch(&self, histories: Vec<(String, History)>) {
        self.lock().histories = histories;
    }

    /// Writes down everything that is known, beside the logs. Gives the folder.
    pub(crate) fn keep(&self, options: &Options, what: &str) -> Option<PathBuf> {
        let inner = self.lock();
        let folder = inner.folder.clone()?;
        let mut text = format!("seed {}\n{options:?}\n\n{what}\n", options.seed);
        for (topic, history) in &inner.histories {
            let anomalies: Vec<(&str, String)> =
                history.lock().anomalies.iter().map(|a| (a.name, a.what.clone())).collect();
            for (name, what) in &anomalies {
                let _ = writeln!(text, "\n{topic}: {name}: {what}");
                for line in History::named_in(what).map(|mark| history.story_of(mark)).unwrap_or_default() {
                    let _ = writeln!(text, "    {line}");
                }
            }
            let _ = writeln!(text, "\n{topic}: errors that producers got over: {:?}", history.lock().errors);
        }
        text.push_str("\nWhat happened:\n");
        for line in &inner.lines {
            let _ = writeln!(text, "{line}");
        }
        let path = folder.join("verdict.txt");
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("{} cannot be written: {error}", path.display());
        }
        Some(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use strandline_tests::history::Mark;
    use strandline_tests::process::Nest;

    use super::*;

    #[test]
    fn what_is_kept_says_what_happened_to_the_record_in_question() {
        let nest = Nest::new().expect("a folder for the test");
        let story = Story::default();
        let second = Duration::from_secs(1);
        let options = Options { seed: 77, duration: second, round: second, older: None };
        assert_eq!(story.keep(&options, "before there is a cluster"), None);
        story.begin(nest.folder());
        story.fault("kill -9 broker 2");
        let history = History::default();
        let mark = Mark { producer: 1, partition: 3, counter: 40 };
        history.event(mark, 2, "acknowledged at 12");
        history.event(Mark { producer: 9, ..mark }, 1, "of somebody else");
        history.anomaly("lost write", format!("{mark} was acknowledged at 12"));
        story.watch(vec![("main-1".to_owned(), history)]);
        let folder = story.keep(&options, "it is broken").expect("there is a folder");
        let text = std::fs::read_to_string(folder.join("verdict.txt")).expect("it is written");
        for said in [
            "seed 77",
            "it is broken",
            "kill -9 broker 2",
            "lost write",
            "records 40 to 41: acknowledged at 12",
        ] {
            assert!(text.contains(said), "{said:?} is not in {text}");
        }
        assert!(!text.contains("somebody else"), "{text}");
        assert_eq!(story.faults(), 1);
    }
}
