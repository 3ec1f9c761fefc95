//! Metrics of the pods that this node's proxy serves, with the names of Istio's ztunnel.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How many pods are served, and how many came and went.
#[derive(Debug, Default)]
pub struct PodMetrics {
    /// Pods whose listeners are up.
    pub active: Gauge,
    /// Pods that were announced but could not be served yet.
    pub pending: Gauge,
    /// Pods whose listeners came up, since the start.
    pub started: Counter,
    /// Pods whose listeners were closed, since the start.
    pub stopped: Counter,
}

impl PodMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // The peer's gauges do end in `_total`, unusual as that is.
        registry.register(
            "istio_active_proxy_count_total",
            "Pods that are enrolled on this node",
            metrics.active.clone(),
        );
        registry.register(
            "istio_pending_proxy_count_total",
            "Pods that could not be enrolled yet and are tried again",
            metrics.pending.clone(),
        );
        registry.register(
            "istio_proxies_started",
            "Pods enrolled since the start of the process",
            metrics.started.clone(),
        );
        registry.register(
            "istio_proxies_stopped",
            "Pods withdrawn since the start of the process",
            metrics.stopped.clone(),
        );
        metrics
    }
}
