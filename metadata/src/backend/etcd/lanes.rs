//! The connections to etcd: one per purpose, so that none waits behind another, each with
//! fail-over.
//!
//! ```text
//!                    ┌ kv     ── channel to endpoint 0 │ 1 │ 2      ranges, transactions, logging in
//!   etcd-client ── Lanes ─ watch ── channel to endpoint 0 │ 1 │ 2      event streams
//!                    └ lease  ── channel to endpoint 0 │ 1 │ 2      keep-alives
//! ```
//!
//! A lane stays with one endpoint until that gives reason to doubt it; then the next call uses the
//! next one. A request is sent to one endpoint, once: nothing here sends it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, Service, ServiceExt};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Kv,
    Watch,
    Lease,
}

/// All connections of one client. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Lanes {
    kv: Lane,
    watch: Lane,
    lease: Lane,
}

/// A choice of endpoint, to be named when it is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice(usize);

#[derive(Clone, Debug)]
struct Lane {
    channels: Arc<[Channel]>,
    /// Counts changes of endpoint; modulo the number of channels it is the one in use.
    choice: Arc<AtomicUsize>,
}

impl Lanes {
    /// Connects when a lane is first used. Must be called within a tokio runtime.
    pub(super) fn new(endpoints: &[Endpoint]) -> Self {
        Self { kv: Lane::new(endpoints), watch: Lane::new(endpoints), lease: Lane::new(endpoints) }
    }

    /// The endpoint that the next call for this purpose will use.
    pub(super) fn choice(&self, purpose: Purpose) -> Choice {
        Choice(self.lane(purpose).choice.load(Ordering::Relaxed))
    }

    /// Uses the next endpoint from now on, unless somebody else has seen to that since `choice` was
    /// made.
    pub(super) fn doubt(&self, purpose: Purpose, choice: Choice) {
        let next = choice.0.wrapping_add(1);
        let _ =
            self.lane(purpose).choice.compare_exchange(choice.0, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn lane(&self, purpose: Purpose) -> &Lane {
        match purpose {
            Purpose::Kv => &self.kv,
            Purpose::Watch => &self.watch,
            Purpose::Lease => &self.lease,
        }
    }
}

impl Lane {
    fn new(endpoints: &[Endpoint]) -> Self {
        Self {
            channels: endpoints.iter().map(Endpoint::connect_lazy).collect(),
            choice: Arc::new(AtomicUsize::new(0)),
        }
    }

    fn channel(&self) -> Option<Channel> {
        let index = self.choice.load(Ordering::Relaxed).checked_rem(self.channels.len())?;
        self.channels.get(index).cloned()
    }
}

impl Purpose {
    /// By the name of the gRPC service. Logging in is a request to `Auth`.
    fn of(path: &str) -> Self {
        match path.split('/').nth(1) {
            Some("etcdserverpb.Watch") => Self::Watch,
            Some("etcdserverpb.Lease") => Self::Lease,
            _ => Self::Kv,
        }
    }
}

impl Service<http::Request<Body>> for Lanes {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    /// Which lane must be ready is known when the request is there, so that wait is part of the
    /// call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let channel = self.lane(Purpose::of(request.uri().path())).channel();
        Box::pin(async move {
            let channel = channel.ok_or("no endpoint")?;
            Ok(channel.oneshot(request).await?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_lane() {
        for (path, purpose) in [
            ("/etcdserverpb.KV/Txn", Purpose::Kv),
            ("/etcdserverpb.Watch/Watch", Purpose::Watch),
            ("/etcdserverpb.Lease/LeaseKeepAlive", Purpose::Lease),
            ("/etcdserverpb.Auth/Authenticate", Purpose::Kv),
        ] {
            assert_eq!(Purpose::of(path), purpose, "{path}");
        }
    }

    #[tokio::test]
    async fn a_doubt_that_comes_late_changes_nothing() {
        let lanes = Lanes::new(&[Endpoint::from_static("http://a"), Endpoint::from_static("http://b")]);
        let first = lanes.choice(Purpose::Kv);
        lanes.doubt(Purpose::Kv, first);
        let second = lanes.choice(Purpose::Kv);
        assert_ne!(first, second);
        lanes.doubt(Purpose::Kv, first);
        assert_eq!(lanes.choice(Purpose::Kv), second);
        assert_eq!(lanes.choice(Purpose::Watch), first, "the other lanes stay");
    }
}
