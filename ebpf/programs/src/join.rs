//! The join: bytes between two sockets of one connection, both on this machine, go from the one
//! to the other without passing TCP.
//!
//! A socket is enrolled when its connection is established. From then on the kernel calls `past`
//! for what it sends, and `past` hands it to the other end, if that is enrolled too.
//!
//! The receiver reads bytes that came past TCP before bytes that came by TCP, whichever was sent
//! first. So each direction may change from past to TCP, never back: JOINS remembers it with the
//! sending socket. Two things turn a direction to TCP. `past` finds no other end: it is not
//! established yet, does not join, or is gone. Or TCP sends by itself: a call that was waiting for
//! the connection before it was enrolled, or bytes with the SYN (Fast Open). TCP asks for header
//! options before it takes bytes from any call, and `tcp_sends` listens for that.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_INGRESS, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_sock_hash_update};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use ztunnel_ebpf_types::{
    Cookie, End, Flow, JOIN_OPEN, JOIN_PAST, JOIN_TCP, Join, SIDE_CLIENT, SIDE_SERVER,
};

use crate::context::Ends;
use crate::maps::{FLOWS, JOINED, JOINS, add, join};

/// A socket of JOINED sends. SK_PASS without a target is TCP.
#[sk_msg]
fn past(ctx: SkMsgContext) -> u32 {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return SK_PASS;
    }
    // SAFETY: the storage lives as long as the socket, which is locked by this call.
    let Some(join) = (unsafe { join(sk).as_mut() }) else {
        return SK_PASS;
    };
    if join.way == JOIN_TCP {
        return SK_PASS;
    }
    let end = end(&ctx, join.cookie);
    let found = JOINED.redirect_msg(&ctx, end.peer(), u64::from(BPF_F_INGRESS));
    if found == i64::from(SK_PASS) {
        join.way = JOIN_PAST;
        count(&end, join.side, ctx.size());
    } else {
        join.way = JOIN_TCP;
    }
    SK_PASS
}

/// TCP counts the rest. A connection inside a pod is one with the proxy, which counts itself.
#[inline(always)]
fn count(end: &End, side: u32, bytes: u32) {
    if end.cookie != 0 {
        return;
    }
    let flow = Flow {
        client: end.local,
        server: end.remote,
        client_port: end.local_port,
        server_port: end.remote_port,
    };
    let from_client = side == SIDE_CLIENT;
    let flow = if from_client { flow } else { flow.swapped() };
    let Some(state) = FLOWS.get_ptr_mut(&flow) else {
        return;
    };
    // SAFETY: a value of the map, whose counters are aligned.
    unsafe {
        let counter = if from_client {
            &raw mut (*state).joined_request
        } else {
            &raw mut (*state).joined_response
        };
        add(counter, i64::from(bytes));
    }
}

/// The end that sends.
#[inline(always)]
fn end(ctx: &SkMsgContext, cookie: Cookie) -> End {
    let Ends { local, remote } = Ends::of_message(ctx.msg);
    // SAFETY: the context is valid.
    let (local_port, remote_port) = unsafe { ((*ctx.msg).local_port, (*ctx.msg).remote_port) };
    End {
        local,
        remote,
        local_port,
        remote_port: u32::from_be(remote_port),
        cookie,
    }
}

/// Joins one end of a connection that has just been established. Where this fails the end stays
/// with TCP.
///
/// It sets a callback flag of the socket: whoever sets others must keep it.
#[inline(always)]
pub fn enroll(ctx: &SockOpsContext, mut end: End) {
    // SAFETY: the context is valid; the pointer is checked for null before use.
    let (sk, sent) = unsafe { ((*ctx.ops).__bindgen_anon_2.sk, (*ctx.ops).data_segs_out) };
    if sk.is_null() {
        return;
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    // The helper answers with the flags that this kernel does not know.
    let listens = ctx.set_cb_flags(flags as i32).is_ok();
    // Fast Open has sent with the SYN.
    let join = Join {
        way: if sent == 0 && listens {
            JOIN_OPEN
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
    if !remember(sk, join) {
        return;
    }
    // The end receives, even if it does not send.
    // SAFETY: the helper takes the program's own context, and reads the key.
    let _ = unsafe {
        bpf_sock_hash_update(
            ctx.ops,
            core::ptr::from_ref(&JOINED).cast_mut().cast(),
            core::ptr::from_mut(&mut end).cast(),
            u64::from(BPF_ANY),
        )
    };
}

#[inline(always)]
fn remember(sk: *mut bpf_sock, mut join: Join) -> bool {
    let map = core::ptr::from_ref(&JOINS).cast_mut().cast();
    let value = core::ptr::from_mut(&mut join).cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the verifier checks that `sk` is a socket and not null; the value is copied.
    !unsafe { bpf_sk_storage_get(map, sk.cast(), value, flags) }.is_null()
}

/// TCP is about to take bytes of a socket, or to send a segment. A segment without bytes says
/// nothing; bytes are TCP's from now on, and nobody has to ask again.
///
/// A busy machine's softirq asks the same, now and then, before anything was sent. The two cannot
/// be told apart: such a direction stays with TCP too, which is slower and never wrong.
#[inline(always)]
pub fn tcp_sends(ctx: &SockOpsContext) {
    // TCP asks without a segment, argument 1, before it takes bytes.
    if ctx.arg(0) != 1 {
        return;
    }
    // SAFETY: the context is valid; the pointer is checked for null before use.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: the storage lives as long as the socket, which is locked by this call.
    if let Some(join) = unsafe { join(sk).as_mut() } {
        join.way = JOIN_TCP;
        let flags = ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
        let _ = ctx.set_cb_flags(flags as i32);
    }
}
