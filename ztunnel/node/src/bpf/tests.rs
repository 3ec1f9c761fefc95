//! Tests of the programs on the running kernel. Each test has a network namespace with one pod in
//! it; a veth pair has the pod's addresses. They need root: `cargo test -p node -- --ignored bpf::`.
#![allow(
    unsafe_code,
    reason = "socket options and namespaces without a safe binding"
)]

mod bypass;
mod capture;
mod hold;
mod inbound;
mod join;
mod lifetime;
mod ports;
mod resolver;
mod upgrade;
mod world;
