//! Metrics, the access log and the proxy's own log.
//!
//! Names and labels are those of Istio's ztunnel, so that dashboards and alerts keep working. The
//! cost for a connection is small: labels are built once for each pair of workloads
//! ([`Telemetry::series`] is a hash lookup afterwards), bytes are counted with relaxed atomics,
//! and a background thread writes many log lines with one system call. [`Telemetry`] is shared by
//! all threads; `node` counts and logs connections with it, `admin` serves the metrics.

mod acceleration;
mod access;
pub mod build;
mod capture;
mod dns;
mod exposition;
mod labels;
mod logging;
mod pods;
mod series;
mod table;
mod trials;
mod waits;
mod xds;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

pub use acceleration::{AccelerationMetrics, CaseResult};
pub use access::AccessLogEntry;
pub use capture::{CaptureMetrics, RestoredKind};
pub use dns::{DnsMetrics, DnsQuery, DnsRefusal};
pub use logging::{
    Filter, FilterError, LogConfig, LogError, LogFormat, LogGuard, LogHandle, ParseLogFormatError,
    build_log, init_logging,
};
pub use pods::PodMetrics;
pub use series::{Count, Reporter, ResponseFlag, SecurityPolicy, Series, SeriesKey};
pub use table::BAGGAGE_UID;
pub use trials::TrialMetrics;
pub use waits::{WaitKind, WaitMetrics, WaitOutcome};
pub use xds::{XdsMetrics, XdsTermination};

use exposition::Exposition;
use table::Table;

use mesh::Uid;

/// Every metric of the process. One instance, shared by all threads.
#[derive(Debug)]
pub struct Telemetry {
    table: Arc<Table>,
    pods: PodMetrics,
    acceleration: AccelerationMetrics,
    dns: DnsMetrics,
    xds: XdsMetrics,
    trials: TrialMetrics,
    waits: WaitMetrics,
    capture: CaptureMetrics,
    registry: Mutex<Registry>,
}

impl Telemetry {
    /// Creates the metrics of wire.md that exist from the start. `dropped_log_lines` is the
    /// log's counter ([`LogHandle::dropped_lines`]); without a log, give it a fresh one.
    #[must_use]
    pub fn new(dropped_log_lines: Counter) -> Arc<Self> {
        let table = Arc::new(Table::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposition(table.clone())));
        let pods = PodMetrics::register(&mut registry);
        let acceleration = AccelerationMetrics::register(&mut registry);
        let dns = DnsMetrics::register(&mut registry);
        let xds = XdsMetrics::register(&mut registry);
        let trials = TrialMetrics::register(&mut registry);
        let waits = WaitMetrics::register(&mut registry);
        let capture = CaptureMetrics::register(&mut registry);
        let build = Family::<Vec<(&'static str, String)>, Gauge>::default();
        build
            .get_or_create(&vec![
                ("component", "ztunnel".to_owned()),
                ("tag", build::version()),
            ])
            .set(1);
        registry.register(
            "istio_build",
            "Component and version of this process",
            build,
        );
        registry.register(
            "ztunnel_log_lines_dropped",
            "Log lines that were dropped because the log's reader was too slow",
            dropped_log_lines,
        );
        Arc::new(Self {
            table,
            pods,
            acceleration,
            dns,
            xds,
            trials,
            waits,
            capture,
            registry: Mutex::new(registry),
        })
    }

    /// The counters of the connections that `key` describes. After the first call with a key
    /// this is one hash lookup under a read lock; keep the result while the connection is open.
    ///
    /// If the number of series has reached its limit, the result is a shared series in which both
    /// ends are `unknown`.
    #[must_use]
    pub fn series(&self, key: &SeriesKey) -> Arc<Series> {
        self.table.series(key)
    }

    /// Removes the series of workloads that are no longer in the mesh. Call it after a snapshot was
    /// replaced; `alive` returns whether a uid is in the new one. Series of open connections stay
    /// until the next call.
    pub fn retain(&self, alive: impl Fn(&Uid) -> bool) {
        self.table.retain(alive);
    }

    /// The metrics of the pods that this node serves.
    #[must_use]
    pub const fn pods(&self) -> &PodMetrics {
        &self.pods
    }

    /// The metrics of acceleration.
    #[must_use]
    pub const fn acceleration(&self) -> &AccelerationMetrics {
        &self.acceleration
    }

    /// The metrics of the DNS proxy.
    #[must_use]
    pub const fn dns(&self) -> &DnsMetrics {
        &self.dns
    }

    /// The metrics of the connection to the control plane.
    #[must_use]
    pub const fn xds(&self) -> &XdsMetrics {
        &self.xds
    }

    /// The metrics of dry-run policies.
    #[must_use]
    pub const fn trials(&self) -> &TrialMetrics {
        &self.trials
    }

    /// The metrics of waiting for the workloads of new pods.
    #[must_use]
    pub const fn waits(&self) -> &WaitMetrics {
        &self.waits
    }

    /// The metrics of what captures the pods.
    #[must_use]
    pub const fn capture(&self) -> &CaptureMetrics {
        &self.capture
    }

    /// Counts a pod whose listeners were opened.
    pub fn pod_added(&self) {
        self.pods.started.inc();
        self.pods.active.inc();
    }

    /// Counts a pod whose listeners were closed.
    pub fn pod_removed(&self) {
        self.pods.stopped.inc();
        self.pods.active.dec();
    }

    /// Registers a metric of another crate. The `name` of a counter has no `_total` (the encoder
    /// appends it), and `help` has no full stop.
    pub fn register(&self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register(name, help, metric);
    }

    /// The metrics as OpenMetrics text ([`Self::CONTENT_TYPE`]), `# EOF` included.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail. If a metric cannot be encoded, the text ends early, and
        // a scraper notices the missing `# EOF`.
        if text::encode(&mut out, &registry).is_err() {
            tracing::error!("a metric could not be encoded");
        }
        out
    }

    /// The content type of [`Self::encode`].
    pub const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";
}

#[cfg(test)]
mod tests;
