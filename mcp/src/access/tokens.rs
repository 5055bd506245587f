//! A file of principals, read again when it changes.
//!
//! ```toml
//! [[principal]]
//! name = "oncall-bot"
//! token_sha256 = "…"                 # printf %s "$TOKEN" | sha256sum
//! scopes = ["read", "topology"]
//! topic_prefixes = ["team-a."]       # absent: all
//! group_prefixes = ["team-a."]
//! expires = "2027-01-01T00:00:00Z"
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Prefixes, Principal, Refusal, Scope, Seal, Sealed, sha256_hex};
use crate::clock::parse_rfc3339;
use crate::config::ConfigError;

/// How often it is looked whether the file changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Principals that a file may have.
const MAX_PRINCIPALS: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    principal: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    token_sha256: String,
    scopes: Vec<String>,
    topic_prefixes: Option<Vec<String>>,
    group_prefixes: Option<Vec<String>>,
    expires: Option<String>,
}

/// The principals of a file.
#[derive(Debug)]
pub struct TokensFile {
    path: PathBuf,
    seal: Seal,
    known: RwLock<Vec<(Sealed, Arc<Principal>)>>,
    looked: Mutex<(Instant, Option<(SystemTime, u64)>)>,
}

impl TokensFile {
    /// Reads the file, which must be whole.
    pub fn open(path: PathBuf, seal: Seal) -> Result<Self, ConfigError> {
        let (stamp, known) = (stamp(&path), read(&path, &seal)?);
        Ok(Self { path, seal, known: RwLock::new(known), looked: Mutex::new((Instant::now(), stamp)) })
    }

    /// Whose token this is. Every entry is compared, so the time says nothing about which.
    pub fn find(&self, token: &str, now_ms: i64) -> Result<Arc<Principal>, Refusal> {
        self.look();
        let hash = sha256_hex(token.as_bytes());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (sealed, principal) in known.iter() {
            if sealed.is(hash.as_bytes()) {
                found = Some(principal.clone());
            }
        }
        let principal = found.ok_or(Refusal::Unknown)?;
        match principal.expires_at_ms {
            Some(end) if end <= now_ms => Err(Refusal::Expired),
            _ => Ok(principal),
        }
    }

    /// The names of the principals, and when the first of their tokens ends.
    pub fn next_expiry_ms(&self) -> Option<i64> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(|(_, p)| p.expires_at_ms).min()
    }

    /// Reads the file again if it changed. A file that cannot be read changes nothing, loudly.
    fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() < LOOK_EVERY {
            return;
        }
        looked.0 = Instant::now();
        let now = stamp(&self.path);
        if now == looked.1 {
            return;
        }
        looked.1 = now;
        match read(&self.path, &self.seal) {
            Ok(known) => {
                info!(principals = known.len(), "the tokens file changed");
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
            }
            Err(error) => {
                warn!(%error, "the tokens file changed and cannot be used; the old one still counts");
            }
        }
    }
}

fn stamp(path: &PathBuf) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &PathBuf, seal: &Seal) -> Result<Vec<(Sealed, Arc<Principal>)>, ConfigError> {
    let wrong = |why: String| ConfigError::new(format!("tokens_file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()))?;
    if file.principal.len() > MAX_PRINCIPALS {
        return Err(wrong(format!("at most {MAX_PRINCIPALS} principals")));
    }
    let mut known: Vec<(Sealed, Arc<Principal>)> = Vec::new();
    for entry in file.principal {
        let wrong = |why: &str| wrong(format!("principal {:?}: {why}", entry.name));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if entry.name.is_empty() || entry.name.len() > 100 || !entry.name.chars().all(is_name) {
            return Err(wrong("a name has 1 to 100 letters, digits, '.', '_', '-' or '@'"));
        }
        if known.iter().any(|(_, p)| *p.name == *entry.name) {
            return Err(wrong("the name is given twice"));
        }
        let hash = entry.token_sha256.to_ascii_lowercase();
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong("token_sha256 has 64 hex digits"));
        }
        let scopes = entry.scopes.iter().map(|s| Scope::parse(s).ok_or(s));
        let scopes =
            scopes.collect::<Result<Vec<_>, _>>().map_err(|s| wrong(&format!("there is no scope {s:?}")))?;
        let expires = entry.expires.as_deref().map(|t| parse_rfc3339(t).ok_or(t));
        let expires_at_ms =
            expires.transpose().map_err(|t| wrong(&format!("{t:?} is no time, as 2027-01-01T00:00:00Z")))?;
        let prefixes = |given: Option<Vec<String>>| given.map_or(Prefixes::All, Prefixes::Of);
        let principal = Principal {
            name: entry.name.as_str().into(),
            scopes,
            topics: prefixes(entry.topic_prefixes),
            groups: prefixes(entry.group_prefixes),
            expires_at_ms,
        };
        known.push((seal.seal(hash.as_bytes()), Arc::new(principal)));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, token: &str, more: &str) -> String {
        let hash = sha256_hex(token.as_bytes());
        format!("[[principal]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nscopes = [\"read\"]\n{more}\n")
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_counts_without_a_restart_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(
            &path,
            entry("a", "token-a", "topic_prefixes = [\"x.\"]\nexpires = \"2027-01-01T00:00:00Z\""),
        )
        .unwrap();
        let tokens = TokensFile::open(path.clone(), Seal::new(&[1; 32])).unwrap();
        let now = parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let a = tokens.find("token-a", now).unwrap();
        assert!(
            a.topics.is_limited() && !a.groups.is_limited() && a.has(Scope::Read) && !a.has(Scope::Audit)
        );
        assert_eq!(
            tokens.find("token-a", parse_rfc3339("2027-01-01T00:00:00Z").unwrap()),
            Err(Refusal::Expired)
        );
        assert_eq!(tokens.find("token-b", now), Err(Refusal::Unknown));
        std::fs::write(&path, entry("b", "token-b", "")).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(tokens.find("token-a", now), Err(Refusal::Unknown));
        assert_eq!(&*tokens.find("token-b", now).unwrap().name, "b");
        std::fs::write(&path, "[[principal]]\nname = \"c\"").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert!(tokens.find("token-b", now).is_ok(), "the old file still counts");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_and_never_the_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        for (text, why) in [
            (entry("a b", "t", ""), "letters"),
            (entry("a", "t", "expires = \"soon\""), "soon"),
            (entry("a", "t", "wrong = 1"), "wrong"),
            (entry("a", "t", "") + &entry("a", "u", ""), "twice"),
            (entry("a", "t", "").replace("\"read\"", "\"write\""), "write"),
            ("[[principal]]\nname = \"a\"\ntoken_sha256 = \"abc\"\nscopes = []".to_owned(), "64 hex"),
        ] {
            std::fs::write(&path, text).unwrap();
            let said = read(&path, &Seal::new(&[1; 32])).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
