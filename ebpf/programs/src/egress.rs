//! Holds captured connections and deliveries inside their pod: the packets of their sockets leave by the
//! loopback device or not at all.
//!
//! The kernel routes these packets by the socket's mark. If the rule or the route disappears, or the
//! application changes the mark or the device of its socket, the packet would leave the pod in plaintext:
//! it is dropped here. What the kernel answers without a socket (a reset, the last acknowledgement of a
//! closed connection) has no data, and is not seen here.

use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use ztunnel_ebpf_types::{
    SOCKET_CAPTURED, SOCKET_DELIVERED, SOCKET_OUTBOUND_LISTENER, SOCKET_UNUSED,
};

use crate::socket::{LOOPBACK_DEVICE, state};

const PASS: i32 = 1;
const DROP: i32 = 0;

/// A packet leaves by a device. This runs for every packet of the machine that a socket sends.
#[cgroup_skb]
fn hold(ctx: SkBuffContext) -> i32 {
    // SAFETY: the context is valid.
    let (device, sk) = unsafe {
        let packet = ctx.skb.skb;
        ((*packet).ifindex, (*packet).__bindgen_anon_2.sk)
    };
    if device == LOOPBACK_DEVICE || sk.is_null() {
        return PASS;
    }
    // SAFETY: not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return PASS;
    }
    let stored = state(sk);
    // SAFETY: not null when it is read.
    let kind = if stored.is_null() {
        SOCKET_UNUSED
    } else {
        unsafe { (*stored).kind }
    };
    match kind {
        SOCKET_CAPTURED | SOCKET_DELIVERED | SOCKET_OUTBOUND_LISTENER => DROP,
        _ => PASS,
    }
}
