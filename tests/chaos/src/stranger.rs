//! What a broker must notice at its start: the bucket is not the cluster's.

use std::time::Duration;

use strandline_tests::cluster::{BUCKET_URL, Cluster};
use strandline_tests::process::was_killed;

use crate::story::Story;

/// Time for a broker to refuse: it asks the store for its marker for 20 s.
const REFUSAL: Duration = Duration::from_mins(2);

/// Starts a broker on another bucket; it must end, and say why.
pub(crate) async fn wrong_bucket(cluster: &mut Cluster, story: &Story) {
    story.say("broker 1 is started on another bucket");
    let elsewhere = cluster.folder().join("elsewhere");
    cluster.kill9(0);
    cluster.set_flag(0, "store-url", format!("file://{}", elsewhere.display()));
    cluster.restart(0);
    let status = cluster.broker(0).wait(REFUSAL).await;
    assert!(!status.success() && !was_killed(status), "a broker on another bucket ends in order: {status}");
    let said = cluster.broker(0).log().contains("is not the bucket of cluster");
    assert!(said, "a broker on another bucket says why it ends");
    cluster.set_flag(0, "store-url", BUCKET_URL);
    cluster.restart(0);
    cluster.wait_ready(0).await;
}
