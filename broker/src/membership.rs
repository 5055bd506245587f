//! Being registered: getting a registration, keeping its lease alive, noticing that it is gone,
//! getting another.
//!
//! While there is none, this broker commits nothing; what it had buffered is answered with a
//! retriable error, and reads of what is known go on.

use std::sync::Arc;
use std::time::Duration;

use strandline_metadata::backend::BackendError;
use strandline_metadata::brokers::{self, RegisterError, Registration};
use strandline_metadata::commit::CommitError;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::Broker;
use crate::limits::{KEEP_ALIVES_PER_TTL, REGISTER_BACKOFF};

/// Why a broker must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipEnd {
    /// Another process has taken the node id.
    #[error("another process has registered node id {0}; this one ends")]
    Replaced(i32),
    /// Registering can never work.
    #[error(transparent)]
    Refused(RegisterError),
}

/// The registration that is current, with its lease.
pub(crate) type CurrentRegistration = watch::Sender<Option<Registration>>;

/// Stays registered until the future is dropped; ends only with a reason to end the process.
pub(crate) async fn run(broker: Arc<Broker>) -> MembershipEnd {
    let mut was_registered = false;
    loop {
        let registration = match register(&broker, was_registered).await {
            Ok(registration) => registration,
            Err(end) => return end,
        };
        was_registered = true;
        let incarnation = registration.session.incarnation;
        // Committing starts only when the own registration is part of the view: everything that
        // came before is known.
        broker.replica.wait_applied(incarnation).await;
        broker.sessions.begin(registration.session);
        broker.registration.send_replace(Some(registration));
        broker.metrics.registered(true);
        info!(node_id = broker.config.node_id, incarnation, "registered");
        keep_alive(&broker, &registration).await;
        if *broker.closing.borrow() {
            // It was given back; registering once more would lead clients to a broker that is gone.
            std::future::pending::<()>().await;
        }
        broker.sessions.end(incarnation);
        broker.registration.send_replace(None);
        broker.metrics.registered(false);
        warn!(incarnation, "the registration is gone; registering again");
    }
}

/// Registers, however often it takes. A broker that was registered before must not push another
/// process out: if its node id was taken meanwhile, it is the one to go.
async fn register(broker: &Broker, was_registered: bool) -> Result<Registration, MembershipEnd> {
    let mut backoff = REGISTER_BACKOFF.0;
    loop {
        match try_register(broker, was_registered).await {
            Ok(Some(registration)) => return Ok(registration),
            Ok(None) => return Err(MembershipEnd::Replaced(broker.config.node_id)),
            Err(RegisterError::Backend(error)) => debug!(%error, "registering failed; trying again"),
            // Perhaps an earlier attempt of this very process whose answer was late: the next one
            // looks who it is.
            Err(RegisterError::Raced(_)) => debug!("somebody registered at the same time; trying again"),
            Err(
                refused @ (RegisterError::Value(_)
                | RegisterError::FeatureLevel(_)
                | RegisterError::OtherCluster(_)),
            ) => {
                error!(error = %refused, "this broker cannot register");
                return Err(MembershipEnd::Refused(refused));
            }
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(REGISTER_BACKOFF.1);
    }
}

async fn try_register(broker: &Broker, was_registered: bool) -> Result<Option<Registration>, RegisterError> {
    let (backend, keys) = (broker.lease_backend.as_ref(), broker.replica.keys());
    if was_registered
        && let Some((Ok(known), _)) = brokers::registered(backend, keys, broker.config.node_id).await?
        && known.process_id != broker.process_id
    {
        return Ok(None);
    }
    let value = broker.as_registered();
    let registering =
        brokers::register(backend, keys, &broker.cluster.cluster_id, &value, broker.config.lease_ttl_s);
    match timeout(strandline_metadata::limits::BACKEND_TIMEOUT, registering).await {
        Ok(registration) => registration.map(Some),
        // If it was registered after all, the next attempt replaces that registration by a new one.
        Err(_) => Err(BackendError::OutcomeUnknown("registering took too long".to_owned()).into()),
    }
}

/// Keeps the lease alive until it is gone, or until somebody else finds that the session is over.
async fn keep_alive(broker: &Broker, registration: &Registration) {
    let ttl = Duration::from_secs(u64::try_from(broker.config.lease_ttl_s).unwrap_or(0));
    let pause = ttl / KEEP_ALIVES_PER_TTL;
    let incarnation = registration.session.incarnation;
    loop {
        tokio::select! {
            biased;
            () = broker.sessions.ended(incarnation) => return,
            () = sleep(pause) => {}
        }
        // The lease of a broker whose node id was taken lives on. One that has nothing to commit
        // would never notice.
        let is_known = broker.replica.read(|view| {
            let known = view.names.brokers().get(&broker.config.node_id);
            known.is_some_and(|known| known.incarnation == incarnation)
        });
        if !is_known {
            return;
        }
        let kept = timeout(
            pause.max(Duration::from_millis(500)),
            broker.lease_backend.lease_keep_alive(registration.lease),
        );
        let kept = kept.await;
        broker.readiness.metadata_answers(matches!(kept, Ok(Ok(_))), broker.clock.now_ms());
        match kept {
            Ok(Ok(_)) => {}
            Ok(Err(BackendError::LeaseGone(_))) => return,
            // While etcd is silent nobody can say whether the lease still lives. Only a commit can
            // tell, by its compare, so nothing ends here on suspicion alone.
            Ok(Err(error)) => debug!(%error, "a keep-alive failed"),
            Err(_) => debug!("a keep-alive got no answer in time"),
        }
    }
}

/// Tells the cluster that this broker is leaving: clients are no longer led to it.
pub(crate) async fn announce_draining(broker: &Broker) {
    let registration = *broker.registration.borrow();
    let Some(registration) = registration else { return };
    let value = broker.as_registered();
    let update = brokers::update(&broker.committer, broker.replica.keys(), &registration, &value);
    match timeout(strandline_metadata::limits::BACKEND_TIMEOUT, update).await {
        Ok(Ok(())) => info!("the cluster knows that this broker is leaving"),
        Ok(Err(CommitError::NotRegistered)) => debug!("the registration is gone already"),
        Ok(Err(error)) => warn!(%error, "the cluster could not be told that this broker is leaving"),
        Err(_) => warn!("the cluster could not be told in time that this broker is leaving"),
    }
}

/// Gives the registration back, so that nobody waits for its lease to end.
pub(crate) async fn leave(broker: &Broker) {
    let registration = broker.registration.send_replace(None);
    let Some(Registration { session, lease }) = registration else { return };
    broker.sessions.end(session.incarnation);
    let revoke = broker.lease_backend.lease_revoke(lease);
    if !matches!(timeout(Duration::from_secs(2), revoke).await, Ok(Ok(()))) {
        debug!("the registration ends with its lease");
    }
}
