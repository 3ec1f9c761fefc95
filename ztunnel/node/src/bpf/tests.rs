//! What the programs promise, on the real kernel. Each test is a network namespace with one pod
//! in it; a veth pair carries its addresses. They need root: `cargo test -- --ignored kernel::`.
#![allow(
    unsafe_code,
    reason = "socket options and namespaces without a safe binding"
)]

mod around;
mod capture;
mod inbound;
mod join;
mod lifetime;
mod resolver;
mod world;
