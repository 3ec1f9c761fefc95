//! The kernel programs that capture the pods' TCP connections and DNS queries.
//!
//! | program | section | job |
//! | --- | --- | --- |
//! | `capture4`, `capture6` | cgroup/connect4, 6 | marks a pod's connection for the proxy, or sends it along the fast path |
//! | `hold` | cgroup_skb/egress | keeps packets of captured connections in the pod |
//! | `peername4`, `peername6` | cgroup/getpeername4, 6 | shows the application the address that it dialled |
//! | `query4`, `query6` | cgroup/sendmsg4, 6 | sends a pod's DNS query to the proxy |
//! | `reply4`, `reply6` | cgroup/recvmsg4, 6 | shows the application the resolver that it queried |
//! | `tcp_events` | sockops | captures connections that `capture` missed; follows the fast path |
//! | `inbound` | sk_lookup | sends connections to a pod, and captured ones, to the proxy's listeners |
//! | `redirect` | sk_msg | moves bytes from one end of a joined connection to the other |
//!
//! All decisions depend on the cookie of the network namespace: a socket of a namespace that is
//! not enrolled is never changed. If a map entry that capture needs is missing or cannot be
//! written, the program refuses the connection or drops the packet.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bind;
mod connect;
mod connections;
mod context;
mod dns;
mod egress;
mod exempt;
mod fast_path;
mod join;
mod lookup;
mod maps;
mod names;
mod rewritten;
mod socket;
mod tcp_events;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// bpf_bind, bpf_setsockopt and the netns cookie are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
