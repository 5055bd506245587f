//! The program itself: what it says at the start, and what is left after a kill.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are outside of what clippy calls a test"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use strandline_storage::store::{Secret, StoreUrl, open_backend};
use strandline_storage::{ObjectKey, Payload, Store, StoreConfig};

const BUCKET: &str = "test-bucket";

/// The program, killed when dropped.
struct Process {
    child: Child,
    url: String,
    admin: String,
}

impl Process {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strandline-dev-s3"))
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--bucket", BUCKET])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let word = |after: &str| {
            let (_, rest) = line.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {line:?}"));
            rest.split_whitespace().next().unwrap().to_owned()
        };
        let (url, admin) = (word("serving S3 at "), word("faults at http://"));
        Self { child, url, admin: admin.trim_end_matches("/faults").to_owned() }
    }

    fn store(&self) -> Arc<dyn Store> {
        let config = StoreConfig {
            endpoint: Some(self.url.clone()),
            access_key_id: Some("strandline".into()),
            secret_access_key: Some(Secret::new("strandline-dev")),
            allow_http: true,
            ..StoreConfig::new(StoreUrl::S3 { bucket: BUCKET.into(), prefix: String::new() })
        };
        open_backend(&config).unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Status and body of a request to the admin port.
    fn admin(&self, method: &str, path: &str, body: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split_whitespace().nth(1).unwrap().to_owned(), body.to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("strandline-dev-s3-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

fn refusal(flags: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_strandline-dev-s3")).args(flags).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_kill() {
    let folder = folder("kill");
    let data = folder.to_str().unwrap();
    let mut answered = Vec::new();
    for round in 0..3 {
        let process = Process::start(&["--data", data]);
        let store = process.store();
        for (key, bytes) in &answered {
            assert_eq!(store.get(key, None).await.unwrap(), *bytes, "round {round}");
        }
        let writers = futures::future::join_all((0..8).map(|writer| {
            let store = Arc::clone(&store);
            async move {
                let mut done = Vec::new();
                for number in 0.. {
                    let key = ObjectKey::parse(&format!("wal/{round}/{writer}/{number}")).unwrap();
                    let bytes = Bytes::from(vec![u8::try_from(writer).unwrap(); 10_000 + number]);
                    if store.put(&key, bytes.clone().into()).await.is_err() {
                        break;
                    }
                    done.push((key, bytes));
                }
                done
            }
        }));
        let killer = async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            process.kill();
        };
        let (done, ()) = futures::future::join(writers, killer).await;
        let done = done.concat();
        assert!(!done.is_empty(), "round {round}: nothing was written before the kill");
        answered.extend(done);
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_port_in_use_is_said_in_one_sentence() {
    let process = Process::start(&["--memory"]);
    let address = process.url.trim_start_matches("http://");
    let refused = refusal(&["--memory", "--listen", address]);
    let expected = format!("strandline-dev-s3: cannot listen on {address}: another process listens there\n");
    assert_eq!(refused, expected);
}

#[test]
fn a_folder_is_served_by_one_process() {
    let folder = folder("locked");
    let data = folder.to_str().unwrap();
    let process = Process::start(&["--data", data]);
    let refused = refusal(&["--listen", "127.0.0.1:0", "--data", data]);
    assert!(refused.contains("is served by another process"), "{refused}");
    process.kill();
    Process::start(&["--data", data]).kill();
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_be_served_is_refused() {
    let refused = refusal(&["--memory", "--listen", "127.0.0.1:0", "--bucket", "Not_A_Bucket"]);
    assert!(refused.contains("\"Not_A_Bucket\" is no name for a bucket"), "{refused}");
    let refused = refusal(&["--listen", "127.0.0.1:0", "--data", "/proc/nowhere"]);
    assert!(refused.contains("cannot use the folder /proc/nowhere"), "{refused}");
    let tls = ["--tls-cert", "/nonexistent/cert", "--tls-key", "/nonexistent/key"];
    let refused = refusal(&[&["--memory", "--listen", "127.0.0.1:0"], &tls[..]].concat());
    assert!(refused.contains("cannot serve TLS with /nonexistent/cert"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_controlled_on_the_admin_port() {
    let process = Process::start(&["--memory"]);
    let store = process.store();
    let key = ObjectKey::parse("a").unwrap();
    assert_eq!(process.admin("PUT", "/faults", r#"{"deny": true, "operations": ["put"]}"#).0, "200");
    assert!(process.admin("GET", "/faults", "").1.contains(r#""deny":true"#));
    assert!(store.put(&key, Payload::default()).await.is_err());
    assert_eq!(process.admin("DELETE", "/faults", "").0, "200");
    store.put(&key, Payload::default()).await.unwrap();
    let (status, what) = process.admin("PUT", "/faults", r#"{"error_rate": 7}"#);
    assert_eq!((status.as_str(), what.contains("error_rate")), ("400", true));
    let (status, what) = process.admin("PUT", "/faults", r#"{"eror_rate": 0.1}"#);
    assert_eq!((status.as_str(), what.contains("eror_rate")), ("400", true));
    let stats = process.admin("GET", "/stats", "").1;
    assert!(stats.contains(r#""put":2"#) && stats.contains(r#""faults":1"#), "{stats}");
}
