//! May this connection arrive? Step three of a connection's way, asked at the destination,
//! or at the source where both ends are on this node.
//!
//! A pure function of the connection and a snapshot: it never awaits, locks or reads a clock. The
//! order is that of Istio's ambient mode: any DENY that matches refuses; where no ALLOW applies
//! everybody may; otherwise one of the ALLOWs has to match. A policy on trial (`dry_run`) decides
//! nothing, its answer is only reported. A refusal is a verdict, not an error.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{Action, Identity, Policy, PolicyContext, Snapshot, Workload};

/// A connection that reached its destination's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundRequest<'a> {
    /// The workload it is for; its policies are asked.
    pub workload: &'a Workload,
    /// The identity that the client proved with mutual TLS; none for plaintext.
    pub source: Option<&'a Identity>,
    /// The client's own address.
    pub source_ip: IpAddr,
    /// What the client gets to: an address of the workload and a port, which is the application
    /// tunnel's for what came in a tunnel, where the workload has one.
    pub destination: SocketAddr,
}

/// Whether a connection may arrive, and the policy that said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow {
        /// The ALLOW policy that matched; none where no ALLOW policy applies.
        by: Option<Arc<Policy>>,
    },
    /// It may not.
    Deny {
        /// The DENY policy that matched; none where ALLOW policies apply and none matched.
        by: Option<Arc<Policy>>,
    },
}

impl Verdict {
    /// Whether the connection may arrive.
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

/// What a policy on trial says about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// One of its rules matches: enforced, it would do what its action says.
    Matched,
    /// None matches.
    Unmatched,
}

/// A policy on trial and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its answer.
    pub outcome: Trial,
}

/// A verdict and what the policies on trial said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// What counts.
    pub verdict: Verdict,
    /// To be logged and counted. Empty, and not allocated, where nothing is on trial.
    pub dry_runs: SmallVec<[DryRun; 1]>,
}

/// Asks every policy that applies to the destination workload.
#[must_use]
pub fn authorize(request: &InboundRequest<'_>, snapshot: &Snapshot) -> Authorization {
    let context = PolicyContext {
        source: request.source,
        source_ip: request.source_ip,
        destination: request.destination,
    };
    let mut dry_runs = SmallVec::new();
    let mut denied = None;
    let mut allowed = None;
    let mut allow_applies = false;
    for policy in snapshot.policies_for(request.workload) {
        if policy.dry_run {
            let matched = policy.matches(&context);
            let outcome = if matched {
                Trial::Matched
            } else {
                Trial::Unmatched
            };
            dry_runs.push(DryRun {
                policy: policy.clone(),
                outcome,
            });
            continue;
        }
        // The first one that matches is the one reported; the others need not be asked.
        let found = match policy.action {
            Action::Deny => &mut denied,
            Action::Allow => {
                allow_applies = true;
                &mut allowed
            }
        };
        if found.is_none() && policy.matches(&context) {
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

#[cfg(test)]
mod tests;
