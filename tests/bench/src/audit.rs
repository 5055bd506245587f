//! How long a quick audit takes of a cluster with very many objects.

use std::time::Instant;

use strandline_tests::client::Client;

use crate::NO_BUDGET;
use crate::load::kib_batch;
use crate::report::{Bound, Report};
use crate::stack::Stack;

/// Connections that write, each with one record at a time: about as many PUTs are under way.
const WRITERS: usize = 64;
/// What it may take, in seconds.
const MOST_S: f64 = 60.0;

/// Writes `objects` objects of a record each, and has them audited.
pub async fn figures(stack: &mut Stack, report: &mut Report, objects: u64) {
    let never = ["--merge-interval-ms", "86400000", "--flush-bytes", "1024", "--puts-in-flight", "64"];
    let (writer, _) = stack.broker(1, "audit", &[NO_BUDGET, &never].concat()).await;
    let mut client = Client::connect(&writer.address).await.expect("a connection");
    client.create_topic("load", WRITERS as i32, &[]).await.expect("a topic");
    let written = async || writer.metric("strandline_object_store_requests_total", "operation=\"put\"").await;
    while written().await < objects as f64 {
        let writers = (0..WRITERS as i32).map(|partition| {
            let address = writer.address.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(&address).await.expect("a connection");
                for _ in 0..100 {
                    client.produce("load", partition, kib_batch(1)).await.expect("a produce");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("a producer ends well");
        }
    }
    let puts = written().await;
    drop(writer);
    let begun = Instant::now();
    let said = stack.audit("audit");
    let took = begun.elapsed().as_secs_f64();
    assert!(said.contains("nothing was found that must not be"), "{said}");
    report.figure("fsck --quick: objects", puts, "objects");
    report.target("fsck --quick: took", took, "s", Bound::AtMost, MOST_S);
}
