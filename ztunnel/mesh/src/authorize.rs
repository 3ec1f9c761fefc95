//! Whether a connection is allowed: a pure function of the connection and a snapshot. The node of
//! the destination calls it, or the node of the source if both pods are on one node.
//!
//! The order is that of Istio's ambient mode: a DENY policy that matches denies; without any ALLOW
//! policy the connection is allowed; otherwise one of the ALLOW policies has to match. A dry-run
//! policy does not change the verdict, its result is only reported. A denial is a verdict, not an
//! error.
//!
//! [`explain`] returns every step of the same decision.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{Action, HttpAttributes, Identity, Policy, PolicyContext, Snapshot, Workload};

/// A connection that reached its destination's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundRequest<'a> {
    /// The destination workload, whose policies apply.
    pub workload: &'a Workload,
    /// The identity that the client proved with mutual TLS; `None` for plaintext.
    pub source: Option<&'a Identity>,
    /// The client's own address.
    pub source_ip: IpAddr,
    /// The address and port of the workload. For a tunnelled connection the port is that of the
    /// application tunnel, if the workload has one.
    pub destination: SocketAddr,
    /// The HTTP request, at a waypoint; `None` for a connection.
    pub http: Option<HttpAttributes<'a>>,
}

/// Whether a connection is allowed, and the policy that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is allowed.
    Allow {
        /// The ALLOW policy that matched; `None` if no ALLOW policy applies.
        by: Option<Arc<Policy>>,
    },
    /// The connection is denied.
    Deny {
        /// The DENY policy that matched; `None` if ALLOW policies apply and none matched.
        by: Option<Arc<Policy>>,
    },
}

impl Verdict {
    /// Whether the connection is allowed.
    #[must_use]
    pub const fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The policy that decided.
    #[must_use]
    pub const fn by(&self) -> Option<&Arc<Policy>> {
        match self {
            Self::Allow { by } | Self::Deny { by } => by.as_ref(),
        }
    }
}

/// Whether a dry-run policy matches a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRunOutcome {
    /// One of its rules matches: if enforced, the policy would apply its action.
    Matched,
    /// No rule matches.
    Unmatched,
}

/// A dry-run policy and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Whether it matches.
    pub outcome: DryRunOutcome,
}

/// The verdict and the outcomes of dry-run policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The verdict, which only enforced policies decide.
    pub verdict: Verdict,
    /// The outcomes to log and to count. Empty, without an allocation, if no dry-run policy
    /// applies.
    pub dry_runs: SmallVec<[DryRun; 1]>,
}

/// Evaluates every policy that applies to the destination workload.
#[must_use]
pub fn authorize(request: &InboundRequest<'_>, snapshot: &Snapshot) -> Authorization {
    evaluate(request, snapshot, |_, _| {})
}

/// Evaluates the policies. `visit` gets each evaluated policy with the index of the rule that
/// matched; a policy that cannot change the result any more is not evaluated.
fn evaluate<'s>(
    request: &InboundRequest<'s>,
    snapshot: &'s Snapshot,
    mut visit: impl FnMut(&'s Arc<Policy>, Evaluation),
) -> Authorization {
    let context = PolicyContext {
        source: request.source,
        source_ip: request.source_ip,
        destination: request.destination,
        http: request.http,
    };
    let mut dry_runs = SmallVec::new();
    let mut denied = None;
    let mut allowed = None;
    let mut allow_applies = false;
    for policy in snapshot.policies_for(request.workload) {
        if policy.dry_run {
            let rule = policy.matching_rule(&context);
            visit(policy, Evaluation::of(rule));
            let outcome = match rule {
                Some(_) => DryRunOutcome::Matched,
                None => DryRunOutcome::Unmatched,
            };
            dry_runs.push(DryRun {
                policy: policy.clone(),
                outcome,
            });
            continue;
        }
        let found = match policy.action {
            Action::Deny => &mut denied,
            Action::Allow => {
                allow_applies = true;
                &mut allowed
            }
        };
        // The first policy that matches is reported; later ones of the same action change nothing.
        if found.is_some() {
            visit(policy, Evaluation::Skipped);
            continue;
        }
        let rule = policy.matching_rule(&context);
        visit(policy, Evaluation::of(rule));
        if rule.is_some() {
            *found = Some(policy);
        }
    }
    let verdict = match (denied, allowed) {
        (Some(policy), _) => Verdict::Deny {
            by: Some(policy.clone()),
        },
        (None, Some(policy)) => Verdict::Allow {
            by: Some(policy.clone()),
        },
        (None, None) if allow_applies => Verdict::Deny { by: None },
        (None, None) => Verdict::Allow { by: None },
    };
    Authorization { verdict, dry_runs }
}

mod explain;
pub use explain::{Evaluation, Explanation, PolicyStep, explain};

#[cfg(test)]
mod tests;
