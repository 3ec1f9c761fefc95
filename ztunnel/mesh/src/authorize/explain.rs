//! Every step of an authorization as data.

use std::sync::Arc;

use super::{Authorization, InboundRequest, evaluate};
use crate::{Policy, Snapshot};

/// The result of one policy for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evaluation {
    /// The rule with this index is the first one that matches.
    Matched {
        /// The index of the rule in [`Policy::rules`].
        rule: usize,
    },
    /// No rule matches.
    Unmatched,
    /// The policy was not evaluated: an earlier policy of the same action has matched.
    Skipped,
}

impl Evaluation {
    pub(super) fn of(rule: Option<usize>) -> Self {
        rule.map_or(Self::Unmatched, |rule| Self::Matched { rule })
    }
}

/// One policy that applies to the destination. The policy holds its name, scope, action and whether
/// it is a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStep {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its result.
    pub evaluation: Evaluation,
}

/// An authorization with the steps that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Every policy that applies to the destination, in the order of evaluation.
    pub policies: Vec<PolicyStep>,
    /// The result, the same as that of [`authorize`](super::authorize).
    pub result: Authorization,
}

/// Authorizes a connection as [`authorize`](super::authorize) does, and records each step: both run
/// the same code.
#[must_use]
pub fn explain(request: &InboundRequest<'_>, snapshot: &Snapshot) -> Explanation {
    let mut policies = Vec::new();
    let result = evaluate(request, snapshot, |policy, evaluation| {
        policies.push(PolicyStep {
            policy: policy.clone(),
            evaluation,
        });
    });
    Explanation { policies, result }
}
