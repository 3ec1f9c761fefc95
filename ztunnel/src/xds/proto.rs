//! The generated messages and both halves of the discovery service. Only this room, and whoever
//! plays a control plane, names them; everybody else sees [`crate::mesh`]'s types.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the messages are described in the .proto files"
)]

include!(concat!(env!("OUT_DIR"), "/xds/mod.rs"));
