//! Whether connections of this node are joined past TCP, and what the self-test of the kernel
//! has shown.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Gauges that are set once, at the start.
#[derive(Debug, Default)]
pub struct AccelerationMetrics {
    /// 1 where connections are joined, 0 where they are not.
    pub effective: Gauge,
    cases: Family<Labels, Gauge>,
}

/// What a case of the self-test has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CaseResult {
    /// A joined socket behaves like any other.
    Passed,
    /// It does not.
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
            "Whether connections between pods of this node are joined past TCP: 1 is yes",
            metrics.effective.clone(),
        );
        registry.register(
            "ztunnel_acceleration_self_test",
            "What the self-test of this kernel's sockmap has shown, by case: always 1",
            metrics.cases.clone(),
        );
        metrics
    }

    /// Shows the cases of a self-test, in place of those of an earlier one.
    pub fn show(&self, cases: impl IntoIterator<Item = (&'static str, CaseResult)>) {
        self.cases.clear();
        for (case, result) in cases {
            self.cases.get_or_create(&Labels { case, result }).set(1);
        }
    }
}
