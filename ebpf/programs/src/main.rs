//! The kernel programs that capture the pods' TCP connections and DNS.
//!
//! | program | section | job |
//! | --- | --- | --- |
//! | `capture4`, `capture6` | cgroup/connect4, 6 | a connection of a pod goes to the proxy instead |
//! | `peer4`, `peer6` | cgroup/getpeername4, 6 | the application sees whom it called |
//! | `ask4`, `ask6` | cgroup/sendmsg4, 6 | a question of a pod to its resolver goes to the proxy instead |
//! | `answer4`, `answer6` | cgroup/recvmsg4, 6 | the answer comes from the resolver that was asked |
//! | `name4`, `name6` | cgroup/getsockname4, 6 | the application sees its own address |
//! | `established` | sockops | tells the proxy the original destination; stops what `capture` never saw; follows the direct lane |
//! | `inbound` | sk_lookup | connections to a pod reach the proxy's listener |
//! | `past` | sk_msg | what one end of a joined connection sends goes straight to the other |
//!
//! Everything is keyed by the network namespace's cookie: a socket of a namespace that is not
//! enrolled is never touched. Where a map entry that capture needs is missing or cannot be
//! written, the program refuses or drops; it never lets the connection pass.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bind;
mod connect;
mod context;
mod direct;
mod established;
mod flow;
mod join;
mod judge;
mod lookup;
mod maps;
mod name;
mod resolver;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// bpf_bind, bpf_setsockopt and the netns cookie are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
