//! Where certificates come from. [`local`] is the embedded authority that a demo, a laptop or a
//! small mesh needs instead of a control plane; [`istiod`] asks the authority of Istio's. Each
//! source implements [`tls::Issuer`](tunnel::tls::Issuer); `node` chooses one from the settings.

pub mod istiod;
pub mod local;
