//! Inbound capture: for every address and port of a pod, the proxy's listener accepts the
//! connection, and `getsockname()` there returns the address that the client dialled.
//!
//! The program is attached to enrolled namespaces only. It cannot read the namespace's cookie, so
//! the dialled address identifies the pod. A connection to an address without a listener is
//! dropped: after the proxy's death, nothing gets in. Packets of established connections do not
//! run this program.

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{CONNECTION_INBOUND, CONNECTION_SYN_ARRIVED, ConnectionKey, Cookie};

use crate::context::{Ends, address_bytes};
use crate::exempt::is_exempt_inbound;
use crate::fast_path::is_inbound_authorized;
use crate::maps::{CONNECTIONS, LISTENERS, config, is_logging, pod_of};
use crate::socket::LOOPBACK_DEVICE;

const PASS: u32 = 1;
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;

/// A SYN looks for its listener.
///
/// Other versions of the proxy recognise captured pods by this program's name
/// (`foreign_programs`): it must not change.
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
    // The proxy's deliveries arrive on the loopback device and must not be steered back to it.
    if protocol != IPPROTO_TCP || device == LOOPBACK_DEVICE {
        return PASS;
    }
    let Some(config) = config() else { return DROP };
    let Ends { local, remote } = Ends::of_lookup(ctx.lookup);
    // SAFETY: the context is valid; the port is in network byte order.
    let remote_port = u32::from(u16::from_be(unsafe { (*ctx.lookup).remote_port }));
    let connection = ConnectionKey {
        client: remote,
        server: local,
        client_port: remote_port,
        server_port: port,
    };
    let pod = pod_of(&local);
    if mark_syn_arrived(&connection, pod)
        || is_exempt_inbound(config, &local, &remote, port)
        || is_inbound_authorized(config, &connection, pod)
    {
        return PASS;
    }
    let steered = LISTENERS.redirect_sk_lookup(&ctx, local, 0).is_ok();
    if is_logging(config) {
        if steered {
            debug!(
                &ctx,
                "connection to {:i} port {} steered to the proxy",
                address_bytes(&local),
                port
            );
        } else {
            debug!(
                &ctx,
                "connection to {:i} port {} dropped: the proxy has no listener there",
                address_bytes(&local),
                port
            );
        }
    }
    if steered { PASS } else { DROP }
}

/// Whether a pod of this node has opened the connection to this pod on the fast path. If so, its
/// arrival is recorded.
#[inline(always)]
fn mark_syn_arrived(connection: &ConnectionKey, pod: Cookie) -> bool {
    let Some(state) = CONNECTIONS.get_ptr_mut(connection) else {
        return false;
    };
    // SAFETY: the value stays readable until this program returns.
    unsafe {
        let is_expected =
            pod != 0 && (*state).server_pod == pod && (*state).flags & CONNECTION_INBOUND == 0;
        if is_expected {
            (*state).flags |= CONNECTION_SYN_ARRIVED;
        }
        is_expected
    }
}
