//! TCP events of all sockets of the machine: before a SYN leaves, when a connection is
//! established, and when a fast-path connection changes its state.
//!
//! Before the SYN leaves, the socket's own port is known, and a fast-path connection is recorded in
//! CONNECTIONS. Every other socket of a pod is checked again: a connection that should have been
//! captured and was not (an MPTCP subflow does not pass the connect hooks) is captured here. When the
//! socket's mark changes, the kernel looks up its route once more.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, SO_BINDTOIFINDEX, SO_MARK, SOL_SOCKET, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    CAPTURED_BOUND, CAPTURED_OPTIONS, CONNECTION_JOIN, CapturedKey, CapturedSocket, Config,
    ConnectionEnd, Cookie, POD_ARRIVING, POD_ENROLLED, POD_JOIN, Pod, SOCKET_CAPTURED,
    SOCKET_DELIVERED, SOCKET_FAST_PATH, SOCKET_INBOUND, SOCKET_LISTENER, SOCKET_OUTBOUND_LISTENER,
    SOCKET_UNUSED, SocketState, capture_mark, is_capture_mark,
};

use crate::connections;
use crate::context::{Ends, address_bytes};
use crate::exempt::{is_exempt, is_exempt_inbound, is_proxy};
use crate::join;
use crate::maps::{CAPTURED_SOCKETS, CONNECTIONS, PODS, config, is_logging, netns};
use crate::rewritten;
use crate::socket::{self, state_or_new};

/// From linux/tcp.h, which the bindings leave out.
const SOL_TCP: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;
const DONE: u32 = 1;

/// Runs for every TCP event of the machine and handles six kinds of them.
#[sock_ops]
fn tcp_events(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB
        | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {}
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => {
            join::tcp_sends(&ctx);
            return DONE;
        }
        BPF_SOCK_OPS_STATE_CB => {
            state_changed(&ctx);
            return DONE;
        }
        BPF_SOCK_OPS_TCP_LISTEN_CB => {
            listening(&ctx);
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

/// The state that the programs have stored with a socket.
#[inline(always)]
fn socket_state(sk: *mut bpf_sock) -> Option<&'static mut SocketState> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket.
    unsafe { socket::state(sk).as_mut() }
}

#[inline(always)]
fn socket_of(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the context is valid; the pointer is checked for null before use.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// A pod's socket is about to send its SYN.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, config: &Config, cookie: Cookie, ends: &Ends) {
    let port = u32::from_be(ctx.remote_port());
    let sk = socket_of(ctx);
    if sk.is_null() {
        return stop(ctx, config, ends, port);
    }
    if let Some(socket) = socket_state(sk) {
        if is_on_fast_path(socket, ends, port) {
            let connection = connections::from_client(ctx, ends);
            if !connections::open_outbound(ctx, config, cookie, &connection, socket) {
                stop(ctx, config, ends, port);
            }
            return;
        }
        if rewritten::is_to_proxy(config, socket, ends, port) {
            return rewritten::record(ctx, cookie, ends, socket);
        }
        if is_captured(sk, socket, ends, port) {
            return record_options(ctx, cookie, sk, ends, socket);
        }
    }
    if is_exempt(config, cookie, &ends.remote, port) || is_proxy(config, sk) {
        return;
    }
    match capture(ctx, config, cookie, sk, ends, port) {
        Some(socket) => record_options(ctx, cookie, sk, ends, socket),
        None => stop(ctx, config, ends, port),
    }
}

/// Records what the application has set on a captured socket: the proxy sets it on a socket that it opens
/// for the application.
#[inline(always)]
fn record_options(
    ctx: &SockOpsContext,
    cookie: Cookie,
    sk: *mut bpf_sock,
    ends: &Ends,
    socket: &SocketState,
) {
    if socket.flags & CAPTURED_OPTIONS == 0 {
        return;
    }
    let connection = CapturedKey {
        pod: cookie,
        client: ends.local,
        server: ends.remote,
        client_port: ctx.local_port(),
        server_port: socket.dialled_port,
    };
    let options = CapturedSocket {
        mark: socket.application_mark,
        // SAFETY: checked for null by the caller.
        device: unsafe { (*sk).bound_dev_if },
    };
    // If it fails, the proxy finds nothing at accept and refuses the connection.
    let _ = CAPTURED_SOCKETS.insert(&connection, &options, u64::from(BPF_ANY));
}

/// Whether the connect hook has captured this connection of the socket.
#[inline(always)]
fn is_captured(sk: *mut bpf_sock, socket: &SocketState, ends: &Ends, port: u32) -> bool {
    // SAFETY: checked for null by the caller.
    let mark = unsafe { (*sk).mark };
    socket.kind == SOCKET_CAPTURED
        && is_capture_mark(mark)
        && ends.remote.is(&socket.dialled_address)
        && port == socket.dialled_port
}

/// Captures a connection that the connect hook did not see. None: it cannot be captured.
#[inline(always)]
fn capture(
    ctx: &SockOpsContext,
    config: &Config,
    cookie: Cookie,
    sk: *mut bpf_sock,
    ends: &Ends,
    port: u32,
) -> Option<&'static SocketState> {
    if !socket::is_known_source(cookie, &ends.local) || socket::is_link_local6(&ends.remote) {
        return None;
    }
    // SAFETY: checked for null by the caller.
    let (mark, device) = unsafe { ((*sk).mark, (*sk).bound_dev_if) };
    let application_mark = socket::application_mark(config, sk, mark);
    let stored = state_or_new(sk);
    // SAFETY: not null when it is written; this call holds the socket's lock.
    let socket = unsafe { stored.as_mut() }?;
    // Field by field: a program has a small stack.
    socket.dialled_address = ends.remote;
    socket.dialled_port = port;
    socket.kind = SOCKET_CAPTURED;
    // The kernel has chosen the source already.
    socket.flags = CAPTURED_BOUND;
    if application_mark != 0 || device != 0 {
        socket.flags |= CAPTURED_OPTIONS;
    }
    socket.application_mark = application_mark;
    let mark = capture_mark(socket.flags).cast_signed();
    set_option(ctx, SOL_SOCKET as i32, SO_MARK as i32, mark).then_some(socket)
}

/// A socket begins to listen. What it has done before is over: the sockets that it accepts get a copy of
/// its state and its mark.
#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let sk = socket_of(ctx);
    let Some(socket) = socket_state(sk) else {
        return;
    };
    let is_over = socket.kind == SOCKET_CAPTURED
        || socket.kind == SOCKET_FAST_PATH
        || socket.kind == SOCKET_INBOUND
        || socket.kind == SOCKET_DELIVERED;
    if !is_over {
        return;
    }
    if let Some(config) = config() {
        // SAFETY: the socket has a state, so it is not null.
        let mark = unsafe { (*sk).mark };
        let own = socket::application_mark(config, sk, mark);
        if own != mark {
            let _ = set_option(ctx, SOL_SOCKET as i32, SO_MARK as i32, own.cast_signed());
        }
    }
    socket.kind = SOCKET_UNUSED;
}

/// Whether the socket is on the fast path and connects to the peer that it was routed to.
#[inline(always)]
fn is_on_fast_path(socket: &SocketState, ends: &Ends, port: u32) -> bool {
    socket.kind == SOCKET_FAST_PATH
        && ends.remote.is(&socket.peer_address)
        && port == socket.peer_port
}

/// A connection that a pod opened is established.
#[inline(always)]
fn connected(ctx: &SockOpsContext, config: &Config, cookie: Cookie, pod: &Pod, ends: &Ends) {
    let sk = socket_of(ctx);
    let port = u32::from_be(ctx.remote_port());
    // SAFETY: checked for null.
    let is_delivery = !sk.is_null() && unsafe { (*sk).mark } == config.delivery_mark;
    if pod.flags & POD_JOIN != 0 && is_delivery {
        return join::enroll(ctx, end_in_pod(ctx, ends, cookie));
    }
    let Some(socket) = socket_state(sk) else {
        return;
    };
    if pod.flags & POD_JOIN != 0 && socket.kind == SOCKET_CAPTURED {
        return join::enroll(ctx, end_in_pod(ctx, ends, cookie));
    }
    if !is_on_fast_path(socket, ends, port) {
        return;
    }
    let connection = connections::from_client(ctx, ends);
    if !connections::established(cookie, &connection, socket) {
        return stop(ctx, config, ends, port);
    }
    if socket.flags & CONNECTION_JOIN != 0 {
        join::enroll(ctx, connection.client_end());
    }
}

/// This socket's end of a connection between an application and the proxy, inside one namespace.
#[inline(always)]
fn end_in_pod(ctx: &SockOpsContext, ends: &Ends, cookie: Cookie) -> ConnectionEnd {
    ConnectionEnd {
        cookie,
        ..connections::from_client(ctx, ends).client_end()
    }
}

/// A socket of a pod has accepted a connection.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, config: &Config, cookie: Cookie, pod: &Pod, ends: &Ends) {
    let port = ctx.local_port();
    let sk = socket_of(ctx);
    if sk.is_null() {
        return;
    }
    // SAFETY: checked for null. The accepted socket inherits the mark of the proxy's delivery.
    let is_delivery = unsafe { (*sk).mark } == config.delivery_mark;
    let listener = socket_state(sk).map_or(SOCKET_UNUSED, |socket| socket.kind);
    if is_delivery {
        let stored = state_or_new(sk);
        // SAFETY: not null when it is written; no other program uses a socket that is being accepted.
        match unsafe { stored.as_mut() } {
            Some(socket) => socket.kind = SOCKET_DELIVERED,
            None => return stop(ctx, config, ends, port),
        }
    }
    if is_delivery || listener == SOCKET_OUTBOUND_LISTENER {
        if pod.flags & POD_JOIN != 0 {
            join::enroll(ctx, end_in_pod(ctx, ends, cookie));
        }
        return;
    }
    if ends.remote.is_loopback() || ends.local.is_loopback() || listener == SOCKET_LISTENER {
        return;
    }
    // A captured connection has been answered by another process than the proxy.
    if listener == SOCKET_CAPTURED {
        return stop(ctx, config, ends, port);
    }
    // A simultaneous open: this end has opened the connection, too. An application's listener may have
    // opened one before it became a listener, and its accepted sockets have a copy of that state.
    if listener == SOCKET_FAST_PATH && connections::is_opened_by(ctx, ends) {
        return connected(ctx, config, cookie, pod, ends);
    }
    if is_exempt_inbound(config, &ends.local, &ends.remote, port) {
        return;
    }
    let connection = connections::from_client(ctx, ends).swapped();
    if let Some(state) = CONNECTIONS.get_ptr(&connection) {
        // SAFETY: the value stays readable until this program returns.
        let (server_pod, flags) = unsafe { ((*state).server_pod, (*state).flags) };
        if server_pod == cookie {
            if flags & CONNECTION_JOIN != 0 {
                join::enroll(ctx, connection.client_end().peer());
            }
            return;
        }
    }
    let stored = state_or_new(sk);
    // SAFETY: not null when it is written; no other program uses a socket that is being accepted.
    let opened = match unsafe { stored.as_mut() } {
        Some(socket) => {
            let is_arriving = pod.flags & POD_ARRIVING != 0;
            connections::open_inbound(ctx, config, cookie, is_arriving, &connection, socket)
        }
        None => false,
    };
    if !opened {
        stop(ctx, config, ends, port);
    }
}

/// A socket with BPF_SOCK_OPS_STATE_CB_FLAG changes its state.
#[inline(always)]
fn state_changed(ctx: &SockOpsContext) {
    let Some(socket) = socket_state(socket_of(ctx)) else {
        return;
    };
    if socket.kind == SOCKET_FAST_PATH || socket.kind == SOCKET_INBOUND {
        let ends = Ends::of_socket(ctx.ops);
        connections::state_changed(ctx, &ends, socket);
    }
}

/// Keeps a connection inside this namespace: bound to the loopback device it finds no route, and
/// the short timeout reports that to the application soon.
///
/// Not inlined: what it needs for the log is on a stack of its own.
#[inline(never)]
fn stop(ctx: &SockOpsContext, config: &Config, ends: &Ends, port: u32) {
    let _ = set_option(ctx, SOL_SOCKET as i32, SO_BINDTOIFINDEX as i32, 1);
    let _ = set_option(ctx, SOL_TCP, TCP_USER_TIMEOUT, 500);
    if is_logging(config) {
        debug!(
            ctx,
            "connection with {:i} port {} stopped: the connect hooks did not capture it",
            address_bytes(&ends.remote),
            port
        );
    }
}

/// Sets an int option. False: the kernel refuses.
#[inline(always)]
fn set_option(ctx: &SockOpsContext, level: i32, name: i32, value: i32) -> bool {
    let mut value = value;
    // SAFETY: the options are ints, and their size is given.
    let result = unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            level,
            name,
            core::ptr::from_mut(&mut value).cast(),
            4,
        )
    };
    result == 0
}
