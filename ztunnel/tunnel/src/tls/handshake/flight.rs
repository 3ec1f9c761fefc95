//! The bytes of a handshake under way: what arrived, how much of it rustls has been shown, and
//! what is to be sent. Nothing here grows without a limit.

use rustls::unbuffered::{EncodeError, EncodeTlsData};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::error::{HandshakeError, Role};
use super::super::record::{HEADER, LARGEST_RECORD};

/// Most bytes a peer may send before the handshake is complete: several times the longest chain.
const HANDSHAKE_LIMIT: usize = 128 * 1024;
/// How much is read at a time; a whole flight with a short chain fits.
const READ_SIZE: usize = 4096;
/// Bytes under way during a handshake.
#[derive(Default)]
pub(super) struct Flight {
    /// What arrived and is not used up.
    pub(super) arrived: Vec<u8>,
    /// How much of it rustls may see: whole records.
    pub(super) shown: usize,
    /// How much arrived in all.
    total: usize,
    /// What is to be sent.
    pub(super) leaving: Vec<u8>,
}

impl Flight {
    /// Shows one more complete record, if there is one.
    pub(super) fn show_record(&mut self) -> bool {
        let hidden = &self.arrived[self.shown..];
        let &[_, _, _, high, low, ..] = hidden else {
            return false;
        };
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        // Of a record that is too long the header is enough for rustls to refuse it.
        let complete = hidden.len() >= length || length > LARGEST_RECORD;
        if complete {
            self.shown += length.min(hidden.len());
        }
        complete
    }

    pub(super) fn discard(&mut self, count: usize) {
        self.arrived.drain(..count);
        self.shown -= count;
    }

    pub(super) fn encode<D>(
        &mut self,
        mut message: EncodeTlsData<'_, D>,
    ) -> Result<(), HandshakeError> {
        let used = self.leaving.len();
        if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut []) {
            self.leaving.resize(used + needed.required_size, 0);
            message.encode(&mut self.leaving[used..]).map_err(|error| {
                HandshakeError::Internal {
                    why: error.to_string(),
                }
            })?;
        }
        Ok(())
    }

    pub(super) async fn read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        role: Role,
    ) -> Result<(), HandshakeError> {
        if self.total > HANDSHAKE_LIMIT {
            return Err(HandshakeError::TooLarge {
                limit: HANDSHAKE_LIMIT,
            });
        }
        self.arrived.reserve(READ_SIZE);
        let count = io.read_buf(&mut self.arrived).await;
        let count = count.map_err(|source| HandshakeError::Io { source })?;
        if count == 0 {
            return Err(HandshakeError::Closed);
        }
        if self.total == 0 {
            expect_tls(&self.arrived, role)?;
        }
        self.total += count;
        Ok(())
    }

    pub(super) async fn send<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
    ) -> Result<(), HandshakeError> {
        if !self.leaving.is_empty() {
            let sent = io.write_all(&self.leaving).await;
            sent.map_err(|source| HandshakeError::Io { source })?;
            self.leaving.clear();
            io.flush()
                .await
                .map_err(|source| HandshakeError::Io { source })?;
        }
        Ok(())
    }
}

/// A TLS peer begins with a handshake record; only a server may begin with an alert.
const fn expect_tls(arrived: &[u8], role: Role) -> Result<(), HandshakeError> {
    match (arrived, role) {
        ([22], _) | ([22, 3, ..], _) | ([21], Role::Client) | ([21, 3, ..], Role::Client) => Ok(()),
        ([first, ..], _) => Err(HandshakeError::NotTls { first: *first }),
        ([], _) => Err(HandshakeError::Closed),
    }
}
