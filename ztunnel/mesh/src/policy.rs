//! Authorization policies (`istio.security.Authorization`) and how one policy is matched.
//! The order in which policies are asked is in `path::authorize`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::Identity;

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
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
    /// Workloads that list it in `authorization_policies`.
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
#[allow(missing_docs, reason = "the names say it")]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// Values of a kind are ORed, kinds are ANDed, `not_` kinds negate. With no kind set it matches
/// nothing.
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
    /// Whom it applies to.
    pub scope: PolicyScope,
    /// What it does.
    pub action: Action,
    /// Rules are ORed; without rules it matches nothing.
    pub rules: Vec<Rule>,
    /// Evaluated, logged and counted, never enforced.
    pub dry_run: bool,
    /// It has conditions that this proxy cannot see, and is enforced more strictly than it was meant:
    /// an ALLOW does not match by them, a DENY matches without them. One that could not be read at
    /// all refuses everybody whom it concerns.
    pub unseen: bool,
}

/// What policies are asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyContext<'a> {
    /// The client's identity, if mutual TLS proved one.
    pub source: Option<&'a Identity>,
    /// The client's address, as it was when it opened the connection.
    pub source_ip: IpAddr,
    /// The destination's address and port: for what came in a tunnel the application tunnel's port,
    /// where the workload has one (as Istio judges it).
    pub destination: SocketAddr,
}

impl Policy {
    /// `namespace/name`, by which workloads list it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether any rule matches. Whom the policy applies to and what follows from the answer is
    /// not asked here.
    #[must_use]
    pub fn matches(&self, context: &PolicyContext<'_>) -> bool {
        self.rules.iter().any(|rule| {
            rule.iter()
                .all(|clause| clause.is_empty() || clause.iter().any(|each| each.matches(context)))
        })
    }
}

impl StringMatch {
    /// Compares a text. An empty one is not present.
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
    /// Whether every kind that is set agrees. Without an identity, what asks for a property of
    /// the source's identity is false, and so what negates it is true: "not any principal"
    /// matches exactly the clients that proved no identity, which is how a demand for mutual TLS
    /// is written.
    #[must_use]
    pub fn matches(&self, context: &PolicyContext<'_>) -> bool {
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
    }

    /// Whether no kind is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One kind and its negation: true where nothing is asked, or any wanted value agrees, and no
/// unwanted one does.
fn kind<T>(wanted: &[T], unwanted: &[T], agrees: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&agrees)) && !unwanted.iter().any(&agrees)
}
