//! Certificate authorities. [`local`] is the embedded authority for a demo, a laptop or a small mesh
//! without a control plane; [`istiod`] is a client of Istio's authority. Both implement
//! [`tls::Issuer`](tunnel::tls::Issuer); `node` chooses one by the settings.
//!
//! An issuer generates a key and a certificate signing request. Signing is apart from that: see
//! [`CertificateSigner`].

pub mod istiod;
mod key;
pub mod local;
mod signer;

pub use signer::{CertificateSigner, SignError};
