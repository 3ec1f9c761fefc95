//! The lifetime of a fast-path connection, followed by the TCP events of its socket.
//!
//! A connection is recorded before its SYN leaves: the server's pod accepts recorded connections
//! only, and a change of policy finds every open one. The socket's storage keeps what the byte
//! counts at the end depend on.

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::SockOpsContext;
use ztunnel_ebpf_types::{
    CONNECTION_BY_PROXY, CONNECTION_INBOUND, CONNECTION_SYN_ARRIVED, COUNTER_LOST_EVENTS,
    COUNTER_OPEN_CONNECTIONS, Config, ConnectionKey, ConnectionState, Cookie, EVENT_CLOSED,
    EVENT_FAILED, EVENT_OPENED, EVENT_RESET, Event, PROGRESS_ACTIVE_OPEN, PROGRESS_ESTABLISHED,
    PROGRESS_FIN_ACKNOWLEDGED, PROGRESS_FIN_RECEIVED, PROGRESS_FIN_WAIT2, SOCKET_INBOUND,
    SOCKET_UNUSED, SocketState,
};

use crate::context::Ends;
use crate::fast_path::{is_inbound_authorized, is_still_authorized};
use crate::maps::{CONNECTIONS, EVENTS, count, pod_of};

// States of a TCP socket, from the kernel's net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const FIN_WAIT1: u32 = 4;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// The connection of a socket that is its client's end.
#[inline(always)]
pub fn from_client(ctx: &SockOpsContext, ends: &Ends) -> ConnectionKey {
    ConnectionKey {
        client: ends.local,
        server: ends.remote,
        client_port: ctx.local_port(),
        server_port: u32::from_be(ctx.remote_port()),
    }
}

/// Whether this very socket has opened the connection.
#[inline(always)]
pub fn is_opened_by(ctx: &SockOpsContext, ends: &Ends) -> bool {
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(&from_client(ctx, ends)) }) else {
        return false;
    };
    // SAFETY: the helper takes the program's own context.
    state.socket_cookie == unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Records a connection whose socket is about to send its SYN. False: the SYN must not leave,
/// because the connection cannot be recorded, its entry is no longer valid, or a connection to a
/// pod has a source address that is not the client pod's.
#[inline(always)]
pub fn open_outbound(
    ctx: &SockOpsContext,
    config: &Config,
    pod: Cookie,
    connection: &ConnectionKey,
    socket: &mut SocketState,
) -> bool {
    socket.progress = PROGRESS_ACTIVE_OPEN;
    socket.received_at_fin_wait2 = 0;
    if socket.server_pod != 0 && pod_of(&connection.client) != pod {
        return false;
    }
    let recorded = record(ctx, pod, connection, socket);
    if socket.flags & CONNECTION_BY_PROXY != 0 {
        // The proxy may leave the mesh even if CONNECTIONS is full.
        return recorded || socket.server_pod == 0;
    }
    recorded && is_still_authorized(config, pod, socket)
}

/// Records a connection that a pod's socket has accepted from outside this node. `is_arriving`: the
/// SYN may be older than the pod's enrollment, like connections that were open before; the proxy
/// authorizes the record a moment later. False: the connection must be stopped.
#[inline(always)]
pub fn open_inbound(
    ctx: &SockOpsContext,
    config: &Config,
    pod: Cookie,
    is_arriving: bool,
    connection: &ConnectionKey,
    socket: &mut SocketState,
) -> bool {
    socket.kind = SOCKET_INBOUND;
    socket.dialled_address = connection.server;
    socket.dialled_port = connection.server_port;
    socket.flags = CONNECTION_INBOUND;
    socket.server_pod = pod;
    socket.progress = PROGRESS_ESTABLISHED;
    // Policy may have changed since the SYN: the client decides when the handshake ends.
    if !record(ctx, pod, connection, socket) {
        return false;
    }
    if !is_arriving && !is_inbound_authorized(config, connection, pod) {
        return false;
    }
    // SAFETY: the value is copied at once.
    if let Some(state) = unsafe { CONNECTIONS.get(connection) } {
        emit(EVENT_OPENED, connection, state, 0, 0);
    }
    true
}

/// Writes the connection into CONNECTIONS and subscribes to the socket's state changes.
#[inline(always)]
fn record(
    ctx: &SockOpsContext,
    pod: Cookie,
    connection: &ConnectionKey,
    socket: &SocketState,
) -> bool {
    // SAFETY: the helpers take the program's own context, or nothing.
    let (socket_cookie, opened_at) =
        unsafe { (bpf_get_socket_cookie(ctx.ops.cast()), bpf_ktime_get_ns()) };
    let state = ConnectionState {
        pod,
        server_pod: socket.server_pod,
        socket_cookie,
        opened_at,
        joined_request_bytes: 0,
        joined_response_bytes: 0,
        dialled_address: socket.dialled_address,
        dialled_port: socket.dialled_port,
        flags: socket.flags,
    };
    if CONNECTIONS
        .insert(connection, &state, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        count(COUNTER_OPEN_CONNECTIONS, 1);
    } else if CONNECTIONS
        .insert(connection, &state, u64::from(BPF_EXIST))
        .is_err()
    {
        // Neither new nor present: the map is full. An entry that is present belongs to a dead
        // socket whose end no event has reported.
        return false;
    }
    // SAFETY: the context is valid; the flag is added to those that other programs have set.
    unsafe {
        let flags = (*ctx.ops).bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32);
    }
    true
}

/// A connection that a pod opened is established. False: it leads to a pod of this node, but the
/// SYN has not arrived there: another process has answered, and the connection must be stopped.
#[inline(always)]
pub fn established(pod: Cookie, connection: &ConnectionKey, socket: &mut SocketState) -> bool {
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(connection) }) else {
        return false;
    };
    // A pod's connection to itself may use the loopback device, where `inbound` does not look.
    let to_another_pod = socket.server_pod != 0 && socket.server_pod != pod;
    if to_another_pod && state.flags & CONNECTION_SYN_ARRIVED == 0 {
        return false;
    }
    socket.progress |= PROGRESS_ESTABLISHED;
    if socket.flags & CONNECTION_BY_PROXY == 0 {
        emit(EVENT_OPENED, connection, state, 0, 0);
    }
    true
}

/// Follows a change of the socket's TCP state.
#[inline(always)]
pub fn state_changed(ctx: &SockOpsContext, ends: &Ends, socket: &mut SocketState) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    match new {
        FIN_WAIT2 => {
            socket.progress |= PROGRESS_FIN_ACKNOWLEDGED | PROGRESS_FIN_WAIT2;
            socket.received_at_fin_wait2 = received(ctx.ops);
        }
        CLOSE_WAIT | CLOSING => socket.progress |= PROGRESS_FIN_RECEIVED,
        CLOSE => closed(ctx, ends, socket, old),
        _ => {}
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, ends: &Ends, socket: &mut SocketState, old: u32) {
    let outbound = from_client(ctx, ends);
    let is_inbound = socket.kind == SOCKET_INBOUND;
    let connection = if is_inbound {
        outbound.swapped()
    } else {
        outbound
    };
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { CONNECTIONS.get(&connection) }) else {
        return;
    };
    // SAFETY: the helper takes the program's own context.
    if state.socket_cookie != unsafe { bpf_get_socket_cookie(ctx.ops.cast()) } {
        return;
    }
    let received = received(ctx.ops);
    let mut progress = socket.progress;
    if old == LAST_ACK || old == CLOSING {
        progress |= PROGRESS_FIN_ACKNOWLEDGED;
    }
    // Bytes that arrived after FIN_WAIT2 ended with the peer's FIN.
    if old == FIN_WAIT2
        && progress & PROGRESS_FIN_WAIT2 != 0
        && received != socket.received_at_fin_wait2
    {
        progress |= PROGRESS_FIN_RECEIVED;
    }
    let one_if = |bit: u32| u64::from(progress & bit != 0);
    // The kernel counts a sent SYN and a FIN as a byte each.
    let sent = acknowledged(ctx.ops)
        .saturating_sub(one_if(PROGRESS_ACTIVE_OPEN))
        .saturating_sub(one_if(PROGRESS_FIN_ACKNOWLEDGED));
    let received = received.saturating_sub(one_if(PROGRESS_FIN_RECEIVED));
    let (request, response) = if is_inbound {
        (received, sent)
    } else {
        (sent, received)
    };
    if state.flags & CONNECTION_BY_PROXY == 0 {
        let kind = match old {
            _ if progress & PROGRESS_ESTABLISHED == 0 => EVENT_FAILED,
            ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 => EVENT_RESET,
            _ => EVENT_CLOSED,
        };
        emit(
            kind,
            &connection,
            state,
            request + state.joined_request_bytes,
            response + state.joined_response_bytes,
        );
    }
    if CONNECTIONS.remove(&connection).is_ok() {
        count(COUNTER_OPEN_CONNECTIONS, -1);
    }
    socket.kind = SOCKET_UNUSED;
}

#[inline(always)]
fn acknowledged(ops: *const bpf_sock_ops) -> u64 {
    // SAFETY: the context is valid.
    unsafe { (*ops).bytes_acked }
}

#[inline(always)]
fn received(ops: *const bpf_sock_ops) -> u64 {
    // SAFETY: the context is valid.
    unsafe { (*ops).bytes_received }
}

#[inline(always)]
fn emit(
    kind: u32,
    connection: &ConnectionKey,
    state: &ConnectionState,
    request_bytes: u64,
    response_bytes: u64,
) {
    let Some(mut record) = EVENTS.reserve::<Event>(0) else {
        count(COUNTER_LOST_EVENTS, 1);
        return;
    };
    // SAFETY: the helper takes no arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    record.write(Event {
        connection: *connection,
        state: *state,
        time,
        request_bytes,
        response_bytes,
        kind,
        zero: 0,
    });
    record.submit(0);
}
