//! Metrics of the enrolled pods, with the names of Istio's ztunnel.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The numbers of enrolled, pending, added and removed pods.
#[derive(Debug, Default)]
pub struct PodMetrics {
    /// Pods with open listeners.
    pub active: Gauge,
    /// Pods that were announced and are not enrolled yet.
    pub pending: Gauge,
    /// Pods whose listeners were opened since the start.
    pub started: Counter,
    /// Pods whose listeners were closed since the start.
    pub stopped: Counter,
}

impl PodMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // The names of Istio's gauges end in `_total`, although that is unusual.
        registry.register(
            "istio_active_proxy_count_total",
            "Pods that are enrolled on this node",
            metrics.active.clone(),
        );
        registry.register(
            "istio_pending_proxy_count_total",
            "Pods that could not be enrolled yet; enrollment is retried",
            metrics.pending.clone(),
        );
        registry.register(
            "istio_proxies_started",
            "Pods enrolled since the start of the process",
            metrics.started.clone(),
        );
        registry.register(
            "istio_proxies_stopped",
            "Pods removed since the start of the process",
            metrics.stopped.clone(),
        );
        metrics
    }
}
