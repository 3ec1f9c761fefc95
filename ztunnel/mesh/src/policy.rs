//! Authorization policies (`istio.security.Authorization`) and how one policy is matched.
//! [`authorize`](crate::authorize) combines several policies to a verdict.

mod http;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::Identity;

pub use http::{HttpAttributes, HttpMatch};

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "names of the security API")]
pub enum Action {
    Allow,
    Deny,
}

/// Which workloads a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PolicyScope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// Workloads that list the policy in `authorization_policies`.
    WorkloadSelector,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of the security API")]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Presence,
}

/// A namespace with a service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "names of the security API")]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// Values of a kind are ORed, kinds are ANDed, `not_` kinds negate. A match without any kind
/// matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of the security API")]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    /// Boxed, because policies of a node proxy rarely have one.
    pub http: Option<Box<HttpMatch>>,
}

/// Matches of a clause are ORed; an empty clause matches everything.
pub type Clause = Vec<Match>;
/// Clauses of a rule are ANDed.
pub type Rule = Vec<Clause>;

/// An authorization policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The workloads that it applies to.
    pub scope: PolicyScope,
    /// The effect of a match.
    pub action: Action,
    /// Rules are ORed; a policy without rules matches nothing.
    pub rules: Vec<Rule>,
    /// Evaluated, logged and counted, never enforced.
    pub dry_run: bool,
    /// The policy has conditions that this proxy does not know, so it is enforced more strictly
    /// than intended: a rule of an ALLOW policy with such a condition never matches, a DENY policy
    /// matches as if the condition held. A placeholder policy denies every connection to the
    /// workloads that it applies to.
    pub has_unknown_conditions: bool,
}

/// The attributes of a connection or request that policies match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyContext<'a> {
    /// The client's identity, if mutual TLS proved one.
    pub source: Option<&'a Identity>,
    /// The client's address at the time when it opened the connection.
    pub source_ip: IpAddr,
    /// The destination's address and port. For a tunnelled connection the port is that of the
    /// application tunnel, if the workload has one (as in Istio).
    pub destination: SocketAddr,
    /// The request; `None` for a connection, of which only layer 4 is known.
    pub http: Option<HttpAttributes<'a>>,
}

impl Policy {
    /// `namespace/name`, the key under which workloads list the policy.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether any rule matches, regardless of scope and action.
    #[must_use]
    pub fn matches(&self, context: &PolicyContext<'_>) -> bool {
        self.matching_rule(context).is_some()
    }

    /// The index of the first rule that matches.
    #[must_use]
    pub fn matching_rule(&self, context: &PolicyContext<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| {
            rule.iter().all(|clause| {
                clause.is_empty() || clause.iter().any(|each| each.matches(context, self.action))
            })
        })
    }
}

impl StringMatch {
    /// Compares a text. An empty text is not present.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl ServiceAccountMatch {
    fn matches(&self, identity: &Identity) -> bool {
        *self.namespace == *identity.namespace()
            && *self.service_account == *identity.service_account()
    }
}

impl Match {
    /// Whether every kind that is set holds. For a client without an identity, each condition on
    /// the identity is false and its negation true: "not any principal" matches exactly the clients
    /// without an identity, so a DENY policy with it demands mutual TLS. `action` is that of the
    /// policy.
    #[must_use]
    pub fn matches(&self, context: &PolicyContext<'_>, action: Action) -> bool {
        let source = context.source;
        let namespace = |want: &StringMatch| source.is_some_and(|id| want.matches(id.namespace()));
        let principal = |want: &StringMatch| source.is_some_and(|id| want.matches(id.principal()));
        let account = |want: &ServiceAccountMatch| source.is_some_and(|id| want.matches(id));
        let source_ip = context.source_ip.to_canonical();
        let from = |net: &IpNet| net.contains(&source_ip);
        let destination_ip = context.destination.ip().to_canonical();
        let to = |net: &IpNet| net.contains(&destination_ip);
        let port = |port: &u16| *port == context.destination.port();

        !self.is_empty()
            && kind(&self.namespaces, &self.not_namespaces, namespace)
            && kind(&self.principals, &self.not_principals, principal)
            && kind(&self.service_accounts, &self.not_service_accounts, account)
            && kind(&self.source_ips, &self.not_source_ips, from)
            && kind(&self.destination_ips, &self.not_destination_ips, to)
            && kind(&self.destination_ports, &self.not_destination_ports, port)
            && self
                .http
                .as_ref()
                .is_none_or(|http| http.matches(context.http.as_ref(), action))
    }

    /// Whether no kind is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One kind and its negation: no value is required or one of the required values holds, and none of
/// the excluded values holds.
fn kind<T>(required: &[T], excluded: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (required.is_empty() || required.iter().any(&holds)) && !excluded.iter().any(&holds)
}
