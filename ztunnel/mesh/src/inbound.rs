//! Decisions about an inbound connection before it is authorized: where a tunnel leads, which
//! client its peer speaks for, which service was dialled, and which resources on-demand discovery
//! has to fetch first.

mod discovery;
mod service;
mod target;

pub use discovery::{gateways_of, next_key, unknown_address_key};
pub use service::backed_service;
pub use target::{
    ClientReport, LocalEndpoint, TargetError, TunnelTarget, client_address, delivery_address,
    target,
};
