//! The join: bytes between the two sockets of a connection, both on this machine, are moved from
//! one to the other without TCP.
//!
//! A socket is enrolled when its connection is established. From then on the kernel runs
//! `redirect` for the bytes that it sends, and `redirect` moves them to the other end, if that is
//! enrolled, too.
//!
//! The receiver reads redirected bytes before bytes from TCP, in whichever order they were sent.
//! So a direction may change from the join to TCP, never back: JOIN_STATES keeps the mode with the
//! sending socket. Two cases change a direction to TCP:
//! - `redirect` finds no other end: it is not established yet, does not join, or is closed.
//! - TCP itself sends: for a call that was waiting for the connection before it was enrolled, or
//!   with the SYN (Fast Open). TCP runs a header-option callback before it takes bytes from any
//!   call, and `tcp_sends` handles that callback.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_INGRESS, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_sock_hash_update};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use ztunnel_ebpf_types::{
    ConnectionEnd, ConnectionKey, Cookie, JOIN_REDIRECTED, JOIN_TCP, JOIN_UNUSED, JoinState,
    SIDE_CLIENT, SIDE_SERVER,
};

use crate::context::Ends;
use crate::maps::{CONNECTIONS, JOIN_STATES, JOINED_SOCKETS, add};
use crate::socket::join_state;

/// A socket of JOINED_SOCKETS sends bytes. SK_PASS without a target leaves them to TCP.
#[sk_msg]
fn redirect(ctx: SkMsgContext) -> u32 {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: the storage lives as long as the socket, which is locked by this call.
    let Some(join) = (unsafe { join_state(sk).as_mut() }) else {
        return SK_PASS;
    };
    if join.mode == JOIN_TCP {
        return SK_PASS;
    }
    let end = sender(&ctx, join.cookie);
    let verdict = JOINED_SOCKETS.redirect_msg(&ctx, end.peer(), u64::from(BPF_F_INGRESS));
    if verdict == i64::from(SK_PASS) {
        join.mode = JOIN_REDIRECTED;
        count_redirected(&end, join.side, ctx.size());
    } else {
        join.mode = JOIN_TCP;
    }
    SK_PASS
}

/// Adds redirected bytes to the connection's state; TCP counts the others. The proxy itself counts
/// the bytes of its own connections, which are inside one pod.
#[inline(always)]
fn count_redirected(end: &ConnectionEnd, side: u32, bytes: u32) {
    if end.cookie != 0 {
        return;
    }
    let connection = ConnectionKey {
        client: end.local,
        server: end.remote,
        client_port: end.local_port,
        server_port: end.remote_port,
    };
    let from_client = side == SIDE_CLIENT;
    let connection = if from_client {
        connection
    } else {
        connection.swapped()
    };
    let Some(state) = CONNECTIONS.get_ptr_mut(&connection) else {
        return;
    };
    // SAFETY: a value of the map, whose counters are aligned.
    unsafe {
        let counter = if from_client {
            &raw mut (*state).joined_request_bytes
        } else {
            &raw mut (*state).joined_response_bytes
        };
        add(counter, i64::from(bytes));
    }
}

/// The end that sends.
#[inline(always)]
fn sender(ctx: &SkMsgContext, cookie: Cookie) -> ConnectionEnd {
    let Ends { local, remote } = Ends::of_message(ctx.msg);
    // SAFETY: the context is valid.
    let (local_port, remote_port) = unsafe { ((*ctx.msg).local_port, (*ctx.msg).remote_port) };
    ConnectionEnd {
        local,
        remote,
        local_port,
        remote_port: u32::from_be(remote_port),
        cookie,
    }
}

/// Joins one end of a connection that has just been established. If this fails, the end stays with
/// TCP.
///
/// This sets a callback flag of the socket: code that sets other flags must keep it.
#[inline(always)]
pub fn enroll(ctx: &SockOpsContext, mut end: ConnectionEnd) {
    // SAFETY: the context is valid; the pointer is checked for null before use.
    let (sk, sent) = unsafe { ((*ctx.ops).__bindgen_anon_2.sk, (*ctx.ops).data_segs_out) };
    if sk.is_null() {
        return;
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    // The helper returns the flags that this kernel does not know.
    let has_callback = ctx.set_cb_flags(flags as i32).is_ok();
    // Fast Open may have sent bytes with the SYN.
    let join = JoinState {
        mode: if sent == 0 && has_callback {
            JOIN_UNUSED
        } else {
            JOIN_TCP
        },
        side: if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
            SIDE_CLIENT
        } else {
            SIDE_SERVER
        },
        cookie: end.cookie,
    };
    if !set_join_state(sk, join) {
        return;
    }
    // The end can receive redirected bytes even if its own bytes go by TCP.
    // SAFETY: the helper takes the program's own context, and reads the key.
    let _ = unsafe {
        bpf_sock_hash_update(
            ctx.ops,
            core::ptr::from_ref(&JOINED_SOCKETS).cast_mut().cast(),
            core::ptr::from_mut(&mut end).cast(),
            u64::from(BPF_ANY),
        )
    };
}

#[inline(always)]
fn set_join_state(sk: *mut bpf_sock, mut join: JoinState) -> bool {
    let map = core::ptr::from_ref(&JOIN_STATES).cast_mut().cast();
    let value = core::ptr::from_mut(&mut join).cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the verifier checks that `sk` is a socket and not null; the value is copied.
    !unsafe { bpf_sk_storage_get(map, sk.cast(), value, flags) }.is_null()
}

/// TCP is about to take bytes from a socket, or to send a segment. If it takes bytes, it carries
/// the direction from now on, and the callback is switched off.
///
/// On a busy machine, softirq sometimes runs the same callback before the socket has sent anything.
/// The two cases look alike: such a direction stays with TCP, too, which is slower but correct.
#[inline(always)]
pub fn tcp_sends(ctx: &SockOpsContext) {
    // Argument 1: there is no segment yet, TCP is about to take bytes.
    if ctx.arg(0) != 1 {
        return;
    }
    // SAFETY: the context is valid; the pointer is checked for null before use.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: the storage lives as long as the socket, which is locked by this call.
    if let Some(join) = unsafe { join_state(sk).as_mut() } {
        join.mode = JOIN_TCP;
        let flags = ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
        let _ = ctx.set_cb_flags(flags as i32);
    }
}
