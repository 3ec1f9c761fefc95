//! Inbound capture: in a pod's namespace, whatever address and port a connection is meant for,
//! the proxy's listener accepts it, and `getsockname()` there is what the client dialled.
//!
//! The program is attached to enrolled namespaces only, and it has no way to ask for the
//! namespace's cookie: the pod is known by the address that was dialled. An address without a
//! listener is dropped, so a dead proxy lets nothing in. Connections that are established never
//! come here.

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    Address, Arrival, CONFIG_NETS, CONFIG_PORTS, Config, Cookie, EXEMPT_INBOUND, FLOW_ARRIVED,
    FLOW_INBOUND, Flow,
};

use crate::connect::shown;
use crate::context::Ends;
use crate::maps::{
    ADDRESSES, ARRIVALS, FLOWS, LISTENERS, config, is_crowded, is_exempt_net, is_exempt_port, logs,
    owner,
};

const PASS: u32 = 1;
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;
const LOOPBACK_DEVICE: u32 = 1;

/// A SYN looks for its listener.
#[sk_lookup]
fn inbound(ctx: SkLookupContext) -> u32 {
    // SAFETY: the context is valid.
    let (protocol, device, port) = unsafe {
        let lookup = ctx.lookup;
        (
            (*lookup).protocol,
            (*lookup).ingress_ifindex,
            (*lookup).local_port,
        )
    };
    // The loopback device carries the proxy's deliveries, which must not come back to it.
    if protocol != IPPROTO_TCP || device == LOOPBACK_DEVICE {
        return PASS;
    }
    let Some(config) = config() else { return DROP };
    let Ends { local, remote } = Ends::of_lookup(ctx.lookup);
    // SAFETY: the context is valid; the port comes in network byte order.
    let remote_port = u32::from(u16::from_be(unsafe { (*ctx.lookup).remote_port }));
    let flow = Flow {
        client: remote,
        server: local,
        client_port: remote_port,
        server_port: port,
    };
    let server = owner(&local);
    if tick_off(&flow, server)
        || passes(config, &local, &remote, port)
        || is_admitted(config, &flow, server)
    {
        return PASS;
    }
    let steered = LISTENERS.redirect_sk_lookup(&ctx, local, 0).is_ok();
    if logs(config) {
        if steered {
            debug!(
                &ctx,
                "connection to {:i} port {} steered",
                shown(&local),
                port
            );
        } else {
            debug!(
                &ctx,
                "connection to {:i} port {} dropped: no listener",
                shown(&local),
                port
            );
        }
    }
    if steered { PASS } else { DROP }
}

/// Whether the connection is none of the proxy's business here: HBONE, which has its own
/// listener, the pod calling itself, or exempt.
#[inline(always)]
pub fn passes(config: &Config, local: &Address, remote: &Address, port: u32) -> bool {
    if port == config.hbone || local.is(remote) {
        return true;
    }
    if config.flags & CONFIG_PORTS != 0 && is_exempt_port(port, EXEMPT_INBOUND) {
        return true;
    }
    if config.flags & CONFIG_NETS != 0 && is_exempt_net(remote, EXEMPT_INBOUND) {
        return true;
    }
    // Two addresses of the same pod.
    // SAFETY: the values are copied at once.
    match unsafe { (ADDRESSES.get(local), ADDRESSES.get(remote)) } {
        (Some(own), Some(other)) => *own == *other,
        _ => false,
    }
}

/// Whether a pod of this node opened the connection on the direct lane, to this pod; it has come
/// then.
#[inline(always)]
fn tick_off(flow: &Flow, server: Cookie) -> bool {
    let Some(state) = FLOWS.get_ptr_mut(flow) else {
        return false;
    };
    // SAFETY: the value stays readable for the length of this program.
    unsafe {
        let ours = server != 0 && (*state).server == server && (*state).flags & FLOW_INBOUND == 0;
        if ours {
            (*state).flags |= FLOW_ARRIVED;
        }
        ours
    }
}

/// Whether policy is known to let plaintext in from this source.
#[inline(always)]
pub fn is_admitted(config: &Config, flow: &Flow, server: Cookie) -> bool {
    let arrival = Arrival {
        to: flow.server,
        from: flow.client,
        port: flow.server_port,
    };
    // SAFETY: the value is copied at once.
    match unsafe { ARRIVALS.get(&arrival) } {
        Some(known) => {
            server != 0 && known.server == server && known.epoch == config.epoch && !is_crowded()
        }
        None => false,
    }
}
