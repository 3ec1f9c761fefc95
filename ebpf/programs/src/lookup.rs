//! Connections that arrive in a pod's namespace: the proxy's listeners accept them, and
//! `getsockname()` there returns the address that the client dialled.
//!
//! | from | to | is |
//! | --- | --- | --- |
//! | the pod | another address | captured: the pod's rule has brought it back |
//! | another address, by the loopback device | the pod | a delivery of the proxy |
//! | another address, by another device | the pod | inbound |
//! | the pod | the pod | the pod's own |
//!
//! The program is attached to enrolled namespaces only, an instance to each. It cannot read the
//! namespace's cookie, so the cookie is a constant of the instance. A connection for which the proxy
//! has no listener is dropped: after the proxy's death, nothing gets in or out. Packets of established
//! connections do not run this program.

use core::arch::asm;

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    CONNECTION_INBOUND, CONNECTION_SYN_ARRIVED, ConnectionKey, Cookie, INSTANCE_POD, LISTENER_DNS,
    LISTENER_INBOUND, LISTENER_OUTBOUND, ListenerKey,
};

use crate::context::{Ends, address_bytes};
use crate::dns;
use crate::exempt::is_exempt_inbound;
use crate::fast_path::is_inbound_authorized;
use crate::maps::{CONNECTIONS, POD_LISTENERS, PODS, config, is_logging, pod_of};
use crate::socket::{LOOPBACK_DEVICE, is_link_local6};

const PASS: u32 = 1;
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;

/// The namespace that this instance is attached to. Before an instance is loaded, the placeholder in
/// this instruction is replaced by the cookie.
#[inline(always)]
fn this_pod() -> Cookie {
    let pod: Cookie;
    // SAFETY: loads a constant.
    unsafe {
        asm!(
            "{pod} = {placeholder} ll",
            pod = out(reg) pod,
            placeholder = const INSTANCE_POD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    pod
}

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
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let Some(config) = config() else { return DROP };
    let pod = this_pod();
    let Ends { local, remote } = Ends::of_lookup(ctx.lookup);
    let is_to_pod = local.is_loopback() || pod_of(&local) == pod;
    // A pod without another address of a family uses that of a device.
    let is_from_pod = remote.is_loopback()
        || pod_of(&remote) == pod
        || (device == LOOPBACK_DEVICE && is_link_local6(&remote));
    if is_from_pod && !is_to_pod && !local.is(&remote) {
        // SAFETY: copied at once.
        let is_dns =
            unsafe { PODS.get(&pod) }.is_some_and(|known| dns::is_to_resolver(known, &local, port));
        let kind = if is_dns {
            LISTENER_DNS
        } else {
            LISTENER_OUTBOUND
        };
        return steer(&ctx, pod, kind);
    }
    if device == LOOPBACK_DEVICE {
        return PASS;
    }
    // SAFETY: the context is valid; the port is in network byte order.
    let remote_port = u32::from(u16::from_be(unsafe { (*ctx.lookup).remote_port }));
    let connection = ConnectionKey {
        client: remote,
        server: local,
        client_port: remote_port,
        server_port: port,
    };
    if mark_syn_arrived(&connection, pod)
        || is_exempt_inbound(config, &local, &remote, port)
        || is_inbound_authorized(config, &connection, pod)
    {
        return PASS;
    }
    let verdict = steer(&ctx, pod, LISTENER_INBOUND);
    if is_logging(config) {
        if verdict == PASS {
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
    verdict
}

/// Gives the connection to a listener of the proxy. DROP: the proxy has no such listener in the pod.
#[inline(always)]
fn steer(ctx: &SkLookupContext, pod: Cookie, kind: u32) -> u32 {
    let listener = ListenerKey { pod, kind, zero: 0 };
    match POD_LISTENERS.redirect_sk_lookup(ctx, listener, 0) {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
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
        let is_expected = (*state).server_pod == pod && (*state).flags & CONNECTION_INBOUND == 0;
        if is_expected {
            (*state).flags |= CONNECTION_SYN_ARRIVED;
        }
        is_expected
    }
}
