//! SPIFFE identities of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";

/// The SPIFFE identity of a workload. Cloning shares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

/// A text is not a workload's SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a workload identity: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct ParseIdentityError {
    /// The first 256 characters of the text.
    pub text: String,
}

impl Identity {
    /// Builds the identity of a service account.
    ///
    /// # Errors
    /// When a part is empty, holds a `/`, or the whole is longer than 2048 bytes (the limit of
    /// the SPIFFE-ID specification, section 2.3).
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseIdentityError> {
        Self::format(trust_domain, namespace, service_account)
            .to_string()
            .parse()
    }

    /// The whole identity, `spiffe://` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The identity without `spiffe://`, as policies write principals.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// The trust domain, for example `cluster.local`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text
            [usize::from(self.trust_domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }

    /// Formats the parts as an identity, without checking them.
    pub(super) fn format(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            write!(
                f,
                "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"
            )
        })
    }

    /// Parses an identity. `share` returns the text that the identity keeps.
    pub(super) fn parse_shared(
        text: &str,
        share: impl FnOnce(&str) -> Arc<str>,
    ) -> Result<Self, ParseIdentityError> {
        let refuse = || ParseIdentityError {
            text: text.chars().take(256).collect(),
        };
        if text.len() > 2048 {
            return Err(refuse());
        }
        let path = text.strip_prefix(SCHEME).ok_or_else(refuse)?;
        let mut parts = path.split('/');
        let fields = [
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ];
        let [
            Some(trust_domain),
            Some("ns"),
            Some(namespace),
            Some("sa"),
            Some(account),
        ] = fields
        else {
            return Err(refuse());
        };
        let whole = parts.next().is_none();
        if !whole
            || [trust_domain, namespace, account]
                .iter()
                .any(|part| part.is_empty())
        {
            return Err(refuse());
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self {
            text: share(text),
            trust_domain_end: u16::try_from(trust_domain_end).map_err(|_too_long| refuse())?,
            namespace_end: u16::try_from(namespace_end).map_err(|_too_long| refuse())?,
        })
    }
}

impl FromStr for Identity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_shared(text, |text| text.into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_built_and_parsed_back() {
        let id = Identity::new("cluster.local", "default", "web").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/default/sa/web");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/web");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "default", "web")
        );
    }

    #[test]
    fn malformed_identities_are_refused() {
        for text in [
            "",
            "spiffe://",
            "cluster.local/ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
            "https://td/ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
        assert!(
            format!("spiffe://td/ns/a/sa/{}", "x".repeat(3000))
                .parse::<Identity>()
                .is_err()
        );
        assert!(Identity::new("td", "a/b", "c").is_err());
    }
}
