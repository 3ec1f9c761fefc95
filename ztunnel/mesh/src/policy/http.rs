//! Layer-7 conditions of policies. Only a waypoint sees requests; a node proxy evaluates the same
//! policies without a request.

use super::{Action, StringMatch, kind};

/// The attributes of an HTTP request that policies match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpAttributes<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// The authority without a port, in lower case; so are the patterns that it is compared with.
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
    /// intended: in an ALLOW policy they do not hold, in a DENY policy they do. Istio's control plane
    /// translates such conditions in the same way for its ztunnel.
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
