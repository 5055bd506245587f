//! What clients measure themselves and push to this broker (KIP-714).

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, IntCounterVec, IntGauge, Opts};

use super::registrar::Registrar;
use crate::Broker;

const LABELS: [&str; 3] = ["metric", "client_id", "attributes"];

/// The metrics of clients.
#[derive(Debug)]
pub(super) struct TelemetryMetrics {
    instances: IntGauge,
    pushes: IntCounterVec,
}

impl TelemetryMetrics {
    pub(super) fn new(r: &Registrar<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            instances: r.gauge(
                "client_telemetry_instances",
                "Clients that asked which metrics to push, or pushed some",
            )?,
            pushes: r.counters(
                "client_telemetry_pushes_total",
                "Pushes of clients' metrics, by whether they were taken",
                &["outcome"],
            )?,
        })
    }

    pub(super) fn pushed(&self, is_taken: bool) {
        self.pushes.with_label_values(&[if is_taken { "taken" } else { "refused" }]).inc();
    }

    /// Takes over what is known now.
    pub(super) fn look(&self, broker: &Broker) {
        self.instances.set(i64::try_from(broker.telemetry.instances()).unwrap_or(i64::MAX));
    }
}

/// What clients pushed. Made anew for each who looks: these numbers are not ours to count.
pub(super) fn families(broker: &Broker) -> prometheus::Result<Vec<MetricFamily>> {
    let levels = GaugeVec::new(
        Opts::new(
            "strandline_client_telemetry",
            "What a client measures and pushed to this broker, as it was last",
        ),
        &LABELS,
    )?;
    let totals = CounterVec::new(
        Opts::new(
            "strandline_client_telemetry_total",
            "What a client counts and pushed to this broker, summed up",
        ),
        &LABELS,
    )?;
    for shown in broker.telemetry.shown() {
        let labels = [&*shown.metric, &*shown.client_id, &*shown.attributes];
        if shown.is_total {
            totals.with_label_values(&labels).inc_by(shown.value);
        } else {
            levels.with_label_values(&labels).set(shown.value);
        }
    }
    let families = levels.collect().into_iter().chain(totals.collect());
    Ok(families.filter(|family| !family.get_metric().is_empty()).collect())
}
