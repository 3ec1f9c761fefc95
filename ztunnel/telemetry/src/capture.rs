//! Metrics of what captures the pods.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counts what other processes remove of the capture. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct CaptureMetrics {
    restored: Family<Labels, Counter>,
    lost: Gauge,
}

/// What was missing and is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoredKind {
    /// A program was not attached.
    Program,
    /// The pin of a program was gone.
    Pin,
    /// A rule or route of a pod was gone.
    Route,
}

impl RestoredKind {
    const fn label(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Pin => "pin",
            Self::Route => "route",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    what: &'static str,
}

impl CaptureMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ztunnel_capture_restored",
            "Parts of the capture of pods that another process had removed and this one has restored",
            metrics.restored.clone(),
        );
        registry.register(
            "ztunnel_capture_lost",
            "Pods, or the node itself, whose capture is incomplete and cannot be restored",
            metrics.lost.clone(),
        );
        metrics
    }

    /// Counts a part that was missing and is restored.
    pub fn restored(&self, kind: RestoredKind) {
        let labels = Labels { what: kind.label() };
        self.restored.get_or_create(&labels).inc();
    }

    /// Sets how many pods, or the node itself, lack something that cannot be restored.
    pub fn set_lost(&self, count: usize) {
        self.lost.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
