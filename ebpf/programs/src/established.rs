//! Called for the TCP sockets of the machine, at the moments that matter to us: before a SYN
//! leaves, when a connection is established, and when one of the direct lane changes its state.
//!
//! Before the SYN: the socket's own port is known by then, and the proxy cannot have accepted it
//! yet, not even with Fast Open. A captured socket's original destination goes where the proxy
//! looks it up; a direct one is written down. Any other socket of a pod is judged again: one that
//! should have been captured and was not (an MPTCP subflow never passes the connect hooks) is not
//! let out of the machine.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    SO_BINDTOIFINDEX, SOL_SOCKET, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    Client, Config, Cookie, Destination, End, FLOW_JOIN, POD_ENROLLED, POD_JOIN, Pod,
    SAVED_ARRIVED, SAVED_DESTINATION, SAVED_DIRECT, SAVED_LISTENER, Saved,
};

use crate::connect::shown;
use crate::context::Ends;
use crate::flow;
use crate::join;
use crate::judge::{is_exempt, is_proxy};
use crate::lookup;
use crate::maps::{DNS_PORT, FLOWS, ORIGINS, PODS, config, logs, netns, saved, saved_or_new};

/// From linux/tcp.h, which the bindings leave out.
const SOL_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;
const DONE: u32 = 1;

/// Every TCP event of the machine comes by; four kinds concern us.
#[sock_ops]
fn established(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB
        | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {}
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => {
            join::tcp_sends(&ctx);
            return DONE;
        }
        BPF_SOCK_OPS_STATE_CB => {
            changing(&ctx);
            return DONE;
        }
        _ => return DONE,
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
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx, config, cookie, &ends),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx, config, cookie, pod, &ends),
        _ => accepted(&ctx, config, cookie, pod, &ends),
    }
    DONE
}

/// What a socket remembers, if it does.
#[inline(always)]
fn remembered(sk: *mut bpf_sock) -> Option<&'static mut Saved> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket.
    unsafe { saved(sk).as_mut() }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the context is valid; the pointer is checked for null before use.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// A SYN is about to leave.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, config: &Config, cookie: Cookie, ends: &Ends) {
    let port = u32::from_be(ctx.remote_port());
    let sk = socket(ctx);
    if sk.is_null() {
        return stop(ctx, config, ends, port);
    }
    let remembered = remembered(sk);
    if let Some(saved) = remembered {
        if saved.kind == SAVED_DIRECT && ends.remote.is(&saved.peer) && port == saved.peer_port {
            let flow = flow::of_client(ctx, ends);
            if !flow::depart(ctx, config, cookie, &flow, saved) {
                stop(ctx, config, ends, port);
            }
            return;
        }
        if saved.kind == SAVED_DESTINATION
            && (is_captured(config, ends, port) || is_question(ends, port))
        {
            return tell_origin(ctx, cookie, ends, saved);
        }
    }
    if !is_captured(config, ends, port)
        && !is_exempt(config, cookie, &ends.remote, port)
        && !is_proxy(config, sk)
    {
        stop(ctx, config, ends, port);
    }
}

/// Whether the connection leads to the proxy's listener.
#[inline(always)]
fn is_captured(config: &Config, ends: &Ends, port: u32) -> bool {
    ends.remote.is_loopback() && port == config.outbound
}

/// Whether the connection leads to the proxy's DNS listener.
#[inline(always)]
fn is_question(ends: &Ends, port: u32) -> bool {
    ends.remote.is_loopback() && port == DNS_PORT.load()
}

#[inline(always)]
fn tell_origin(ctx: &SockOpsContext, cookie: Cookie, ends: &Ends, saved: &Saved) {
    let client = Client {
        cookie,
        address: ends.local,
        port: ctx.local_port(),
        zero: 0,
    };
    let destination = Destination {
        address: saved.address,
        port: saved.port,
        elsewhere: saved.flags,
    };
    // Where it fails the proxy finds nothing at accept, and closes the connection.
    let _ = ORIGINS.insert(&client, &destination, u64::from(BPF_ANY));
}

/// A connection that a pod opened is established.
#[inline(always)]
fn connected(ctx: &SockOpsContext, config: &Config, cookie: Cookie, pod: &Pod, ends: &Ends) {
    let sk = socket(ctx);
    let port = u32::from_be(ctx.remote_port());
    // SAFETY: checked for null.
    let delivery = !sk.is_null() && unsafe { (*sk).mark } == config.delivery;
    if pod.flags & POD_JOIN != 0 && (delivery || is_captured(config, ends, port)) {
        return join::enroll(
            ctx,
            inside(&flow::of_client(ctx, ends).client_end(), cookie),
        );
    }
    let Some(saved) = remembered(sk) else {
        return;
    };
    if saved.kind != SAVED_DIRECT || !ends.remote.is(&saved.peer) || port != saved.peer_port {
        return;
    }
    let flow = flow::of_client(ctx, ends);
    if !flow::established(cookie, &flow, saved) {
        return stop(ctx, config, ends, port);
    }
    if saved.flags & FLOW_JOIN != 0 {
        join::enroll(ctx, flow.client_end());
    }
}

/// An end of a connection between an application and the proxy, inside one namespace.
#[inline(always)]
fn inside(end: &End, cookie: Cookie) -> End {
    End { cookie, ..*end }
}

/// A pod's socket was accepted.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, config: &Config, cookie: Cookie, pod: &Pod, ends: &Ends) {
    let port = ctx.local_port();
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    // SAFETY: checked for null. A delivery of the proxy hands its mark on to the accepted socket.
    let delivered = unsafe { (*sk).mark } == config.delivery;
    let captured = ends.local.is_loopback() && port == config.outbound;
    if delivered || captured {
        if pod.flags & POD_JOIN != 0 {
            join::enroll(
                ctx,
                inside(&flow::of_client(ctx, ends).client_end(), cookie),
            );
        }
        return;
    }
    if ends.remote.is_loopback() || ends.local.is_loopback() {
        return;
    }
    if let Some(saved) = remembered(sk) {
        // Both ends have called each other at the same moment: this one has opened it.
        if saved.kind == SAVED_DIRECT {
            return connected(ctx, config, cookie, pod, ends);
        }
        if saved.kind == SAVED_LISTENER {
            return;
        }
    }
    if lookup::passes(config, &ends.local, &ends.remote, port) {
        return;
    }
    let flow = flow::of_client(ctx, ends).swapped();
    if let Some(state) = FLOWS.get_ptr(&flow) {
        // SAFETY: the value stays readable for the length of this program.
        let (server, flags) = unsafe { ((*state).server, (*state).flags) };
        if server == cookie {
            if flags & FLOW_JOIN != 0 {
                join::enroll(ctx, flow.client_end().peer());
            }
            return;
        }
    }
    let place = saved_or_new(sk);
    // SAFETY: not null where it is written; nobody else uses a socket that is being accepted.
    let written = match unsafe { place.as_mut() } {
        Some(saved) => flow::arrive(ctx, config, cookie, &flow, saved),
        None => false,
    };
    if !written {
        stop(ctx, config, ends, port);
    }
}

/// A socket that asked for it changes its state.
#[inline(always)]
fn changing(ctx: &SockOpsContext) {
    let Some(saved) = remembered(socket(ctx)) else {
        return;
    };
    if saved.kind == SAVED_DIRECT || saved.kind == SAVED_ARRIVED {
        let ends = Ends::of_socket(ctx.ops);
        flow::change(ctx, &ends, saved);
    }
}

/// Keeps a connection in this namespace that must not be: bound to the loopback device it finds
/// no way out, and its owner learns soon.
#[inline(always)]
fn stop(ctx: &SockOpsContext, config: &Config, ends: &Ends, port: u32) {
    set(ctx, SOL_SOCKET as i32, SO_BINDTOIFINDEX as i32, 1);
    set(ctx, SOL_TCP, TCP_USER_TIMEOUT, 500);
    if logs(config) {
        debug!(
            ctx,
            "connection with {:i} port {} stopped: it came around the hooks",
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
