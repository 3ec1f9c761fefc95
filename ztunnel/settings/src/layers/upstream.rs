//! Merges the settings of the control plane: its discovery service, its certificate authority, and
//! the identity that this proxy presents.
//!
//! In a pod of a cluster (`KUBERNETES_SERVICE_HOST` is set) the defaults are Istio's services, with
//! the files that Istio's chart mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::environment::{Environment, UpstreamVariables};
use crate::file::File;
use crate::flags::Overrides;
use crate::units::Span;
use crate::{
    Authority, ConfigError, Headers, LocalAuthority, RemoteAuthority, Settings, Upstream, Xds,
};

/// Istio's control plane, from inside its cluster.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
/// Where Istio's chart mounts the control plane's root certificate.
const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
/// Where Istio's chart mounts the node's token.
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

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
pub(super) fn apply(
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
    let has_address = env.xds.address.is_some() || section.address.is_some();
    settings.xds = service
        .merged(env, &env.xds)
        .filter(|_| has_address || !local)
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
