//! `etcdctl`, as a person runs it.

use std::io::Write;
use std::process::{Command, Stdio};

/// What `etcdctl` says of the etcd, or what answers like one, on these ports; an error is what it
/// complains of. It reads `input`, if there is any.
pub fn etcdctl(ports: &[u16], args: &[&str], input: Option<&[u8]>) -> Result<String, String> {
    let endpoints: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl runs: is the package etcd-client installed?");
    if let (Some(mut line), Some(input)) = (child.stdin.take(), input) {
        // If it does not read to the end it says why.
        let _ = line.write_all(input);
    }
    let done = child.wait_with_output().expect("etcdctl ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}
