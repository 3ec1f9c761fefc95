//! The table itself.

use super::Default::{Shown, Words};
use super::{Default, LogFormat, show};

/// Key, unit, variable, default and meaning.
pub(super) type Columns = (
    &'static str,
    &'static str,
    &'static str,
    Default,
    &'static str,
);

/// Every setting, in the order of the document.
pub(super) static TABLE: &[Columns] = &[
    (
        "node",
        "name",
        "NODE_NAME",
        Words("required"),
        "The node this proxy runs on.",
    ),
    (
        "clusterId",
        "name",
        "CLUSTER_ID",
        Shown(|s| s.cluster_id.to_string()),
        "The cluster's id. The variable `ISTIO_META_CLUSTER_ID` counts where that one is not set.",
    ),
    (
        "network",
        "name",
        "NETWORK",
        Words("the default network"),
        "The network the node is in.",
    ),
    (
        "trustDomain",
        "name",
        "",
        Shown(|s| s.trust_domain.to_string()),
        "The trust domain of the certificates that are issued and of workloads that name none.",
    ),
    (
        "mode",
        "shared, dedicated",
        "PROXY_MODE",
        Words("`shared`"),
        "Work for the enrolled pods of a node, or for one workload on a machine of its own.",
    ),
    (
        "workload",
        "uid",
        "PROXY_WORKLOAD_INFO",
        Words("required in the mode dedicated"),
        "The workload of a dedicated proxy. The variable holds `namespace/name/service account` instead of a uid.",
    ),
    (
        "threads",
        "number, 1 to 256",
        "ZTUNNEL_WORKER_THREADS",
        Words("as many as processors, at most 2"),
        "Worker threads. The variable may be a share such as `50%` of the processors, of which `ZTUNNEL_CPU_LIMIT` gives the number.",
    ),
    (
        "log.filter",
        "filter",
        "RUST_LOG",
        Shown(|s| s.log.filter.clone()),
        "What is logged: levels by target, such as `info,ztunnel::hbone=debug`.",
    ),
    (
        "log.format",
        "text, json",
        "LOG_FORMAT",
        Shown(|s| match s.log.format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }),
        "How lines of the log look.",
    ),
    (
        "meshFile",
        "path",
        "LOCAL_XDS_PATH",
        Words("none"),
        "A file with more `workloads`, `services` and `policies`. The variable `LOCAL_XDS` may hold such a text itself. All of them count together.",
    ),
    (
        "pods",
        "list of {workload, netns}",
        "",
        Words("none"),
        "The pods to enrol: the uid of a workload and the path of its network namespace.",
    ),
    (
        "nodeAgent.socket",
        "path",
        "INPOD_UDS",
        Words("none"),
        "The socket of the node agent (istio-cni), which says which pods of the node are in the mesh; they count together with `pods`. `INPOD_ENABLED=true` asks for the agent, at `/var/run/ztunnel/ztunnel.sock` where nothing names another socket; `INPOD_ENABLED=false` asks for none. Changes only with a restart.",
    ),
    (
        "workloads",
        "list",
        "",
        Words("none"),
        "The workloads of the mesh.",
    ),
    (
        "services",
        "list",
        "",
        Words("none"),
        "The services of the mesh.",
    ),
    (
        "policies",
        "list",
        "",
        Words("none"),
        "The authorization policies of the mesh.",
    ),
    (
        "ca.local.directory",
        "path",
        "",
        Words("required, unless `ca.address` is set"),
        "Where the certificate authority inside the proxy keeps its key and certificate; made when missing. Proxies that share it share the mesh.",
    ),
    (
        "ca.local.leafTtl",
        "duration",
        "SECRET_TTL",
        Shown(|s| show(s.ca.leaf_ttl())),
        "For how long a workload's certificate is valid. It is rotated at half of it.",
    ),
    (
        "ca.address",
        "https://host:port",
        "CA_ADDRESS",
        Words("in a pod of a cluster `https://istiod.istio-system.svc:15012`"),
        "The control plane's certificate authority, instead of the one inside the proxy.",
    ),
    (
        "ca.rootCertificate",
        "path",
        "CA_ROOT_CA",
        Words(
            "`./var/run/secrets/istio/root-cert.pem` where it is there, else those of the system",
        ),
        "The certificates that vouch for it. `SYSTEM` stands for those of the system.",
    ),
    (
        "ca.hostname",
        "name",
        "ALT_CA_HOSTNAME",
        Words("the address's"),
        "The name in its certificate.",
    ),
    (
        "ca.token",
        "path",
        "AUTH_TOKEN",
        Words("`./var/run/secrets/tokens/istio-token` where it is there"),
        "The file with the token to send; read again when it is used.",
    ),
    (
        "ca.headers",
        "map of name to value",
        "",
        Words("none"),
        "Headers to send with every request. Each variable `CA_HEADER_<name>` is one more.",
    ),
    (
        "ca.leafTtl",
        "duration",
        "SECRET_TTL",
        Words("`24h`"),
        "The lifetime of a workload's certificate that is asked for.",
    ),
    (
        "xds.address",
        "https://host:port",
        "XDS_ADDRESS",
        Words(
            "in a pod of a cluster that is told nothing about the mesh `https://istiod.istio-system.svc:15012`, else none",
        ),
        "The control plane, which tells what the mesh is; what the settings say of it counts too.",
    ),
    (
        "xds.rootCertificate",
        "path",
        "XDS_ROOT_CA",
        Words("as that of `ca.rootCertificate`"),
        "The certificates that vouch for it. `SYSTEM` stands for those of the system.",
    ),
    (
        "xds.hostname",
        "name",
        "ALT_XDS_HOSTNAME",
        Words("the address's"),
        "The name in its certificate.",
    ),
    (
        "xds.token",
        "path",
        "AUTH_TOKEN",
        Words("as that of `ca.token`"),
        "The file with the token to send; read again for every connection.",
    ),
    (
        "xds.headers",
        "map of name to value",
        "",
        Words("none"),
        "Headers to send. Each variable `XDS_HEADER_<name>` is one more.",
    ),
    (
        "xds.onDemand",
        "true, false",
        "XDS_ON_DEMAND",
        Words("`false`"),
        "Ask for workloads and services when somebody calls them, instead of for all of them at the start.",
    ),
    (
        "admin.address",
        "address:port",
        "",
        Shown(|s| s.admin.to_string()),
        "Where the admin interface listens; a loopback address.",
    ),
    (
        "metrics.address",
        "address:port",
        "",
        Shown(|s| s.metrics.to_string()),
        "Where metrics are served.",
    ),
    (
        "readiness.address",
        "address:port",
        "",
        Shown(|s| s.readiness.to_string()),
        "Where readiness is served.",
    ),
    (
        "capture.bpfDirectory",
        "path",
        "",
        Shown(|s| s.capture.bpf_directory.display().to_string()),
        "Where programs, links and maps are pinned.",
    ),
    (
        "capture.cgroup",
        "path",
        "",
        Words("the root of cgroup v2"),
        "The cgroup whose processes' connections are looked at.",
    ),
    (
        "capture.mark",
        "number, not 0",
        "PACKET_MARK",
        Shown(|s| s.capture.mark.to_string()),
        "The mark of the proxy's own sockets.",
    ),
    (
        "capture.exemptPorts",
        "list of ports",
        "",
        Words("none"),
        "Destination ports of outbound connections that are never captured. Inbound connections to them still are.",
    ),
    (
        "capture.exemptCidrs",
        "list of address ranges",
        "",
        Words("none"),
        "Destinations of outbound connections that are never captured. Inbound connections from them still are.",
    ),
    (
        "capture.exemptSources",
        "list of address ranges",
        "",
        Shown(|s| {
            let cidrs: Vec<String> = s
                .capture
                .exempt_sources
                .iter()
                .map(ToString::to_string)
                .collect();
            cidrs.join(", ")
        }),
        "Sources of inbound connections that are never captured and meet no policy: those of kubelet's probes, unless told otherwise.",
    ),
    (
        "capture.verdicts",
        "number, 16 to 1048576",
        "ZTUNNEL_CAPTURE_VERDICTS",
        Shown(|s| s.capture.verdicts.to_string()),
        "How many verdicts of each kind the kernel remembers; those used least recently are forgotten and judged again. Changes only with a restart.",
    ),
    (
        "sameNode",
        "direct, tunnel",
        "ZTUNNEL_SAME_NODE",
        Shown(|s| s.same_node.to_string()),
        "How pods of one node reach each other where policy allows it: in plain TCP through the kernel, or in a tunnel as between nodes. Direct only if it is so for both ends.",
    ),
    (
        "acceleration",
        "auto, on, off",
        "ZTUNNEL_ACCELERATION",
        Shown(|s| s.acceleration.to_string()),
        "Whether the two ends of a direct connection are joined, socket to socket: `auto` where this kernel passes a self-test at the start, `on` even where it does not. Joined only if it is so for both ends.",
    ),
    (
        "overrides",
        "list of {workload, sameNode, acceleration}",
        "",
        Words("none"),
        "Workloads, named by uid, for which `sameNode` or `acceleration` is otherwise. What an entry leaves out is as for the node; a workload that the mesh does not have (yet) may be named.",
    ),
    (
        "hbone.streamWindow",
        "size",
        "HTTP2_STREAM_WINDOW_SIZE",
        Shown(|s| s.hbone.stream_window.to_string()),
        "What a peer may send on one stream before it was passed on: the bound on memory for one slow reader.",
    ),
    (
        "hbone.connectionWindow",
        "size",
        "HTTP2_CONNECTION_WINDOW_SIZE",
        Shown(|s| s.hbone.connection_window.to_string()),
        "The same for all streams of one connection together.",
    ),
    (
        "hbone.maxFrame",
        "size",
        "HTTP2_FRAME_SIZE",
        Shown(|s| s.hbone.max_frame.to_string()),
        "The largest frame that is accepted.",
    ),
    (
        "hbone.sendBuffer",
        "size",
        "",
        Shown(|s| s.hbone.send_buffer.to_string()),
        "What one stream may have queued for sending.",
    ),
    (
        "hbone.maxStreamsPerConnection",
        "number, 1 to 65535",
        "POOL_MAX_STREAMS_PER_CONNECTION",
        Shown(|s| s.hbone.max_streams_per_connection.to_string()),
        "Tunnels on one pooled connection before another one is dialled.",
    ),
    (
        "hbone.maxConcurrentStreams",
        "number, 1 to 65535",
        "",
        Shown(|s| s.hbone.max_concurrent_streams.to_string()),
        "Streams that a client may have open on one accepted connection.",
    ),
    (
        "hbone.headerListMax",
        "size",
        "",
        Shown(|s| s.hbone.header_list_max.to_string()),
        "The largest list of headers that is accepted.",
    ),
    (
        "hbone.idleRelease",
        "duration",
        "POOL_UNUSED_RELEASE_TIMEOUT",
        Shown(|s| show(s.hbone.idle_release)),
        "A pooled connection without a tunnel is closed after this.",
    ),
    (
        "hbone.serverIdle",
        "duration",
        "",
        Shown(|s| show(s.hbone.server_idle)),
        "An accepted connection without a tunnel is closed after this; at least twice `idleRelease` unless set.",
    ),
    (
        "hbone.connectTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.connect_timeout)),
        "For a dial, TCP and TLS together.",
    ),
    (
        "hbone.handshakeTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.handshake_timeout)),
        "For handshakes of accepted connections and the first HTTP/2 frames.",
    ),
    (
        "hbone.responseTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.response_timeout)),
        "From a CONNECT to its response.",
    ),
    (
        "hbone.pingInterval",
        "duration",
        "",
        Shown(|s| show(s.hbone.ping_interval)),
        "Between two PINGs on a silent connection.",
    ),
    (
        "hbone.pingTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.ping_timeout)),
        "A connection is dead when a PING goes unanswered for this long.",
    ),
    (
        "keepalive.enabled",
        "true, false",
        "KEEPALIVE_ENABLED",
        Shown(|s| s.keepalive.is_some().to_string()),
        "TCP keepalive on the connections of pods.",
    ),
    (
        "keepalive.time",
        "duration",
        "KEEPALIVE_TIME",
        Shown(|s| {
            s.keepalive
                .map_or_else(String::new, |keepalive| show(keepalive.time))
        }),
        "Silence before the first probe.",
    ),
    (
        "keepalive.interval",
        "duration",
        "KEEPALIVE_INTERVAL",
        Shown(|s| {
            s.keepalive
                .map_or_else(String::new, |keepalive| show(keepalive.interval))
        }),
        "Between two probes.",
    ),
    (
        "keepalive.retries",
        "number, 1 to 127",
        "KEEPALIVE_RETRIES",
        Shown(|s| {
            s.keepalive
                .map_or_else(String::new, |keepalive| keepalive.retries.to_string())
        }),
        "Unanswered probes after which a connection is dead.",
    ),
    (
        "termination.deadline",
        "duration",
        "CONNECTION_TERMINATION_DEADLINE",
        Shown(|s| show(s.termination_deadline)),
        "After the signal to end, live connections may go on for this long. Without its own variable, nine tenths of `TERMINATION_GRACE_PERIOD_SECONDS`.",
    ),
];
