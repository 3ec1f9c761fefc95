//! The settings of tunnels, connections and the process.

use super::super::Default::Shown;
use super::super::show;
use super::Columns;

pub(super) static RUNNING: &[Columns] = &[
    (
        "hbone.streamWindow",
        "size",
        "HTTP2_STREAM_WINDOW_SIZE",
        Shown(|s| s.hbone.stream_window.to_string()),
        "The bytes that a peer may send on one stream before they are delivered. It bounds the memory that one slow reader takes.",
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
        "The bytes that one stream may queue for sending.",
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
        "The time limit of a dial, TCP and TLS together.",
    ),
    (
        "hbone.handshakeTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.handshake_timeout)),
        "The time limit of handshakes of accepted connections and of the first HTTP/2 frames.",
    ),
    (
        "hbone.responseTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.response_timeout)),
        "The time limit from a CONNECT to its response.",
    ),
    (
        "hbone.pingInterval",
        "duration",
        "",
        Shown(|s| show(s.hbone.ping_interval)),
        "The time between two PINGs on a silent connection.",
    ),
    (
        "hbone.pingTimeout",
        "duration",
        "",
        Shown(|s| show(s.hbone.ping_timeout)),
        "A connection is closed if a PING is not answered for this long.",
    ),
    (
        "dns.enabled",
        "true, false",
        "ISTIO_META_DNS_CAPTURE",
        Shown(|s| s.dns.is_some().to_string()),
        "Whether the DNS queries of pods are captured. The proxy answers names of the mesh; other queries are forwarded to the pod's resolver.",
    ),
    (
        "dns.timeout",
        "duration",
        "",
        Shown(|s| s.dns.map_or_else(String::new, |dns| show(dns.timeout))),
        "The time limit of the pod's resolver.",
    ),
    (
        "newPods.workloadWait",
        "duration, 0s to 1m",
        "",
        Shown(|s| show(s.workload_wait)),
        "A pod is captured before the control plane has pushed its workload. Until then its connections, outbound and inbound, those of pods of this node to it, and DNS questions whose answer depends on who asks wait up to this long; with `0s` they do not wait. After that, a pod that the node agent has announced opens connections and resolves names with its announced identity, and connections to it are refused, because its policies are not known. A pod of the settings is refused in both directions. Of one pod 1024 connections and 256 questions wait at most, more are refused at once. Changes only with a restart.",
    ),
    (
        "socks5.enabled",
        "true, false",
        "UNSTABLE_ENABLE_SOCKS5",
        Shown(|s| s.socks5.to_string()),
        "Applications in pods may open connections by SOCKS 5, on port 15080 of their loopback address, to an address or a name. Only CONNECT is supported, without authentication.",
    ),
    (
        "applicationTunnel.localhost",
        "true, false",
        "LOCALHOST_APP_TUNNEL",
        Shown(|s| s.localhost_app_tunnel.to_string()),
        "Where tunnelled connections are delivered to a workload that expects a PROXY header: on its loopback address, `127.0.0.1` or `::1`, where only the proxy can send such a header, or (`false`) on its own address.",
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
        Shown(|s| s.keepalive.map_or_else(String::new, |k| show(k.time))),
        "Silence before the first probe.",
    ),
    (
        "keepalive.interval",
        "duration",
        "KEEPALIVE_INTERVAL",
        Shown(|s| s.keepalive.map_or_else(String::new, |k| show(k.interval))),
        "The time between two probes.",
    ),
    (
        "keepalive.retries",
        "number, 1 to 127",
        "KEEPALIVE_RETRIES",
        Shown(|s| {
            s.keepalive
                .map_or_else(String::new, |k| k.retries.to_string())
        }),
        "Unanswered probes after which a connection is closed.",
    ),
    (
        "termination.deadline",
        "duration",
        "CONNECTION_TERMINATION_DEADLINE",
        Shown(|s| show(s.termination_deadline)),
        "How long open connections may go on after the signal to stop. Without its own variable it is nine tenths of `TERMINATION_GRACE_PERIOD_SECONDS`, and never more than that less one second.",
    ),
];
