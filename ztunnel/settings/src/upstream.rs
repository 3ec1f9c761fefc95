//! The settings of the control plane: the addresses of its discovery service and its certificate
//! authority, and the identity that this proxy presents.
//!
//! In a pod of a cluster (`KUBERNETES_SERVICE_HOST` is set) the defaults are Istio's services, with
//! the files that Istio's chart mounts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::environment::{Environment, UpstreamVariables};
use super::file::File;
use super::units::Span;
use super::{ConfigError, Overrides, Settings};

/// Istio's control plane, from inside its cluster.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
/// Where Istio's chart mounts the control plane's root certificate.
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
/// Where Istio's chart mounts the node's token.
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

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

/// The settings file's section for the discovery service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct XdsSection {
    address: Option<String>,
    root_certificate: Option<PathBuf>,
    hostname: Option<String>,
    token: Option<PathBuf>,
    headers: BTreeMap<String, String>,
    on_demand: Option<bool>,
}

/// The settings file's section for the certificate authority.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CaSection {
    local: Option<LocalSection>,
    address: Option<String>,
    root_certificate: Option<PathBuf>,
    hostname: Option<String>,
    token: Option<PathBuf>,
    headers: BTreeMap<String, String>,
    mesh_roots: Option<PathBuf>,
    leaf_ttl: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocalSection {
    directory: PathBuf,
    leaf_ttl: Option<Span>,
}

/// The settings file's values for one service.
struct ServiceSection<'a> {
    address: Option<&'a String>,
    root: Option<&'a PathBuf>,
    hostname: Option<&'a String>,
    token: Option<&'a PathBuf>,
    headers: &'a BTreeMap<String, String>,
}

impl ServiceSection<'_> {
    /// The service, if the environment, the file or the cluster defines its address.
    fn merged(&self, env: &Environment, variables: &UpstreamVariables) -> Option<Upstream> {
        let named = variables.address.as_ref().or(self.address).cloned();
        let in_cluster = env.in_cluster.then(|| ISTIOD.to_owned());
        let address = with_scheme(named.or(in_cluster)?);
        let root = match variables.root.as_ref().or(self.root) {
            // Istio's name for the root certificates of the system.
            Some(root) if root.as_os_str() == "SYSTEM" => None,
            Some(root) => Some(root.clone()),
            None => mounted(ROOT),
        };
        let mut headers = self.headers.clone();
        headers.extend(variables.headers.clone());
        let token = env.token.as_ref().or(self.token).cloned();
        Some(Upstream {
            address,
            root,
            hostname: variables.hostname.as_ref().or(self.hostname).cloned(),
            token: token.or_else(|| mounted(TOKEN)),
            headers: Headers(headers.into_iter().collect()),
        })
    }
}

/// A file that Istio's chart mounts, if it exists.
fn mounted(path: &str) -> Option<PathBuf> {
    Path::new(path).exists().then(|| PathBuf::from(path))
}

fn with_scheme(address: String) -> String {
    if address.contains("://") {
        address
    } else {
        format!("https://{address}")
    }
}

/// Applies the file, the environment and the flags to the defaults.
pub(super) fn lay(
    settings: &mut Settings,
    file: &File,
    env: &Environment,
    flags: &Overrides,
) -> Result<(), ConfigError> {
    settings.instance = env.instance.clone();
    settings.crl = env.crl.as_ref().or(file.crl.as_ref()).cloned();
    settings.ca = authority(file, env, flags)?;
    let section = &file.xds;
    let service = ServiceSection {
        address: section.address.as_ref(),
        root: section.root_certificate.as_ref(),
        hostname: section.hostname.as_ref(),
        token: section.token.as_ref(),
        headers: &section.headers,
    };
    // A local description of the mesh replaces the control plane, unless its address is set too.
    let local = flags.mesh_file.is_some()
        || env.mesh_file.is_some()
        || env.mesh_text.is_some()
        || file.describes_the_mesh();
    let asked = env.xds.address.is_some() || section.address.is_some();
    settings.xds = service
        .merged(env, &env.xds)
        .filter(|_| asked || !local)
        .map(|upstream| Xds {
            upstream,
            on_demand: env.on_demand.or(section.on_demand).unwrap_or(false),
        });
    Ok(())
}

fn authority(file: &File, env: &Environment, flags: &Overrides) -> Result<Authority, ConfigError> {
    const LEAF_TTL: Duration = Duration::from_secs(24 * 60 * 60);
    let section = &file.ca;
    let local = section.local.as_ref();
    if section.local.is_some() && section.address.is_some() {
        return Err(ConfigError::Contradiction {
            key: "ca.address".to_owned(),
            problem: "ca.local is set too; set only one of them".to_owned(),
        });
    }
    let ttl = |own: Option<Span>| {
        let of_file = own.map(|ttl| ttl.0);
        env.leaf_ttl.or(of_file).unwrap_or(LEAF_TTL)
    };
    let of_file = local.filter(|_| env.ca.address.is_none());
    let directory = flags.ca_directory.as_ref();
    if let Some(directory) = directory.or_else(|| of_file.map(|local| &local.directory)) {
        return Ok(Authority::Local(LocalAuthority {
            directory: directory.clone(),
            leaf_ttl: ttl(local.and_then(|local| local.leaf_ttl)),
        }));
    }
    if env.fake_ca {
        return Err(ConfigError::Environment {
            name: "FAKE_CA",
            problem: "this proxy does not issue unverified certificates; set ca.local.directory \
                      for a certificate authority inside the proxy"
                .to_owned(),
        });
    }
    let service = ServiceSection {
        address: section.address.as_ref(),
        root: section.root_certificate.as_ref(),
        hostname: section.hostname.as_ref(),
        token: section.token.as_ref(),
        headers: &section.headers,
    };
    let upstream = service.merged(env, &env.ca).ok_or(ConfigError::Missing {
        key: "ca.local.directory",
        remedy: "set it to the directory for the keys of the mesh's certificate authority, or set \
                 ca.address to use that of the control plane",
    })?;
    let mesh_roots = env.mesh_roots.as_ref().or(section.mesh_roots.as_ref());
    Ok(Authority::Remote(RemoteAuthority {
        upstream,
        mesh_roots: mesh_roots.cloned().or_else(|| mounted(ROOT)),
        leaf_ttl: ttl(section.leaf_ttl),
    }))
}
