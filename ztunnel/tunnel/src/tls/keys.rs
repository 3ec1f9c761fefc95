//! The key schedule of an established session: rustls derives the next traffic secret of a
//! direction when a side updates its key (RFC 8446, section 7.2).

use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use super::error::{RecordError, Role};

/// Derives traffic secrets. Boxed, because it is used only once in many gigabytes.
pub(super) enum KeySchedule {
    /// For a session that we opened.
    Client(Box<KernelConnection<ClientConnectionData>>),
    /// For a session that we accepted.
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl KeySchedule {
    /// Which end of the session this is.
    pub(super) const fn role(&self) -> Role {
        match self {
            Self::Client(_) => Role::Client,
            Self::Server(_) => Role::Server,
        }
    }

    /// The next secret of the sending direction, with its first sequence number.
    pub(super) fn next_send_secret(
        &mut self,
    ) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
        .map_err(|_rustls| RecordError::Keys {
            what: "no next sending secret",
        })
    }

    /// The next secret of the receiving direction, with its first sequence number.
    pub(super) fn next_receive_secret(
        &mut self,
    ) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
        .map_err(|_rustls| RecordError::Keys {
            what: "no next receiving secret",
        })
    }
}
