//! Asks the destination's policies and tells what those on trial would have said.

use super::authorize::{Arrival, Judgement, Trial, Verdict, authorize};
use crate::mesh::{Policy, Snapshot};

/// A policy refused the connection.
#[derive(Debug, thiserror::Error)]
#[error("denied by {policy}")]
pub(super) struct Denied {
    /// The policy, or that none allowed it.
    policy: String,
}

impl Denied {
    /// By this policy, or because none allows it.
    pub(super) fn new(by: Option<&Policy>) -> Self {
        Self {
            policy: by.map_or_else(
                || "default: ALLOW policies apply and none matches".to_owned(),
                |policy| format!("policy {}", policy.key()),
            ),
        }
    }
}

/// Whether policy lets a connection arrive.
///
/// # Errors
/// Names the policy that refuses it.
pub(super) fn permit(mesh: &Snapshot, arrival: &Arrival<'_>) -> Result<(), Denied> {
    let Judgement { verdict, dry_runs } = authorize(arrival, mesh);
    for trial in dry_runs {
        let matched = matches!(trial.outcome, Trial::Matched);
        tracing::info!(policy = %trial.policy.key(), matched, client = %arrival.source_ip, destination = %arrival.destination, "policy on trial (dry run)");
    }
    match verdict {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { by } => Err(Denied::new(by.as_deref())),
    }
}
