//! The settings as the other crates see them: complete, typed, checked.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{
    Acceleration, Authority, Bytes, Capture, Instance, LocalAuthority, PathOverride, SameNode, Xds,
};
use mesh::local::LocalMesh;
use mesh::{Snapshot, Uid};

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The node's name.
    pub node: Arc<str>,
    /// The cluster's id.
    pub cluster_id: Arc<str>,
    /// The network of this node; empty means the default network.
    pub network: Arc<str>,
    /// The trust domain of the certificates that are issued, and of workloads that name none.
    pub trust_domain: Arc<str>,
    /// Which workloads this proxy serves.
    pub mode: Mode,
    /// The separate file with the description of the mesh, if there is one; it is watched.
    pub mesh_file: Option<PathBuf>,
    /// The pods to enrol.
    pub pods: Vec<Pod>,
    /// The node agent that names further pods, if one is configured.
    pub node_agent: Option<NodeAgent>,
    /// The certificate authority.
    pub ca: Authority,
    /// The control plane that sends the mesh configuration, if one is used.
    pub xds: Option<Xds>,
    /// The file with the revocation lists, if there is one; it is watched.
    pub crl: Option<PathBuf>,
    /// The identity that this proxy presents to the control plane.
    pub instance: Instance,
    /// Where the admin interface listens; a loopback address.
    pub admin: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub readiness: SocketAddr,
    /// How connections are captured.
    pub capture: Capture,
    /// How captured DNS queries are answered; `None` does not capture them.
    pub dns: Option<Dns>,
    /// How long connections and DNS questions of a new pod wait for its workload; zero does not
    /// wait.
    #[serde(serialize_with = "super::units::as_text")]
    pub workload_wait: Duration,
    /// The path between pods of this node; the fast path only if both ends have it set.
    pub same_node: SameNode,
    /// Whether fast-path connections are joined; only if both ends have it set.
    pub acceleration: Acceleration,
    /// Exceptions from these two for single workloads.
    pub overrides: Vec<PathOverride>,
    /// Tunnels.
    pub hbone: Hbone,
    /// Whether pods may name their destinations by SOCKS 5.
    pub socks5: bool,
    /// Whether connections with a PROXY header are delivered to the pod's loopback address.
    pub localhost_app_tunnel: bool,
    /// TCP keepalive on the connections of pods; `None` turns it off.
    pub keepalive: Option<Keepalive>,
    /// Worker threads.
    pub threads: NonZeroUsize,
    /// The filter and the format of the log.
    pub log: Log,
    /// How long open connections may go on after the signal to stop.
    #[serde(serialize_with = "super::units::as_text")]
    pub termination_deadline: Duration,
    /// The mesh that the settings file, the mesh file and the environment describe together.
    #[serde(skip)]
    pub local_mesh: LocalMesh,
    /// Values that are allowed but probably mistakes; they are logged.
    pub warnings: Vec<String>,
}

/// Which workloads a proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The enrolled pods of a node.
    Shared,
    /// One workload on a machine of its own, in the network namespace of the process.
    Dedicated {
        /// The workload.
        workload: Uid,
    },
}

/// A pod to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Pod {
    /// Its workload, which is in the mesh and has addresses.
    pub workload: Uid,
    /// The path of its network namespace.
    pub netns: PathBuf,
}

/// The node agent (istio-cni), which names the pods of the node that are in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeAgent {
    /// The path of its socket.
    pub socket: PathBuf,
}

impl NodeAgent {
    /// The default path of its socket.
    pub const SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
}

/// How DNS is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// The time limit of the pod's resolver, for names outside of the mesh.
    #[serde(serialize_with = "super::units::as_text")]
    pub timeout: Duration,
}

/// Tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hbone {
    /// The bytes that a peer may send on one stream before they are delivered.
    pub stream_window: Bytes,
    /// The same for all streams of one connection together.
    pub connection_window: Bytes,
    /// The largest frame that is accepted.
    pub max_frame: Bytes,
    /// The bytes that one stream may queue for sending.
    pub send_buffer: Bytes,
    /// Tunnels on one pooled connection before another one is dialled.
    pub max_streams_per_connection: u32,
    /// Streams that a client may have open on one accepted connection.
    pub max_concurrent_streams: u32,
    /// The largest list of headers that is accepted.
    pub header_list_max: Bytes,
    /// A pooled connection without a tunnel is closed after this.
    #[serde(serialize_with = "super::units::as_text")]
    pub idle_release: Duration,
    /// An accepted connection without a tunnel is closed after this.
    #[serde(serialize_with = "super::units::as_text")]
    pub server_idle: Duration,
    /// The time limit of a dial, TCP and TLS together.
    #[serde(serialize_with = "super::units::as_text")]
    pub connect_timeout: Duration,
    /// The time limit of the first HTTP/2 frames.
    #[serde(serialize_with = "super::units::as_text")]
    pub handshake_timeout: Duration,
    /// From a CONNECT to its response.
    #[serde(serialize_with = "super::units::as_text")]
    pub response_timeout: Duration,
    /// Between two PINGs on a silent connection.
    #[serde(serialize_with = "super::units::as_text")]
    pub ping_interval: Duration,
    /// A connection without an answer to a PING for this long is closed.
    #[serde(serialize_with = "super::units::as_text")]
    pub ping_timeout: Duration,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Silence before the first probe.
    #[serde(serialize_with = "super::units::as_text")]
    pub time: Duration,
    /// Between two probes.
    #[serde(serialize_with = "super::units::as_text")]
    pub interval: Duration,
    /// Unanswered probes after which the connection is closed.
    pub retries: u32,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels by target, for example `info,ztunnel::tunnel=debug`.
    pub filter: String,
    /// The format of its lines.
    pub format: LogFormat,
}

/// The format of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Builds the snapshot of the mesh.
    #[must_use]
    pub fn mesh(&self) -> Snapshot {
        self.local_mesh.clone().into_snapshot()
    }

    /// The defaults, with nothing in the mesh, no node and no certificate authority.
    #[must_use]
    pub fn initial() -> Self {
        Self {
            node: "".into(),
            cluster_id: "Kubernetes".into(),
            network: "".into(),
            trust_domain: "cluster.local".into(),
            mode: Mode::Shared,
            mesh_file: None,
            pods: Vec::new(),
            node_agent: None,
            ca: Authority::Local(LocalAuthority {
                directory: PathBuf::new(),
                leaf_ttl: Duration::from_secs(24 * 60 * 60),
            }),
            xds: None,
            crl: None,
            instance: Instance::default(),
            admin: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15000),
            metrics: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 15020),
            readiness: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 15021),
            capture: Capture::default(),
            dns: Some(Dns::default()),
            workload_wait: Duration::from_secs(5),
            same_node: SameNode::default(),
            acceleration: Acceleration::default(),
            overrides: Vec::new(),
            hbone: Hbone::default(),
            socks5: false,
            localhost_app_tunnel: true,
            keepalive: Some(Keepalive::default()),
            threads: NonZeroUsize::MIN,
            log: Log {
                filter: "info".to_owned(),
                format: LogFormat::default(),
            },
            termination_deadline: Duration::from_secs(5),
            local_mesh: LocalMesh::default(),
            warnings: Vec::new(),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Hbone {
    fn default() -> Self {
        Self {
            stream_window: Bytes(1 << 20),
            connection_window: Bytes(128 << 20),
            max_frame: Bytes(1 << 20),
            send_buffer: Bytes(1 << 20),
            max_streams_per_connection: 100,
            max_concurrent_streams: 127,
            header_list_max: Bytes(16 << 10),
            idle_release: Duration::from_secs(5 * 60),
            server_idle: Duration::from_secs(10 * 60),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        let time = Duration::from_secs(180);
        Self {
            time,
            interval: time,
            retries: 9,
        }
    }
}
