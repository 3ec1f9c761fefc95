//! The settings as the rest of the program sees them: complete, typed, checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    Acceleration, Authority, Bytes, CaptureBy, Instance, LaneOverride, LocalAuthority, SameNode,
    Xds,
};
use mesh::local::LocalMesh;
use mesh::{Snapshot, Uid};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The node's name.
    pub node: Arc<str>,
    /// The cluster's id.
    pub cluster_id: Arc<str>,
    /// The network that this node is in; empty is the default one.
    pub network: Arc<str>,
    /// The trust domain of the certificates that are issued, and of workloads that name none.
    pub trust_domain: Arc<str>,
    /// For whom this proxy works.
    pub mode: Mode,
    /// The file with the description of the mesh, if it is in one of its own; to be watched.
    pub mesh_file: Option<PathBuf>,
    /// The pods to enrol.
    pub pods: Vec<Pod>,
    /// Who else says which pods to enrol, if anybody does.
    pub node_agent: Option<NodeAgent>,
    /// Where certificates come from.
    pub ca: Authority,
    /// Where the control plane tells what the mesh is, besides what the settings say of it.
    pub xds: Option<Xds>,
    /// The file with the revocation lists, if there is one; watched.
    pub crl: Option<PathBuf>,
    /// Who this proxy is when it asks the control plane.
    pub instance: Instance,
    /// Where the admin interface listens; a loopback address.
    pub admin: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub readiness: SocketAddr,
    /// How connections are captured.
    pub capture: Capture,
    /// How DNS is answered where it is captured; none leaves it alone.
    pub dns: Option<Dns>,
    /// What needs the workload of a pod that was announced and not pushed waits for it up to this long;
    /// zero is not at all.
    #[serde(serialize_with = "super::units::as_text")]
    pub workload_wait: Duration,
    /// Which lane the pods of this node take to each other; direct only if both ends say so.
    pub same_node: SameNode,
    /// Whether direct connections are joined; only if both ends say so.
    pub acceleration: Acceleration,
    /// The workloads for which one of these two is otherwise.
    pub overrides: Vec<LaneOverride>,
    /// Tunnels.
    pub hbone: Hbone,
    /// Whether pods may say by SOCKS where they want to go.
    pub socks5: bool,
    /// Whether what is delivered with a PROXY header goes to the pod's loopback address.
    pub localhost_app_tunnel: bool,
    /// TCP keepalive on the connections of pods; none switches it off.
    pub keepalive: Option<Keepalive>,
    /// Worker threads.
    pub threads: NonZeroUsize,
    /// What is logged, and how.
    pub log: Log,
    /// After the signal to end, live connections may go on for this long.
    #[serde(serialize_with = "super::units::as_text")]
    pub termination_deadline: Duration,
    /// The mesh as the file, the file it names and the environment describe it together.
    #[serde(skip)]
    pub local_mesh: LocalMesh,
    /// What is allowed but probably not meant; to be logged.
    pub warnings: Vec<String>,
}

/// For whom a proxy works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// For the enrolled pods of a node.
    Shared,
    /// For one workload on a machine of its own, with everything in the process's own network
    /// namespace.
    Dedicated {
        /// Which one.
        workload: Uid,
    },
}

/// A pod to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Pod {
    /// The workload that it is. It is in the mesh and has addresses.
    pub workload: Uid,
    /// The path of its network namespace.
    pub netns: PathBuf,
}

/// The node agent (istio-cni), which says which pods of the node are in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeAgent {
    /// The path of its socket.
    pub socket: PathBuf,
}

impl NodeAgent {
    /// Where its socket is where nobody says otherwise.
    pub const SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
}

/// How connections are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// What takes the connections to the proxy.
    pub by: CaptureBy,
    /// Where programs, links and maps are pinned, in a BPF file system.
    pub bpf_directory: PathBuf,
    /// The cgroup whose processes' connections are looked at; none is the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// The mark of the proxy's own sockets.
    pub mark: u32,
    /// Destination ports of outbound connections that are never captured.
    pub exempt_ports: Vec<u16>,
    /// Destinations of outbound connections that are never captured.
    pub exempt_cidrs: Vec<IpNet>,
    /// Sources of inbound connections that are never captured.
    pub exempt_sources: Vec<IpNet>,
    /// How many verdicts of each kind the kernel remembers.
    pub verdicts: u32,
}

/// How DNS is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// For the resolver that the application asked, where the mesh does not know the name.
    #[serde(serialize_with = "super::units::as_text")]
    pub timeout: Duration,
}

/// Tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hbone {
    /// What a peer may send on one stream before it was passed on.
    pub stream_window: Bytes,
    /// The same for all streams of one connection together.
    pub connection_window: Bytes,
    /// The largest frame that is accepted.
    pub max_frame: Bytes,
    /// What one stream may have queued for sending.
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
    /// For a dial, TCP and TLS together.
    #[serde(serialize_with = "super::units::as_text")]
    pub connect_timeout: Duration,
    /// For the first HTTP/2 frames.
    #[serde(serialize_with = "super::units::as_text")]
    pub handshake_timeout: Duration,
    /// From a CONNECT to its response.
    #[serde(serialize_with = "super::units::as_text")]
    pub response_timeout: Duration,
    /// Between two PINGs on a silent connection.
    #[serde(serialize_with = "super::units::as_text")]
    pub ping_interval: Duration,
    /// Without an answer to a PING for this long, the connection is dead.
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
    /// Unanswered probes after which the connection is dead.
    pub retries: u32,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels by target, for example `info,ztunnel::hbone=debug`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How lines of the log look.
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

impl Default for Capture {
    fn default() -> Self {
        // The addresses that kubelet's probes come from in ambient mode.
        let probe_v4 = IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127));
        let probe_v6 = IpAddr::V6(Ipv6Addr::new(
            0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
        ));
        Self {
            by: CaptureBy::default(),
            bpf_directory: PathBuf::from("/sys/fs/bpf/ztunnel"),
            cgroup: None,
            mark: 1337,
            exempt_ports: Vec::new(),
            exempt_cidrs: Vec::new(),
            exempt_sources: vec![probe_v4.into(), probe_v6.into()],
            verdicts: 16_384,
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
