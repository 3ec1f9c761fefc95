//! The buffers of a handshake in progress: received bytes, how many of them rustls may process, and
//! bytes to send. The received bytes are limited.

use rustls::unbuffered::{EncodeError, EncodeTlsData};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::error::{HandshakeError, Role};
use super::super::record::{HEADER_LEN, MAX_RECORD_LEN};

/// The limit of bytes from the peer before the handshake is complete: several times the longest
/// chain.
const HANDSHAKE_LIMIT: usize = 128 * 1024;
/// The size of one read: a flight with a short chain fits.
const READ_SIZE: usize = 4096;

/// The buffers of a handshake in progress.
#[derive(Default)]
pub(super) struct Flight {
    /// Received bytes that rustls has not consumed.
    pub(super) received: Vec<u8>,
    /// How many of them rustls may process: complete records.
    pub(super) visible: usize,
    /// The number of bytes received in total.
    total: usize,
    /// Bytes to send.
    pub(super) to_send: Vec<u8>,
}

impl Flight {
    /// Makes one more record visible to rustls. Returns false if no complete record is left.
    pub(super) fn show_next_record(&mut self) -> bool {
        let hidden = &self.received[self.visible..];
        let &[_, _, _, high, low, ..] = hidden else {
            return false;
        };
        let length = HEADER_LEN + usize::from(u16::from_be_bytes([high, low]));
        // A record that is too long is made visible at once: rustls refuses it by its header.
        let complete = hidden.len() >= length || length > MAX_RECORD_LEN;
        if complete {
            self.visible += length.min(hidden.len());
        }
        complete
    }

    pub(super) fn discard(&mut self, count: usize) {
        self.received.drain(..count);
        self.visible -= count;
    }

    pub(super) fn encode<D>(
        &mut self,
        mut message: EncodeTlsData<'_, D>,
    ) -> Result<(), HandshakeError> {
        let used = self.to_send.len();
        if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut []) {
            self.to_send.resize(used + needed.required_size, 0);
            message.encode(&mut self.to_send[used..]).map_err(|error| {
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
        self.received.reserve(READ_SIZE);
        let count = io.read_buf(&mut self.received).await;
        let count = count.map_err(|source| HandshakeError::Io { source })?;
        if count == 0 {
            return Err(HandshakeError::Closed);
        }
        if self.total == 0 {
            expect_tls(&self.received, role)?;
        }
        self.total += count;
        Ok(())
    }

    pub(super) async fn send<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
    ) -> Result<(), HandshakeError> {
        if !self.to_send.is_empty() {
            let sent = io.write_all(&self.to_send).await;
            sent.map_err(|source| HandshakeError::Io { source })?;
            self.to_send.clear();
            io.flush()
                .await
                .map_err(|source| HandshakeError::Io { source })?;
        }
        Ok(())
    }
}

/// Checks the first bytes: a TLS peer begins with a handshake record, or a server with an alert.
const fn expect_tls(received: &[u8], role: Role) -> Result<(), HandshakeError> {
    match (received, role) {
        ([22], _) | ([22, 3, ..], _) | ([21], Role::Client) | ([21, 3, ..], Role::Client) => Ok(()),
        ([first, ..], _) => Err(HandshakeError::NotTls { first: *first }),
        ([], _) => Err(HandshakeError::Closed),
    }
}
