//! The audit log: one JSON line per call, denied ones too.
//!
//! Lines go through a bounded queue to one writer. When there is no room they are dropped, counted
//! and shown; a call never waits for its line. The newest lines are kept in memory for those who
//! may see them.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::config::AuditTarget;
use crate::limits::{AUDIT_KEPT, AUDIT_QUEUE};
use crate::metrics::Metrics;

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditLine {
    /// When it came, RFC 3339.
    pub time: String,
    /// Names the call in answer, log and audit.
    pub request_id: String,
    /// Who called; `None` if it was not let in.
    pub principal: Option<String>,
    /// The client as it names itself.
    pub client: Option<String>,
    /// The address that it called from.
    pub peer: Option<String>,
    /// What was asked for: `tools/call`, `resources/read`, …
    pub method: String,
    /// The tool, resource or prompt.
    pub target: Option<String>,
    /// The first 16 hex digits of the SHA-256 of the arguments.
    pub arguments_hash: Option<String>,
    /// The topic that the arguments name.
    pub topic: Option<String>,
    /// The group that the arguments name.
    pub group: Option<String>,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// Bytes of the answer.
    pub bytes: usize,
    /// How long it took, in ms.
    pub duration_ms: u64,
}

/// Takes audit lines. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: mpsc::Sender<AuditLine>,
    kept: Arc<Mutex<VecDeque<AuditLine>>>,
    metrics: Metrics,
}

/// Writes them.
#[derive(Debug)]
pub struct AuditWriter {
    queue: mpsc::Receiver<AuditLine>,
    target: AuditTarget,
    metrics: Metrics,
}

/// The two ends of the audit log.
pub fn audit(target: AuditTarget, metrics: Metrics) -> (Audit, AuditWriter) {
    let (sender, receiver) = mpsc::channel(AUDIT_QUEUE);
    let audit = Audit { queue: sender, kept: Arc::default(), metrics: metrics.clone() };
    (audit, AuditWriter { queue: receiver, target, metrics })
}

impl Audit {
    /// Takes a line.
    pub fn note(&self, line: AuditLine) {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= AUDIT_KEPT {
                kept.pop_front();
            }
            kept.push_back(line.clone());
        }
        if self.queue.try_send(line).is_err() {
            self.metrics.audit_dropped.inc();
        }
    }

    /// The newest lines, the newest first.
    pub fn recent(&self) -> Vec<AuditLine> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.metrics.audit_dropped.get()
    }
}

impl AuditWriter {
    /// Writes lines until every [`Audit`] is gone.
    pub async fn run(mut self) {
        let mut lines = Vec::new();
        while self.queue.recv_many(&mut lines, AUDIT_QUEUE).await > 0 {
            let count = lines.len();
            let text = lines.drain(..).map(|line| text_of(&line)).collect::<String>();
            if let Err(error) = self.write(&text).await {
                error!(%error, lines = count, "audit lines cannot be written");
                self.metrics.audit_dropped.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
                // A full disk is not helped by trying at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn write(&self, text: &str) -> std::io::Result<()> {
        match &self.target {
            AuditTarget::Off => Ok(()),
            AuditTarget::Stderr => std::io::stderr().lock().write_all(text.as_bytes()),
            AuditTarget::File(path) => {
                let mut options = tokio::fs::OpenOptions::new();
                // Opened for each batch, so that the file may be moved away. It names people: for
                // the owner only.
                let mut file = options.create(true).append(true).mode(0o600).open(path).await?;
                file.write_all(text.as_bytes()).await?;
                file.flush().await
            }
        }
    }
}

fn text_of(line: &AuditLine) -> String {
    match serde_json::to_string(line) {
        Ok(text) => text + "\n",
        Err(error) => {
            warn!(%error, "an audit line cannot be written");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> AuditLine {
        AuditLine { request_id: n.to_string(), outcome: "ok".to_owned(), ..AuditLine::default() }
    }

    #[tokio::test]
    async fn lines_without_room_are_counted_and_the_newest_are_kept() {
        let (audit, writer) = audit(AuditTarget::Off, Metrics::new().unwrap());
        for n in 0..AUDIT_QUEUE + 3 {
            audit.note(line(n));
        }
        assert_eq!(audit.dropped(), 3);
        let recent = audit.recent();
        assert_eq!(recent.len(), AUDIT_KEPT);
        assert_eq!(recent[0].request_id, (AUDIT_QUEUE + 2).to_string());
        drop(audit);
        writer.run().await;
    }

    #[tokio::test]
    async fn a_file_gets_one_json_line_per_call() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let (audit, writer) = audit(AuditTarget::File(path.clone()), Metrics::new().unwrap());
        audit.note(AuditLine { client: Some("a\"b".to_owned()), ..line(1) });
        audit.note(line(2));
        drop(audit);
        writer.run().await;
        let text = std::fs::read_to_string(path).unwrap();
        let parsed: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(parsed[0]["client"], "a\"b");
        assert_eq!(parsed[1]["request_id"], "2");
    }
}
