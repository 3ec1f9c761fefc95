//! Layer-7 conditions of policies. Only a waypoint sees requests; a node proxy evaluates the same
//! policies without one.

use super::{Action, StringMatch, kind};

/// The attributes of an HTTP request that policies match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpAttributes<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// The authority, in lower case and without a port.
    pub host: &'a str,
    /// The path without the query, normalized.
    pub path: &'a str,
}

/// Conditions on an HTTP request. Values of a kind are ORed, kinds are ANDed, `not_` kinds negate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of the security API")]
pub struct HttpMatch {
    pub methods: Vec<StringMatch>,
    pub not_methods: Vec<StringMatch>,
    pub hosts: Vec<StringMatch>,
    pub not_hosts: Vec<StringMatch>,
    pub paths: Vec<StringMatch>,
    pub not_paths: Vec<StringMatch>,
}

impl HttpMatch {
    /// Whether every kind that is set holds.
    ///
    /// Without a request the conditions are unknown, and the policy is enforced more strictly than
    /// intended, as Istio's ztunnel does: an ALLOW policy does not match, a DENY policy matches.
    #[must_use]
    pub fn matches(&self, http: Option<&HttpAttributes<'_>>, action: Action) -> bool {
        let Some(http) = http else {
            return action == Action::Deny;
        };
        let method = |want: &StringMatch| want.matches(http.method);
        let host = |want: &StringMatch| want.matches(http.host);
        let path = |want: &StringMatch| want.matches(http.path);
        kind(&self.methods, &self.not_methods, method)
            && kind(&self.hosts, &self.not_hosts, host)
            && kind(&self.paths, &self.not_paths, path)
    }
}
