//! The settings of the control plane: the addresses of its discovery service and its certificate
//! authority, and the identity that this proxy presents.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A service of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// `https://host:port`; without a scheme, https.
    pub address: String,
    /// A file with the root certificates of the service; `None` means those of the system.
    pub root: Option<PathBuf>,
    /// The name in its certificate, if it differs from the address.
    pub hostname: Option<String>,
    /// A file with the bearer token to send, if one is sent.
    pub token: Option<PathBuf>,
    /// Headers to send with every request.
    pub headers: Headers,
}

/// Headers. Their values may be secrets, so only the names are shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Authority {
    /// The lifetime of a workload's certificate.
    #[must_use]
    pub const fn leaf_ttl(&self) -> Duration {
        match self {
            Self::Local(local) => local.leaf_ttl,
            Self::Remote(remote) => remote.leaf_ttl,
        }
    }

    /// The key that sets the lifetime.
    pub(super) const fn leaf_ttl_key(&self) -> &'static str {
        match self {
            Self::Local(_) => "ca.local.leafTtl",
            Self::Remote(_) => "ca.leafTtl",
        }
    }
}

impl Headers {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(name, _)| name)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// The control plane's discovery service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Xds {
    /// The service.
    #[serde(flatten)]
    pub upstream: Upstream,
    /// Whether a workload or service is requested when a pod first calls it, instead of all of
    /// them at the start.
    pub on_demand: bool,
}

/// The certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Authority {
    /// The certificate authority inside this process.
    Local(LocalAuthority),
    /// The certificate authority of the control plane.
    Remote(RemoteAuthority),
}

/// The certificate authority inside the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAuthority {
    /// The directory of the root's key and certificate, which are created if they are missing.
    /// Proxies that share the directory share the mesh.
    pub directory: PathBuf,
    /// The lifetime of a workload's certificate, which is rotated after half of it.
    #[serde(serialize_with = "super::units::as_text")]
    pub leaf_ttl: Duration,
}

/// The control plane's certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteAuthority {
    /// The service.
    #[serde(flatten)]
    pub upstream: Upstream,
    /// A file with roots of the mesh in addition to those that the authority returns, as during a
    /// root rotation. The root of the authority's own address is not one of them: a CA that
    /// signs the address's certificate must not be able to issue workload identities.
    pub mesh_roots: Option<PathBuf>,
    /// The requested lifetime of a workload's certificate, which is rotated after half of it.
    #[serde(serialize_with = "super::units::as_text")]
    pub leaf_ttl: Duration,
}

/// The identity that this proxy presents to the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// The address of its pod.
    pub ip: String,
    /// The name of its pod.
    pub pod: String,
    /// The namespace of its pod.
    pub namespace: String,
    /// The DNS suffix of the cluster.
    pub cluster_domain: String,
    /// `ISTIO_META_<key>`, without the prefix.
    pub metadata: BTreeMap<String, String>,
}
