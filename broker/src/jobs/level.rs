//! Telling the log at which feature level the cluster was founded. Any broker may: saying it twice
//! changes nothing.
//!
//! A new cluster is at the level of the build that founds it. Its own key says so from the
//! beginning, but the state is made of records alone.

use strandline_metadata::commit::{Change, CommitError};
use strandline_metadata::record::{Body, FeatureLevel};

use crate::Broker;
use crate::features::log_level;
use crate::topics::commit;

pub(super) async fn run_once(broker: &Broker) -> Result<(), CommitError> {
    let level = broker.cluster.feature_level;
    if broker.replica.read(|view| log_level(&view.state)) >= level {
        return Ok(());
    }
    let body = Some(Body::FeatureLevel(FeatureLevel { level, transaction_version: 0 }));
    commit(broker, Change { body, ..Change::default() }).await.map(|_| ())
}
