//! The bytes of a handshake in progress: received bytes, how many of them rustls may read, and
//! bytes to send. Every buffer has a limit.

use rustls::unbuffered::{EncodeError, EncodeTlsData};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::error::{HandshakeError, Role};
use super::super::record::{HEADER, LARGEST_RECORD};

/// Most bytes a peer may send before the handshake is complete: several times the longest chain.
const HANDSHAKE_LIMIT: usize = 128 * 1024;
/// How many bytes are read at a time; a whole flight with a short chain fits.
const READ_SIZE: usize = 4096;
/// The buffers of a handshake in progress.
#[derive(Default)]
pub(super) struct Flight {
    /// Received bytes that are not consumed.
    pub(super) arrived: Vec<u8>,
    /// How many of them rustls may read: complete records.
    pub(super) shown: usize,
    /// How many bytes were received in total.
    total: usize,
    /// Bytes to send.
    pub(super) leaving: Vec<u8>,
}

impl Flight {
    /// Passes one more complete record to rustls, if there is one.
    pub(super) fn show_record(&mut self) -> bool {
        let hidden = &self.arrived[self.shown..];
        let &[_, _, _, high, low, ..] = hidden else {
            return false;
        };
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        // For a record that is too long, the header is enough for rustls to refuse it.
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
