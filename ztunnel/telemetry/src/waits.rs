//! Metrics of what waits for the workload of a new pod.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counts the waits for workloads that the control plane had not pushed. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct WaitMetrics {
    ended: Family<Labels, Counter>,
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitKind {
    /// A connection that a pod has opened.
    Outbound,
    /// A connection to a pod.
    Inbound,
    /// A DNS question of a pod.
    Dns,
}

impl WaitKind {
    const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Dns => "dns",
        }
    }
}

/// How a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOutcome {
    /// The workload has come.
    Known,
    /// It has not, in time.
    Expired,
    /// There was no place: too many of the pod waited already.
    TooMany,
    /// The client has closed its connection.
    ClientGone,
    /// The pod has left, or the proxy stops.
    Leaving,
}

impl WaitOutcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Expired => "expired",
            Self::TooMany => "too_many",
            Self::ClientGone => "client_gone",
            Self::Leaving => "leaving",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    outcome: &'static str,
}

impl Labels {
    const fn of(kind: WaitKind, outcome: WaitOutcome) -> Self {
        Self {
            kind: kind.label(),
            outcome: outcome.label(),
        }
    }
}

impl WaitMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ztunnel_workload_waits",
            "Connections and DNS questions that needed the workload of a pod before the control plane had pushed it, by how their wait ended",
            metrics.ended.clone(),
        );
        metrics
    }

    /// Counts one.
    pub fn ended(&self, kind: WaitKind, outcome: WaitOutcome) {
        self.ended.get_or_create(&Labels::of(kind, outcome)).inc();
    }

    /// How many have ended so.
    #[must_use]
    pub fn count(&self, kind: WaitKind, outcome: WaitOutcome) -> u64 {
        self.ended.get_or_create(&Labels::of(kind, outcome)).get()
    }
}
