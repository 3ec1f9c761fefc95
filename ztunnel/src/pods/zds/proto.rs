//! The messages of `proto/zds.proto`.

#![allow(
    missing_docs,
    clippy::all,
    reason = "the file is generated; the messages are described in proto/zds.proto"
)]

include!(concat!(env!("OUT_DIR"), "/zds/mod.rs"));

pub use istio::workload::zds::*;
