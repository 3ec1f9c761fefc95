//! placeholder
pub mod ebpf;
