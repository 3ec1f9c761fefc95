//! The life of a connection on the direct lane, as its socket tells it: what `connect` or
//! `inbound` let past the proxy is followed here, so that nothing of it is invisible.
//!
//! A flow is written down before its SYN leaves: the pod that is called lets in what is written
//! down, and a change of policy finds everything that is open. The socket's own storage says
//! what is to be counted at the end.

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::SockOpsContext;
use ztunnel_ebpf_types::{
    COUNT_LOST, COUNT_OPEN, Config, Cookie, EVENT_CLOSED, EVENT_FAILED, EVENT_OPENED, EVENT_RESET,
    Event, FIN_ACKNOWLEDGED, FIN_ACTIVE, FIN_ESTABLISHED, FIN_RECEIVED, FIN_WAITING, FLOW_ARRIVED,
    FLOW_INBOUND, FLOW_PROXY, Flow, FlowState, SAVED_ARRIVED, SAVED_NOTHING, Saved,
};

use crate::context::Ends;
use crate::direct::holds;
use crate::lookup::is_admitted;
use crate::maps::{EVENTS, FLOWS, count, owner};

// States of a TCP socket, from the kernel's net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const FIN_WAIT1: u32 = 4;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// The flow of a socket that opens a connection.
#[inline(always)]
pub fn of_client(ctx: &SockOpsContext, ends: &Ends) -> Flow {
    Flow {
        client: ends.local,
        server: ends.remote,
        client_port: ctx.local_port(),
        server_port: u32::from_be(ctx.remote_port()),
    }
}

/// A socket is about to send the SYN of a connection on the direct lane. False: it must not leave,
/// because it cannot be written down, or the verdict that let it go holds no longer, or it calls a
/// pod from an address that is not its own pod's.
#[inline(always)]
pub fn depart(
    ctx: &SockOpsContext,
    config: &Config,
    pod: Cookie,
    flow: &Flow,
    saved: &mut Saved,
) -> bool {
    saved.fins = FIN_ACTIVE;
    saved.received = 0;
    if saved.server != 0 && owner(&flow.client) != pod {
        return false;
    }
    let written = write_down(ctx, pod, flow, saved);
    if saved.flags & FLOW_PROXY != 0 {
        // Out of the mesh the proxy goes even where there is no room left.
        return written || saved.server == 0;
    }
    written && holds(config, pod, saved)
}

/// A socket of a pod was accepted that neither the proxy nor a pod of this node opened. False: it
/// must not be.
#[inline(always)]
pub fn arrive(
    ctx: &SockOpsContext,
    config: &Config,
    pod: Cookie,
    flow: &Flow,
    saved: &mut Saved,
) -> bool {
    saved.kind = SAVED_ARRIVED;
    saved.address = flow.server;
    saved.port = flow.server_port;
    saved.flags = FLOW_INBOUND;
    saved.server = pod;
    saved.fins = FIN_ESTABLISHED;
    // Policy may have changed since the SYN came, which the client can put off.
    if !write_down(ctx, pod, flow, saved) || !is_admitted(config, flow, pod) {
        return false;
    }
    // SAFETY: the value is copied at once.
    if let Some(state) = unsafe { FLOWS.get(flow) } {
        emit(EVENT_OPENED, flow, state, 0, 0);
    }
    true
}

#[inline(always)]
fn write_down(ctx: &SockOpsContext, pod: Cookie, flow: &Flow, saved: &Saved) -> bool {
    // SAFETY: the helpers take the program's own context, or nothing.
    let (socket, opened) = unsafe { (bpf_get_socket_cookie(ctx.ops.cast()), bpf_ktime_get_ns()) };
    let state = FlowState {
        pod,
        server: saved.server,
        socket,
        opened,
        joined_request: 0,
        joined_response: 0,
        dialled: saved.address,
        dialled_port: saved.port,
        flags: saved.flags,
    };
    if FLOWS.insert(flow, &state, u64::from(BPF_NOEXIST)).is_ok() {
        count(COUNT_OPEN, 1);
    } else if FLOWS.insert(flow, &state, u64::from(BPF_EXIST)).is_err() {
        // Neither new nor known: there is no room. One that is known is dead, its socket's end
        // went unseen.
        return false;
    }
    // SAFETY: the context is valid; the flag is added to those that other programs have set.
    unsafe {
        let flags = (*ctx.ops).bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32);
    }
    true
}

/// The connection that a pod opened is established. False: it leads to a pod of this node, and
/// that pod has not seen it come, so somebody else has answered.
#[inline(always)]
pub fn established(pod: Cookie, flow: &Flow, saved: &mut Saved) -> bool {
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { FLOWS.get(flow) }) else {
        return false;
    };
    // A pod that calls itself may do so over its loopback device, where nobody looks.
    let elsewhere = saved.server != 0 && saved.server != pod;
    if elsewhere && state.flags & FLOW_ARRIVED == 0 {
        return false;
    }
    saved.fins |= FIN_ESTABLISHED;
    if saved.flags & FLOW_PROXY == 0 {
        emit(EVENT_OPENED, flow, state, 0, 0);
    }
    true
}

/// The socket goes from one state to another.
#[inline(always)]
pub fn change(ctx: &SockOpsContext, ends: &Ends, saved: &mut Saved) {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    match new {
        FIN_WAIT2 => {
            saved.fins |= FIN_ACKNOWLEDGED | FIN_WAITING;
            saved.received = received(ctx.ops);
        }
        CLOSE_WAIT | CLOSING => saved.fins |= FIN_RECEIVED,
        CLOSE => close(ctx, ends, saved, old),
        _ => {}
    }
}

#[inline(always)]
fn close(ctx: &SockOpsContext, ends: &Ends, saved: &mut Saved, old: u32) {
    let outgoing = of_client(ctx, ends);
    let inbound = saved.kind == SAVED_ARRIVED;
    let flow = if inbound {
        outgoing.swapped()
    } else {
        outgoing
    };
    // SAFETY: the value is copied at once.
    let Some(state) = (unsafe { FLOWS.get(&flow) }) else {
        return;
    };
    // SAFETY: the helper takes the program's own context.
    if state.socket != unsafe { bpf_get_socket_cookie(ctx.ops.cast()) } {
        return;
    }
    let received = received(ctx.ops);
    let mut fins = saved.fins;
    if old == LAST_ACK || old == CLOSING {
        fins |= FIN_ACKNOWLEDGED;
    }
    // What came since the own FIN was acknowledged ended with the peer's FIN.
    if old == FIN_WAIT2 && fins & FIN_WAITING != 0 && received != saved.received {
        fins |= FIN_RECEIVED;
    }
    let counts = |bit: u32| u64::from(fins & bit != 0);
    // A SYN that was sent and a FIN count as a byte each.
    let sent = acknowledged(ctx.ops)
        .saturating_sub(counts(FIN_ACTIVE))
        .saturating_sub(counts(FIN_ACKNOWLEDGED));
    let received = received.saturating_sub(counts(FIN_RECEIVED));
    let (request, response) = if inbound {
        (received, sent)
    } else {
        (sent, received)
    };
    if state.flags & FLOW_PROXY == 0 {
        let kind = match old {
            _ if fins & FIN_ESTABLISHED == 0 => EVENT_FAILED,
            ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 => EVENT_RESET,
            _ => EVENT_CLOSED,
        };
        emit(
            kind,
            &flow,
            state,
            request + state.joined_request,
            response + state.joined_response,
        );
    }
    if FLOWS.remove(&flow).is_ok() {
        count(COUNT_OPEN, -1);
    }
    saved.kind = SAVED_NOTHING;
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
fn emit(kind: u32, flow: &Flow, state: &FlowState, request: u64, response: u64) {
    let Some(mut record) = EVENTS.reserve::<Event>(0) else {
        count(COUNT_LOST, 1);
        return;
    };
    // SAFETY: the helper takes nothing.
    let at = unsafe { bpf_ktime_get_ns() };
    record.write(Event {
        flow: *flow,
        state: *state,
        at,
        request,
        response,
        kind,
        zero: 0,
    });
    record.submit(0);
}
