//! The door for the fuzz targets: revocation lists, and the receiving half of a session whose
//! first key is the target's, so that it can play the peer.

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use tokio::io::ReadBuf;

use super::error::RecordError;
use super::incoming::{Incoming, Stop};
use super::keys::Keys;
use super::outgoing::Outgoing;
use super::record::{Opener, Sealer};
use super::testing;

/// Reads the lists of a file: the issuer's name and the number of serials of each.
#[must_use]
pub fn revocation_lists(bytes: &[u8]) -> Option<Vec<(String, usize)>> {
    super::revocation::parsed(bytes).ok()
}

/// The two ends' key schedules, from a real handshake.
pub struct Schedules {
    ours: Keys,
    peers: Keys,
}

impl Schedules {
    /// Runs a handshake. Needs a tokio runtime.
    pub async fn new() -> Self {
        let (client, server) = testing::pair(1 << 16).await;
        Self {
            ours: server.into_keys(),
            peers: client.into_keys(),
        }
    }

    /// The key and the IV that the peer sends with after its next key update.
    pub fn next_of_peer(&mut self) -> Option<([u8; 16], [u8; 12])> {
        let (_first, secrets) = self.peers.next_to_send().ok()?;
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            return None;
        };
        Some((key.as_ref().try_into().ok()?, iv.as_ref().try_into().ok()?))
    }
}

/// The receiving half of a server's session.
pub struct Receiver {
    incoming: Incoming,
    outgoing: Outgoing,
}

/// What a look at the bytes at hand came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// There may be more for a reader.
    Full,
    /// No complete record is left.
    Hungry,
    /// The peer has closed its side.
    Closed,
}

impl Receiver {
    /// The peer sends with this AES-256-GCM key and IV, from sequence number 0 on. After a key
    /// update it sends with what the handshake has agreed on.
    ///
    /// # Errors
    /// When the cipher refuses them.
    pub fn new(key: [u8; 32], iv: [u8; 12]) -> Result<Self, RecordError> {
        let secrets = |key, iv| ConnectionTrafficSecrets::Aes256Gcm {
            key: AeadKey::from(key),
            iv: Iv::from(iv),
        };
        let sealer = Sealer::new(0, secrets([1; 32], [1; 12]))?;
        Ok(Self {
            incoming: Incoming::new(Opener::new(0, secrets(key, iv))?, &[])?,
            outgoing: Outgoing::new(sealer, 1 << 20, &[]),
        })
    }

    /// The socket has bytes; how many of them there was room for.
    pub fn arrive(&mut self, bytes: &[u8]) -> usize {
        let space = self.incoming.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        self.incoming.received(count);
        count
    }

    /// The socket has nothing at the moment.
    pub fn park(&mut self) {
        self.incoming.park();
    }

    /// Reads up to `room` bytes behind those in `plain`.
    ///
    /// # Errors
    /// As the session would end.
    pub fn read(
        &mut self,
        schedules: &mut Schedules,
        room: usize,
        plain: &mut Vec<u8>,
    ) -> Result<Looked, RecordError> {
        let mut memory = vec![0; room];
        let mut out = ReadBuf::new(&mut memory);
        let stop = self
            .incoming
            .take(&mut schedules.ours, &mut self.outgoing, &mut out);
        plain.extend_from_slice(out.filled());
        Ok(match stop? {
            Stop::Full => Looked::Full,
            Stop::Hungry => Looked::Hungry,
            Stop::Closed => Looked::Closed,
        })
    }

    /// What we would send: answers to key updates. The socket takes all of it.
    ///
    /// # Errors
    /// When sealing fails.
    pub fn answer(&mut self) -> Result<usize, RecordError> {
        let length = self.outgoing.pending()?.len();
        self.outgoing.sent(length);
        Ok(length)
    }
}
