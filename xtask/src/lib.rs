//! The build of the kernel programs, which the build script of `node` uses, too.

pub mod ebpf;
