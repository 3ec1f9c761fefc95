//! Clients of a control plane. [`ads`] receives the mesh configuration over delta ADS; [`ca`]
//! obtains certificates, from Istio's certificate authority or from one in a local directory.

pub mod ads;
pub mod ca;
