//! The resources of an HBONE connection: windows, limits and timeouts, for both ends.
//!
//! Crate `settings` builds it once; all connections of a worker share it. Values outside HTTP/2's
//! range are clamped when a connection is made, never refused here.

use std::time::Duration;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// Bounds of SETTINGS_MAX_FRAME_SIZE (RFC 9113, section 6.5.2).
const FRAME_RANGE: (u32, u32) = (16 * KIB, (1 << 24) - 1);
/// The largest flow-control window (RFC 9113, section 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// The settings of every HBONE connection, client's and server's.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes that a peer may send on one stream before the proxy has forwarded them: the bound on
    /// memory for one slow application. Default 1 MiB.
    pub stream_window: u32,
    /// The same bound for all streams of one connection together. Default 128 MiB.
    pub connection_window: u32,
    /// Largest frame we accept, bytes (SETTINGS_MAX_FRAME_SIZE). The peer's setting and the relay's
    /// read size bound the frames we send. Default 1 MiB.
    pub max_frame: u32,
    /// Bytes one stream may have queued for sending. Default 1 MiB.
    pub send_buffer: usize,
    /// Tunnels on one pooled connection before another is dialled; the peer's limit applies as
    /// well. Default 100.
    pub max_streams_per_connection: usize,
    /// Streams a client may have open on one accepted connection
    /// (SETTINGS_MAX_CONCURRENT_STREAMS). Default 127.
    pub max_concurrent_streams: u32,
    /// Largest header list we accept, bytes as HPACK counts them. Default 16 KiB.
    pub header_list_max: u32,
    /// Streams that the peer resets before the proxy has handled them, above which the connection
    /// is ended (the "rapid reset" flood). Default 32.
    pub pending_resets_max: usize,
    /// Streams that the proxy resets for protocol errors over the life of a connection, above which
    /// the connection is ended. Default 256.
    pub error_resets_max: usize,
    /// A pooled connection without a tunnel is closed after this time. Default 5 minutes.
    pub idle_release: Duration,
    /// An accepted connection without a stream receives GOAWAY after this time. It is longer than
    /// `idle_release`, because the client should close first. Default 10 minutes.
    pub server_idle: Duration,
    /// The limit of a dial: TCP and TLS together. Default 10 seconds.
    pub connect_timeout: Duration,
    /// The limit for the HTTP/2 preface and the peer's first SETTINGS, and for the last frames of a
    /// connection that is closing. Default 10 seconds.
    pub handshake_timeout: Duration,
    /// The limit from the CONNECT to its response. Default 20 seconds.
    pub response_timeout: Duration,
    /// PINGs on a silent connection; `None` sends none. Default every 10 seconds, for 20.
    pub keepalive: Option<Keepalive>,
}

/// When the proxy checks whether a silent peer is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which a PING is sent.
    pub interval: Duration,
    /// Silence after the PING that ends the connection.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // The maximum number of streams can stall without using up the connection's window, so
            // other streams still progress: 127 MiB of 128.
            stream_window: MIB,
            connection_window: 128 * MIB,
            max_frame: MIB,
            send_buffer: MIB as usize,
            max_streams_per_connection: 100,
            max_concurrent_streams: 127,
            header_list_max: 16 * KIB,
            pending_resets_max: 32,
            error_resets_max: 256,
            idle_release: Duration::from_secs(5 * 60),
            server_idle: Duration::from_secs(10 * 60),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            keepalive: Some(Keepalive {
                interval: Duration::from_secs(10),
                timeout: Duration::from_secs(20),
            }),
        }
    }
}

/// The peer's stream limit until its SETTINGS arrive. No peer announces this value, so a change
/// shows that the SETTINGS have arrived. RFC 9113 advises against limits below 100, and the pool
/// applies its own limit until then.
pub(crate) const STREAM_LIMIT_BEFORE_SETTINGS: usize = (u32::MAX as usize) - 1;

impl Config {
    fn frame(&self) -> u32 {
        self.max_frame.clamp(FRAME_RANGE.0, FRAME_RANGE.1)
    }

    fn send_buffer(&self) -> usize {
        self.send_buffer.clamp(1, WINDOW_MAX as usize)
    }

    /// h2's settings for connections we open.
    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(self.stream_window.min(WINDOW_MAX))
            .initial_connection_window_size(self.connection_window.min(WINDOW_MAX))
            .max_frame_size(self.frame())
            .max_header_list_size(self.header_list_max)
            .max_send_buffer_size(self.send_buffer())
            .initial_max_send_streams(STREAM_LIMIT_BEFORE_SETTINGS)
            .max_local_error_reset_streams(Some(self.error_resets_max))
            .enable_push(false);
        builder
    }

    /// h2's settings for connections we accept.
    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window.min(WINDOW_MAX))
            .initial_connection_window_size(self.connection_window.min(WINDOW_MAX))
            .max_frame_size(self.frame())
            .max_header_list_size(self.header_list_max)
            .max_send_buffer_size(self.send_buffer())
            .max_concurrent_streams(self.max_concurrent_streams)
            .max_pending_accept_reset_streams(self.pending_resets_max)
            .max_local_error_reset_streams(Some(self.error_resets_max));
        builder
    }
}
