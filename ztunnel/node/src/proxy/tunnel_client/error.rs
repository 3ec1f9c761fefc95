//! Why a connection for tunnels could not be established.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::far_end::FarEnd;
use tunnel::tls;

/// Why the connection for tunnels could not be established.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum DialError {
    /// TCP to the far end failed.
    #[error("cannot reach {far_end} at {hbone}: {source}")]
    Connect {
        /// The kind of far end.
        far_end: FarEnd,
        /// Its address.
        hbone: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// TLS with the proxy behind a network gateway failed.
    #[error("behind the network gateway {gateway}: {source}")]
    Beyond {
        /// The gateway.
        gateway: SocketAddr,
        /// The TLS error.
        source: tls::Error,
    },
    /// TLS took too long.
    #[error("{hbone} did not finish the TLS handshake within {timeout:?}")]
    HandshakeTimeout {
        /// The address of the far end.
        hbone: SocketAddr,
        /// The limit.
        timeout: Duration,
    },
}
