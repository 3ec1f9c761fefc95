//! The protobuf messages and services that Istio's control plane and node agent speak, generated
//! from the `.proto` files in `proto/`, which describe every field.
//!
//! - [`envoy::service::discovery::v3`]: delta ADS, over which the mesh configuration arrives.
//! - [`istio::workload`] and [`istio::security`]: the resources that ADS carries.
//! - [`istio::v1::auth`]: the certificate authority.
//! - [`istio::workload::zds`]: the packets between the node agent and the node proxy.
//!
//! Both the client and the server half of each service are here. The generated types stay in the
//! crates that speak a protocol; every other crate uses the types of `mesh`.

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
    reason = "generated code; the .proto files describe the messages"
)]

include!(concat!(env!("OUT_DIR"), "/mod.rs"));
