//! The S3 server, and what can go wrong with it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{BUCKET, READY};
use crate::http;
use crate::process::{Nest, Process, built, eventually};

/// The S3 server.
#[derive(Debug)]
pub struct S3 {
    pub(super) port: u16,
    pub(super) admin_port: u16,
    pub(super) folder: Option<PathBuf>,
    pub(super) process: Option<Process>,
}

impl S3 {
    pub(super) async fn start(&mut self, nest: &Nest) {
        assert!(self.process.as_mut().is_none_or(|p| !p.is_running()), "the S3 server runs already");
        let args = [
            ("--listen", format!("127.0.0.1:{}", self.port)),
            ("--admin", format!("127.0.0.1:{}", self.admin_port)),
            ("--access-key", "test".to_owned()),
            ("--secret-key", "test-secret".to_owned()),
            ("--bucket", BUCKET.to_owned()),
        ];
        let mut args: Vec<OsString> = args.into_iter().flat_map(|(k, v)| [k.into(), v.into()]).collect();
        match &self.folder {
            None => args.push("--memory".into()),
            Some(path) => args.extend(["--data".into(), path.clone().into_os_string()]),
        }
        self.process =
            Some(nest.start("s3", &built("strandline-dev-s3"), &args).expect("the S3 server starts"));
        let port = self.admin_port;
        eventually("the S3 server answers", READY, async || http::get(port, "/stats").await.ok().map(|_| ()))
            .await;
    }

    /// From now on this goes wrong: a plan as the S3 server's admin port takes it.
    pub async fn faults(&self, plan: serde_json::Value) {
        let (status, said) = http::request(self.admin_port, "PUT", "/faults", &plan.to_string())
            .await
            .expect("the S3 server's admin port answers");
        assert_eq!(status, 200, "the plan {plan} is not taken: {said}");
    }

    /// Nothing goes wrong any more.
    pub async fn heal(&self) {
        self.faults(serde_json::json!({})).await;
    }

    /// Counts of requests by operation.
    pub async fn stats(&self) -> serde_json::Value {
        let (_, text) = http::get(self.admin_port, "/stats").await.expect("the admin port answers");
        serde_json::from_str(&text).expect("statistics are JSON")
    }

    /// Sends it a signal, by name.
    pub fn signal(&mut self, signal: &str) {
        self.process.as_mut().expect("it was started").signal(signal);
    }

    /// Ends it where it stands. Only objects in a folder are there again later.
    pub fn kill9(&mut self) {
        self.process.as_mut().expect("it was started").kill9();
    }

    /// The files of all objects whose key contains `part`, in the order of their names.
    pub fn files(&self, part: &str) -> Vec<PathBuf> {
        let root = self.folder.as_ref().expect("the plan keeps objects in a folder");
        let mut found = Vec::new();
        let mut folders = vec![root.join(BUCKET)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_string_lossy().contains(part) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}
