//! What lies below the broker: whether etcd and the bucket are as they should be.

use prometheus::{Gauge, IntGauge};

use super::registrar::Registrar;
use crate::Broker;

#[derive(Debug)]
pub(super) struct BelowMetrics {
    unreadable_keys: IntGauge,
    orphans_stay: IntGauge,
    etcd_used: IntGauge,
    etcd_file: IntGauge,
    etcd_quota: IntGauge,
    produce_pause: Gauge,
}

impl BelowMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            unreadable_keys: r.gauge(
                "unreadable_keys",
                "Keys in etcd whose values this broker cannot read: each takes out its own topic, broker or config",
            )?,
            orphans_stay: r.gauge(
                "orphan_collection_paused",
                "1 while orphans stay, because the bucket holds what this log does not know",
            )?,
            etcd_used: r.gauge("etcd_used_bytes", "What is in use of etcd's file")?,
            etcd_file: r.gauge("etcd_file_bytes", "Size of etcd's file")?,
            etcd_quota: r.gauge("etcd_quota_bytes", "Size of the file at which etcd refuses writes")?,
            produce_pause: r.with(Gauge::new(
                "strandline_produce_pause_seconds",
                "How long a flush waits after the one before, because etcd is nearly full",
            ))?,
        })
    }

    pub(super) fn orphans_stay(&self, stay: bool) {
        self.orphans_stay.set(i64::from(stay));
    }

    /// Looks everything else up now.
    pub(super) fn look(&self, broker: &Broker) {
        let unreadable = broker.replica.read(|view| view.names.unreadable());
        self.unreadable_keys.set(i64::try_from(unreadable).unwrap_or(i64::MAX));
        let (used, file, quota) = broker.slowdown.space().bytes();
        for (gauge, bytes) in [(&self.etcd_used, used), (&self.etcd_file, file), (&self.etcd_quota, quota)] {
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.produce_pause.set(broker.slowdown.space().pause().as_secs_f64());
    }
}
