//! The build of the kernel programs, which the build script of `node` calls too.

pub mod ebpf;
