//! Strandline's read-only observer: an operator's assistant sees topics, groups, lag, storage and
//! brokers as they are, with history and evidence, and can change nothing.
//!
//! ```text
//!   POST /mcp ─▶ http (Host, Origin, token) ─▶ server (rmcp) ─▶ tools ─▶ source/etcd      two ranges, one revision
//!                                                                 │  ─▶ source/history   what scrapes left behind
//!                                                                 │  ─▶ source/progress  what reads of etcd left behind
//!                                                                 └▶ answer + meta ─▶ audit
//! ```
//!
//! It cannot write: not by type (`metadata` is built without its feature `log`, so there is no
//! backend with transactions), not by dependency (neither `storage` nor `broker`), not by its etcd
//! user. It never connects to a Kafka port nor to the object store.
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_wrap,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "numbers in tests are small"
    )
)]

pub mod access;
pub mod audit;
pub mod clock;
pub mod config;
pub mod diagnose;
pub mod foreign;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod plan;
pub mod process;
pub mod prompts;
pub mod resources;
pub mod runbooks;
pub mod server;
pub mod source;
pub mod tasks;
pub mod tools;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline_metadata::backend::ReadBackend;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::{Authenticator, RateLimit, Seal};
use crate::audit::{Audit, audit};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::limits::{REQUESTS_IN_FLIGHT, SUBSCRIPTIONS};
use crate::metrics::Metrics;
use crate::plan::Plans;
use crate::runbooks::Runbooks;
use crate::source::changes::{Changes, Family};
use crate::source::etcd::EtcdSource;
use crate::source::scrape::{Samples, Scraper};
use crate::tasks::TaskSet;
use crate::tools::Judged;

/// The observer: what every request shares.
#[derive(Debug)]
pub struct Observer {
    /// Its configuration.
    pub config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) access: Authenticator,
    pub(crate) seal: Seal,
    pub(crate) failures: RateLimit<IpAddr>,
    pub(crate) calls: RateLimit<String>,
    pub(crate) requests: Semaphore,
    pub(crate) subscriptions: Semaphore,
    pub(crate) audit: Audit,
    /// What it counts of itself.
    pub metrics: Metrics,
    pub(crate) etcd: EtcdSource,
    pub(crate) samples: Samples,
    pub(crate) changes: Changes,
    pub(crate) runbooks: Runbooks,
    pub(crate) plans: Plans,
    pub(crate) judged: Judged,
    pub(crate) stop: CancellationToken,
    pub(crate) started_at_ms: i64,
    requests_made: AtomicU64,
    boot: String,
    _tasks: TaskSet,
}

/// What an observer is made of beside its configuration.
#[derive(Debug)]
pub struct Parts {
    /// Where the cluster is read from.
    pub reader: Arc<dyn ReadBackend>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Random bytes, for the seal of cursors and tokens.
    pub random: [u8; 32],
}

impl Observer {
    /// Puts an observer together and starts what runs beside requests.
    pub fn open(config: Config, parts: Parts) -> Result<Arc<Self>, ConfigError> {
        let metrics = Metrics::new().map_err(|e| ConfigError::new(e.to_string()))?;
        let seal = Seal::new(&parts.random);
        let access = Authenticator::new(&config, &seal)?;
        let (audit, writer) = audit(config.audit.clone(), metrics.clone());
        let etcd = EtcdSource::new(
            parts.reader,
            config.keys.clone(),
            parts.clock.clone(),
            metrics.clone(),
            config.etcd.request_timeout,
        );
        let runbooks = Runbooks::open(config.runbooks_dir.clone())?;
        let tasks = TaskSet::default();
        tasks.start("audit writer", writer.run());
        if let Some(verifier) = access.verifier() {
            tasks.start("JWT keys", verifier.clone().run(verifier.client()?));
        }
        let samples = Samples::new(&config.scrape);
        let scraper = Scraper::new(
            config.scrape.clone(),
            etcd.clone(),
            samples.clone(),
            parts.clock.clone(),
            metrics.clone(),
        )?;
        tasks.start("scraper", scraper.run());
        let changes = Changes::default();
        for family in Family::ALL {
            tasks.start("changes", changes.clone().follow(family, etcd.clone(), parts.clock.clone()));
        }
        let boot = access::hex(&seal.tag(b"boot")).chars().take(8).collect();
        Ok(Arc::new(Self {
            failures: RateLimit::new(config.auth_failures_per_minute),
            calls: RateLimit::new(config.calls_per_minute),
            requests: Semaphore::new(REQUESTS_IN_FLIGHT),
            subscriptions: Semaphore::new(SUBSCRIPTIONS),
            started_at_ms: parts.clock.now_ms(),
            config,
            clock: parts.clock,
            access,
            seal,
            audit,
            metrics,
            etcd,
            samples,
            changes,
            runbooks,
            plans: Plans::default(),
            judged: Judged::default(),
            stop: CancellationToken::new(),
            requests_made: AtomicU64::new(0),
            boot,
            _tasks: tasks,
        }))
    }

    /// A name for a request that no other request of any process has.
    pub(crate) fn next_request_id(&self) -> String {
        format!("{}-{}", self.boot, self.requests_made.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Ends subscriptions and lets requests finish.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}
