//! Metrics of the connection to the control plane, with the names of Istio's ztunnel.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counts the ends of connections to the control plane. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct XdsMetrics {
    terminations: Family<Labels, Counter>,
}

/// How a connection to the control plane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XdsTermination {
    /// No connection: the control plane was unreachable, or refused it.
    ConnectionError,
    /// The control plane ended the stream with an error.
    Error,
    /// The connection was lost, or the control plane shut down.
    Reconnect,
    /// The control plane ended the stream without an error.
    Complete,
}

impl EncodeLabelValue for XdsTermination {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: XdsTermination,
}

impl XdsMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "istio_xds_connection_terminations",
            "Connections to the control plane that ended, by reason",
            metrics.terminations.clone(),
        );
        metrics
    }

    /// Counts the end of a connection.
    pub fn terminated(&self, reason: XdsTermination) {
        self.terminations.get_or_create(&Labels { reason }).inc();
    }

    /// The number of connections that ended for this reason.
    #[must_use]
    pub fn terminations(&self, reason: XdsTermination) -> u64 {
        self.terminations.get_or_create(&Labels { reason }).get()
    }
}
