//! Evaluates the destination's policies and reports the result of those in dry-run mode.

use mesh::authorize::{Authorization, DryRunOutcome, InboundRequest, Verdict, authorize};
use mesh::{Policy, Snapshot};
use telemetry::TrialMetrics;

/// A policy denied the connection.
#[derive(Debug, thiserror::Error)]
#[error("denied by {policy}")]
pub(crate) struct Denied {
    /// The name of the policy, or a note that no policy allowed the connection.
    policy: String,
}

impl Denied {
    /// Denied by this policy, or because no policy allows it.
    pub(super) fn new(by: Option<&Policy>) -> Self {
        Self {
            policy: by.map_or_else(
                || "default: ALLOW policies apply and none matches".to_owned(),
                |policy| format!("policy {}", policy.key()),
            ),
        }
    }
}

/// Why an open connection is no longer allowed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Revoked {
    /// A policy now denies it.
    #[error("no longer allowed: {0}")]
    Denied(#[from] Denied),
    /// The workload whose policies would apply is unknown.
    #[error("no longer allowed: the pod's workload is not in the mesh any more")]
    UnknownWorkload,
    /// The certificate of the tunnel's peer was revoked.
    #[error("no longer allowed: the certificate of the tunnel's peer was revoked")]
    Certificate,
}

/// Authorizes an inbound connection.
///
/// # Errors
/// The policy that denies it.
pub(super) fn check(
    mesh: &Snapshot,
    request: &InboundRequest<'_>,
    metrics: &TrialMetrics,
) -> Result<Authorization, Denied> {
    let authorization = authorize(request, mesh);
    for dry_run in &authorization.dry_runs {
        let matched = matches!(dry_run.outcome, DryRunOutcome::Matched);
        metrics.answered(dry_run.policy.key(), matched);
        tracing::info!(policy = %dry_run.policy.key(), matched, client = %request.source_ip, destination = %request.destination, "a policy in dry-run mode was evaluated");
    }
    match &authorization.verdict {
        Verdict::Allow { .. } => Ok(authorization),
        Verdict::Deny { by } => Err(Denied::new(by.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::{Action, PolicyScope, Workload};
    use telemetry::Telemetry;

    #[test]
    fn what_policies_on_trial_say_is_counted_and_not_enforced() {
        let telemetry = Telemetry::new(prometheus_client::metrics::counter::Counter::default());
        let deny_all = |name: &str, dry_run| Policy {
            name: name.into(),
            namespace: "default".into(),
            scope: PolicyScope::Namespace,
            action: Action::Deny,
            rules: vec![vec![vec![]]],
            dry_run,
            has_unknown_conditions: false,
        };
        let no_rules = Policy {
            rules: Vec::new(),
            ..deny_all("no-rules", true)
        };
        let workload = Workload::new("w", "w", "default", "default").unwrap();
        let arrival = InboundRequest {
            workload: &workload,
            source: None,
            source_ip: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            http: None,
        };
        let judge = |policies| {
            let mesh = Snapshot::build(Vec::new(), Vec::new(), policies);
            check(&mesh, &arrival, telemetry.trials())
        };
        assert!(judge(vec![deny_all("all", true), no_rules.clone()]).is_ok());
        let denied = judge(vec![deny_all("all", false), no_rules]).unwrap_err();
        assert_eq!(denied.to_string(), "denied by policy default/all");
        let trials = telemetry.trials();
        assert_eq!(trials.answers("default/all", true), 1);
        assert_eq!(trials.answers("default/all", false), 0);
        assert_eq!(trials.answers("default/no-rules", false), 2);
    }
}
