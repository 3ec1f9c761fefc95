//! Metrics of acceleration: whether fast-path connections are joined by a sockmap, and the results
//! of the kernel's self-test.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Gauges that are set once, at the start.
#[derive(Debug, Default)]
pub struct AccelerationMetrics {
    /// 1 if connections are joined, else 0.
    pub effective: Gauge,
    cases: Family<Labels, Gauge>,
}

/// The result of a case of the self-test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CaseResult {
    /// A joined socket behaves like any other.
    Passed,
    /// A joined socket behaves differently.
    Failed,
}

impl EncodeLabelValue for CaseResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    case: &'static str,
    result: CaseResult,
}

impl AccelerationMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ztunnel_acceleration",
            "Whether fast-path connections between pods of this node are joined by a sockmap (1) or not (0)",
            metrics.effective.clone(),
        );
        registry.register(
            "ztunnel_acceleration_self_test",
            "Results of the self-test of this kernel's sockmap, by case and result; the value is always 1",
            metrics.cases.clone(),
        );
        metrics
    }

    /// Sets the results of a self-test; they replace those of an earlier one.
    pub fn show(&self, cases: impl IntoIterator<Item = (&'static str, CaseResult)>) {
        self.cases.clear();
        for (case, result) in cases {
            self.cases.get_or_create(&Labels { case, result }).set(1);
        }
    }
}
