//! Called when a socket is about to send its SYN: its own port is known by then, and the proxy
//! cannot have accepted it yet, not even with Fast Open.
//!
//! A captured socket's original destination goes where the proxy looks it up. Any other socket of
//! a pod is judged again: one that should have been captured and was not (an MPTCP subflow never
//! passes the connect hooks) is not let out of the machine.

use aya_ebpf::bindings::{BPF_ANY, BPF_SOCK_OPS_TCP_CONNECT_CB, SO_BINDTOIFINDEX, SOL_SOCKET};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{Client, Config, Destination, POD_ENROLLED, SAVED_DESTINATION};

use crate::connect::shown;
use crate::context::Ends;
use crate::judge::{is_exempt, is_proxy};
use crate::maps::{ORIGINS, PODS, config, logs, netns, saved};

/// From linux/tcp.h, which the bindings leave out.
const SOL_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;
const DONE: u32 = 1;

/// Every TCP event of the machine comes by; one kind concerns us.
#[sock_ops]
fn established(ctx: SockOpsContext) -> u32 {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return DONE;
    }
    let cookie = netns(&ctx);
    // SAFETY: copied at once.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return DONE;
    };
    let Some(config) = config() else { return DONE };
    if pod.flags & POD_ENROLLED == 0 {
        return DONE;
    }
    let ends = Ends::of_socket(ctx.ops);
    connecting(&ctx, config, cookie, &ends);
    DONE
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext, config: &Config, cookie: u64, ends: &Ends) {
    let port = u32::from_be(ctx.remote_port());
    // SAFETY: the context is valid; the pointer is checked for null before use.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return stop(ctx, config, ends, port);
    }
    if !ends.remote.is_loopback() || port != config.outbound {
        if !is_exempt(config, cookie, &ends.remote, port) && !is_proxy(config, sk) {
            stop(ctx, config, ends, port);
        }
        return;
    }
    // SAFETY: the storage lives as long as the socket.
    let Some(saved) = (unsafe { saved(sk).as_ref() }) else {
        return;
    };
    if saved.kind != SAVED_DESTINATION {
        return;
    }
    let client = Client {
        cookie,
        address: ends.local,
        port: ctx.local_port(),
        zero: 0,
    };
    let destination = Destination {
        address: saved.address,
        port: saved.port,
    };
    // Where it fails the proxy finds nothing at accept, and closes the connection.
    let _ = ORIGINS.insert(&client, &destination, u64::from(BPF_ANY));
}

/// Keeps a connection in this namespace that the connect hook should have captured: bound to the
/// loopback device it finds no way out, and its owner learns soon.
#[inline(always)]
fn stop(ctx: &SockOpsContext, config: &Config, ends: &Ends, port: u32) {
    set(ctx, SOL_SOCKET as i32, SO_BINDTOIFINDEX as i32, 1);
    set(ctx, SOL_TCP, TCP_USER_TIMEOUT, 500);
    if logs(config) {
        debug!(
            ctx,
            "connection to {:i} port {} stopped: it came around the hook",
            shown(&ends.remote),
            port
        );
    }
}

#[inline(always)]
fn set(ctx: &SockOpsContext, level: i32, name: i32, value: i32) {
    let mut value = value;
    // SAFETY: the options are ints, and their size is given.
    let _ = unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            level,
            name,
            core::ptr::from_mut(&mut value).cast(),
            4,
        )
    };
}
