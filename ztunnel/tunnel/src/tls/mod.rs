//! Mutual TLS between workloads: which certificate is in use for an identity, who the peer is,
//! and the record layer that carries a tunnel's bytes.
//!
//! [`connect`] and [`accept`] let rustls run the handshake (TLS 1.3 only, ALPN `h2`, both sides
//! present a certificate with exactly one SPIFFE URI) and then take the traffic keys over:
//! [`Stream`] seals and opens records itself, because copies cost more than ciphers there.
//! [`Store`] holds one set of [`Credentials`] per identity and renews them before they end; where
//! certificates come from is behind [`Issuer`], which the room `ca` implements.
//!
//! Invariants: no plaintext leaves before the peer is verified; an expired certificate is never
//! handed out; whatever a peer sends is bounded before it is stored; a certificate that
//! [`Revocations`] names opens no session. Called by `path` and `node`.

mod buffer;
mod credentials;
mod error;
mod handshake;
mod incoming;
mod issuer;
mod keys;
mod outgoing;
mod record;
mod revocation;
mod store;
mod stream;
mod turns;
mod verify;

#[cfg(test)]
mod testing;

pub use credentials::{CertificateState, CertificateSummary, Credentials};
pub use error::{Error, Fault, HandshakeError, IdentityRefusal, IssueError, RecordError, Role};
pub use handshake::{accept, connect};
pub use issuer::{Issued, Issuer};
pub use revocation::{PeerChain, Reload, RevocationError, RevocationList, Revocations};
pub use store::{Config, Store};
pub use stream::Stream;
pub use verify::identity_of;
