//! A cluster for clients in other languages: etcd, the S3 server and some brokers, each in a zone
//! of its own.
//!
//! ```text
//! strandline-test-cluster [BROKERS] [--FLAG VALUE …]      flags are the brokers'
//! ```
//!
//! It prints one line of JSON when everything is ready, then takes commands from its standard
//! input, one on a line, and answers each with a line: `restart N` asks broker N to leave and
//! starts it again, `kill N` kills it with -9 and starts it again. It ends, and everything with it,
//! when its input ends.

use std::io::{BufRead, Write};

use serde_json::json;
use strandline_tests::cluster::{Cluster, Plan};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let count = args.next_if(|a| !a.starts_with("--")).map_or(3, |n| n.parse().expect("a number of brokers"));
    let mut plan = Plan { brokers: 0, ..Plan::new(0) };
    while let Some(name) = args.next() {
        let name = name.strip_prefix("--").expect("a flag begins with two dashes").to_owned();
        let value = args.next().expect("a flag has a value");
        plan = plan.flag(name.leak(), value);
    }
    let mut cluster = Cluster::start(plan).await;
    for i in 0..count {
        let broker = cluster.add_broker(i + 1).await;
        cluster.set_flag(broker, "zone", format!("zone-{}", i + 1));
        cluster.restart(broker);
    }
    cluster.wait_all_ready().await;
    say(&json!({"brokers": cluster.addresses(), "folder": cluster.folder()}).to_string());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("commands are text");
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            [] => continue,
            ["restart", n] if index(n, &cluster).is_some() => {
                let i = index(n, &cluster).unwrap_or_default();
                let status = cluster.stop(i).await;
                cluster.restart(i);
                cluster.wait_ready(i).await;
                if status.success() { "ok".to_owned() } else { format!("it ended with {status}") }
            }
            ["kill", n] if index(n, &cluster).is_some() => {
                let i = index(n, &cluster).unwrap_or_default();
                cluster.kill9(i);
                cluster.restart(i);
                cluster.wait_ready(i).await;
                "ok".to_owned()
            }
            _ => format!("{line:?} is no command"),
        };
        say(&answer);
    }
}

/// The broker that is meant; brokers count from 1, as in their logs.
fn index(word: &str, cluster: &Cluster) -> Option<usize> {
    word.parse::<usize>().ok().filter(|n| (1..=cluster.len()).contains(n)).map(|n| n - 1)
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    // Whoever listened may be gone; then the input ends too.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
