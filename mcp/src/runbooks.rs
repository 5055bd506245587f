//! Runbooks: Markdown that is shipped with the server, and a folder of the operator's own. They are read once, at start.

use std::path::Path;

use tracing::warn;

/// Runbooks of the operator's own at most.
const MAX_OWN: usize = 100;
/// The longest runbook, in bytes: it must fit into an answer.
const MAX_BYTES: usize = 32 * 1024;

/// What is shipped.
const SHIPPED: &[&str] = &[
    include_str!("../runbooks/broker-lost.md"),
    include_str!("../runbooks/credential-expiry.md"),
    include_str!("../runbooks/etcd-slow-or-near-quota.md"),
    include_str!("../runbooks/hot-partition.md"),
    include_str!("../runbooks/lag.md"),
    include_str!("../runbooks/rebalance-storm.md"),
    include_str!("../runbooks/retention-overtaking-a-group.md"),
    include_str!("../runbooks/s3-slow-or-failing.md"),
];

/// One runbook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runbook {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its version.
    pub version: String,
    /// Whether it was shipped; else it is the operator's own.
    pub shipped: bool,
    /// Its text, without the head.
    pub markdown: String,
}

/// Every runbook, by id. One of the operator's own takes the place of a shipped one with its id.
#[derive(Clone, Debug, Default)]
pub struct Runbooks {
    books: Vec<Runbook>,
}

impl Runbooks {
    /// The shipped ones and those of a folder. A file that cannot be used is left out, loudly.
    pub fn load(own: Option<&Path>) -> Self {
        let mut books: Vec<Runbook> = SHIPPED.iter().filter_map(|text| parse(text, None)).collect();
        for book in own.map(read_folder).unwrap_or_default() {
            books.retain(|known| known.id != book.id);
            books.push(book);
        }
        books.sort_by(|a, b| a.id.cmp(&b.id));
        Self { books }
    }

    /// Every runbook.
    pub fn all(&self) -> &[Runbook] {
        &self.books
    }

    /// The runbook with this id.
    pub fn get(&self, id: &str) -> Option<&Runbook> {
        self.books.iter().find(|b| b.id == id)
    }

    /// Those that have words of the query, the best first, with how well each fits: words in the title count most.
    pub fn search(&self, query: &str) -> Vec<(usize, &Runbook)> {
        let words: Vec<String> =
            query.split_whitespace().map(str::to_lowercase).filter(|w| w.len() > 1).collect();
        let score = |book: &Runbook| {
            let (title, text) =
                (format!("{} {}", book.id, book.title).to_lowercase(), book.markdown.to_lowercase());
            let of = |word: &String| {
                text.matches(word.as_str()).count().min(5) + 10 * usize::from(title.contains(word.as_str()))
            };
            words.iter().map(of).sum::<usize>()
        };
        let mut found: Vec<(usize, &Runbook)> =
            self.books.iter().map(|b| (score(b), b)).filter(|(s, _)| *s > 0).collect();
        found.sort_by_key(|(score, book)| (std::cmp::Reverse(*score), &book.id));
        found
    }
}

fn read_folder(path: &Path) -> Vec<Runbook> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, path = %path.display(), "runbooks_dir cannot be read");
            return Vec::new();
        }
    };
    let mut files: Vec<_> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "md"))
        .collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let stem = file.file_stem()?.to_str()?.to_owned();
        let text = std::fs::read_to_string(file).ok().filter(|t| t.len() <= MAX_BYTES);
        let book = text.and_then(|t| parse(&t, Some(&stem)));
        if book.is_none() {
            warn!(file = %file.display(), "a runbook cannot be used: not UTF-8, too long, or an id of other than letters, digits and '-'");
        }
        book
    };
    files.iter().take(MAX_OWN).filter_map(read).collect()
}

/// A runbook from its text: a head between lines of `---`, which one of the operator's own may leave out.
fn parse(text: &str, own_id: Option<&str>) -> Option<Runbook> {
    let (head, markdown) = match text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")) {
        Some((head, markdown)) => (head, markdown),
        None => ("", text),
    };
    let of = |key: &str| {
        head.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(|v| v.trim().to_owned())
    };
    let id = of("id").or_else(|| own_id.map(str::to_owned))?;
    let is_id =
        !id.is_empty() && id.len() <= 100 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    is_id.then(|| Runbook {
        title: of("title").unwrap_or_else(|| id.clone()),
        version: of("version").unwrap_or_else(|| "1".to_owned()),
        shipped: own_id.is_none(),
        markdown: markdown.to_owned(),
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_runbook_says_what_a_runbook_must() {
        let books = Runbooks::load(None);
        assert_eq!(books.all().len(), SHIPPED.len());
        for book in books.all() {
            for part in [
                "## Evidence to collect",
                "## How to read it",
                "## Actions and their risks",
                "## What not to do",
                "Verify",
            ] {
                assert!(book.markdown.contains(part), "{} has no {part}", book.id);
            }
            assert!(book.markdown.len() < MAX_BYTES);
            // What it names is there.
            for word in book.markdown.split('`').skip(1).step_by(2) {
                let is_tool = [
                    "list_",
                    "get_",
                    "describe_",
                    "check_",
                    "diagnose_",
                    "query_",
                    "recent_",
                    "explain_",
                    "fetch_",
                ]
                .iter()
                .any(|p| word.starts_with(p));
                let known = crate::tools::Tool::ALL.iter().any(|t| t.spec().name == word);
                assert!(!is_tool || known, "{} names {word}, which is no tool", book.id);
            }
        }
    }

    #[test]
    fn the_best_match_comes_first() {
        let books = Runbooks::load(None);
        for (query, best) in [
            ("consumer lag", "lag"),
            ("S3 slow", "s3-slow-or-failing"),
            ("etcd quota", "etcd-slow-or-near-quota"),
            ("rebalance", "rebalance-storm"),
            ("token expired", "credential-expiry"),
        ] {
            assert_eq!(books.search(query)[0].1.id, best, "{query}");
        }
        assert!(books.search("zeppelin").is_empty());
    }

    #[test]
    fn a_runbook_of_the_operators_own_takes_the_place_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lag.md"), "# Call Ana\n").unwrap();
        std::fs::write(folder.path().join("we!rd.md"), "x").unwrap();
        std::fs::write(folder.path().join("notes.txt"), "x").unwrap();
        let books = Runbooks::load(Some(folder.path()));
        assert_eq!(books.all().len(), SHIPPED.len());
        let lag = books.get("lag").unwrap();
        assert!(!lag.shipped && lag.markdown.contains("Ana"));
    }
}
