//! Metrics of dry-run policies: the verdicts that they would have given.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counts the evaluations of dry-run policies, which decide nothing.
#[derive(Debug, Default)]
pub struct TrialMetrics {
    answers: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    policy: String,
    matched: &'static str,
}

impl TrialMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ztunnel_dry_run_policy_evaluations",
            "Evaluations of dry-run policies, by whether the policy matched",
            metrics.answers.clone(),
        );
        metrics
    }

    /// Counts one evaluation of the policy with this key, `namespace/name`.
    pub fn answered(&self, policy: String, matched: bool) {
        let matched = if matched { "true" } else { "false" };
        self.answers
            .get_or_create(&Labels { policy, matched })
            .inc();
    }

    /// The number of evaluations of a policy with this result.
    #[must_use]
    pub fn answers(&self, policy: &str, matched: bool) -> u64 {
        let matched = if matched { "true" } else { "false" };
        let policy = policy.to_owned();
        self.answers
            .get_or_create(&Labels { policy, matched })
            .get()
    }
}
