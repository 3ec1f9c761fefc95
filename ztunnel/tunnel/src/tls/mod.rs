//! Mutual TLS between workloads: the certificates in use, the verification of peers, and the record
//! layer.
//!
//! [`connect`] and [`accept`] let rustls run the handshake (TLS 1.3 only, ALPN `h2`, both sides
//! present a certificate with exactly one SPIFFE URI) and then extract the traffic keys: [`Stream`]
//! seals and opens records itself, which saves copies that cost more than the cipher.
//! [`Store`] holds one set of [`Credentials`] for each identity and renews them before they expire;
//! certificates come from an [`Issuer`], which crate `upstream` implements.
//!
//! Invariants: no plaintext is sent before the peer is verified; an expired certificate is never
//! used; bytes from a peer are bounded before they are stored; a revoked certificate
//! ([`Revocations`]) opens no session. Called by `node`.

mod buffer;
mod credentials;
mod error;
mod handshake;
mod incoming;
mod issuer;
mod keys;
mod outgoing;
mod record;
mod request_limit;
mod revocation;
mod store;
mod stream;
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
