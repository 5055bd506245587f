//! `etcdctl`, as a person runs it.

use std::process::Command;

/// What `etcdctl` says of the etcd, or what answers like one, on this port; an error is what it complains of.
pub fn etcdctl(port: u16, args: &[&str]) -> Result<String, String> {
    let done = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=127.0.0.1:{port}"))
        .args(args)
        .output()
        .expect("etcdctl runs: is the package etcd-client installed?");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}
