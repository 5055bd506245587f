//! The observer beside a real stack that something is done to: the cause that it names first is
//! what was done.
//!
//! Each test has a stack of its own; they take turns. What needs minutes is ignored here and run by
//! `make test-mcp`.

mod cluster;
mod dev;
mod groups;
mod plans;

use std::time::Duration;

use serde_json::{Value, json};
use strandline_tests::observer::Observer;
use tokio::time::{Instant, sleep};

/// How long it may take until a cause is seen: rates need ten seconds, leases two, and the machine
/// may be busy.
const SEEN: Duration = Duration::from_mins(2);
/// What is right must stay right for so long.
const STAYS: Duration = Duration::from_secs(3);

/// The code of the cause that is named first; `healthy` or `unknown` if there is none.
fn first(report: &Value) -> String {
    let cause = report["root_causes"][0]["code"].as_str();
    let verdict = if report["severity"] == "ok" { "healthy" } else { "unknown" };
    cause.unwrap_or(verdict).to_owned()
}

/// Waits until a diagnosis names this cause first, and goes on to.
async fn names_first(observer: Observer, tool: &str, arguments: Value, expected: &str) -> Value {
    let (until, mut since) = (Instant::now() + SEEN, None);
    let mut named: Vec<String> = Vec::new();
    loop {
        let report = observer.call(tool, arguments.clone()).await;
        let code = first(&report);
        if code == expected {
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() >= STAYS {
                return report;
            }
        } else {
            since = None;
        }
        if named.last() != Some(&code) {
            named.push(code);
        }
        assert!(
            Instant::now() < until,
            "{tool} {arguments} names {named:?} first instead of {expected}: {report:#}"
        );
        sleep(Duration::from_millis(250)).await;
    }
}

/// The same of a group.
async fn group_names_first(observer: Observer, group: &str, expected: &str) -> Value {
    names_first(observer, "diagnose_group_lag", json!({"group_id": group}), expected).await
}
