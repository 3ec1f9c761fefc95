//! The flags of the command line that override settings.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::LogFormat;

/// The flags of the command line; they take precedence over all other layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The node's name.
    pub node: Option<String>,
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// The network.
    pub network: Option<String>,
    /// The trust domain.
    pub trust_domain: Option<String>,
    /// Serve only this workload (mode dedicated).
    pub workload: Option<String>,
    /// The file with the description of the mesh.
    pub mesh_file: Option<PathBuf>,
    /// The directory of the local certificate authority.
    pub ca_directory: Option<PathBuf>,
    /// Where programs and maps are pinned.
    pub bpf_directory: Option<PathBuf>,
    /// Where the admin interface listens.
    pub admin: Option<SocketAddr>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where readiness is served.
    pub readiness: Option<SocketAddr>,
    /// Worker threads.
    pub threads: Option<NonZeroUsize>,
    /// Levels of the log.
    pub log_filter: Option<String>,
    /// How lines of the log look.
    pub log_format: Option<LogFormat>,
}
