//! The messages and the service of Istio's certificate authority, generated from
//! `proto/citadel.proto`: the client for [`istiod`](super::istiod), the server for a test's
//! control plane.
#![allow(
    missing_docs,
    unnameable_types,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

include!(concat!(env!("OUT_DIR"), "/ca/mod.rs"));

pub use istio::v1::auth::*;
