//! Tunnels between proxies: HBONE, which carries TCP connections as HTTP/2 CONNECT streams over
//! mutual TLS.
//!
//! [`tls`] holds the certificates in use, verifies peers and protects the bytes; [`hbone`] opens,
//! pools and serves tunnels over any byte stream. Neither knows about pods or the state of the
//! mesh: the caller passes the identity to present, the identities to accept and the address.

pub mod hbone;
pub mod tls;
