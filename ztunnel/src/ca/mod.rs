//! Where certificates come from. [`local`] is the embedded authority that a demo, a laptop or a
//! small mesh needs instead of a control plane. Each source implements
//! [`tls::Issuer`](crate::tls::Issuer); `node` chooses one from the settings.

pub mod local;
