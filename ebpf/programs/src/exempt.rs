//! Which sockets and destinations are not captured. `connect`, `dns`, `tcp_events` and `lookup`
//! share these checks.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use ztunnel_ebpf_types::{
    Address, CONFIG_EXEMPT_NETWORKS, CONFIG_EXEMPT_PORTS, Config, Cookie, EXEMPT_INBOUND,
    EXEMPT_OUTBOUND,
};

use crate::maps::{ADDRESSES, HAS_PROCESS_ID, PREVIOUS_PROXIES, is_exempt_network, is_exempt_port};

/// Whether the socket is the proxy's own: it has the proxy's mark, and the process that connects
/// it is the active proxy or a previous one that is still alive. The mark alone is not enough: a
/// container with CAP_NET_RAW can set any mark.
#[inline(always)]
pub fn is_proxy(config: &Config, sk: *mut bpf_sock) -> bool {
    // SAFETY: the callers have checked for null; the field is readable in both contexts.
    let mark = unsafe { (*sk).mark };
    if mark != config.mark {
        return false;
    }
    if HAS_PROCESS_ID.load() == 0 {
        return true;
    }
    let process = process_id();
    // SAFETY: the value is not read.
    process == config.process || unsafe { PREVIOUS_PROXIES.get(&process) }.is_some()
}

/// The id of the calling process in the initial pid namespace.
#[inline(always)]
pub fn process_id() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Whether connections of a pod to a destination are not captured: it is the machine itself, the
/// pod itself, or exempt by the settings.
#[inline(always)]
pub fn is_exempt(config: &Config, cookie: Cookie, address: &Address, port: u32) -> bool {
    if is_local(cookie, address) {
        return true;
    }
    if config.flags & CONFIG_EXEMPT_PORTS != 0 && is_exempt_port(port, EXEMPT_OUTBOUND) {
        return true;
    }
    config.flags & CONFIG_EXEMPT_NETWORKS != 0 && is_exempt_network(address, EXEMPT_OUTBOUND)
}

/// Whether a destination is the machine itself or the pod itself.
#[inline(always)]
pub fn is_local(cookie: Cookie, address: &Address) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    // SAFETY: the value is copied at once; user space removes an address before it gives the
    // address to another pod.
    match unsafe { ADDRESSES.get(address) } {
        Some(pod) => *pod == cookie,
        None => false,
    }
}

/// Whether connections into a pod are not captured: to HBONE, which has its own listener, from
/// the pod itself, or exempt by the settings.
#[inline(always)]
pub fn is_exempt_inbound(config: &Config, local: &Address, remote: &Address, port: u32) -> bool {
    if port == config.hbone_port || local.is(remote) {
        return true;
    }
    if config.flags & CONFIG_EXEMPT_PORTS != 0 && is_exempt_port(port, EXEMPT_INBOUND) {
        return true;
    }
    if config.flags & CONFIG_EXEMPT_NETWORKS != 0 && is_exempt_network(remote, EXEMPT_INBOUND) {
        return true;
    }
    // Two addresses of the same pod.
    // SAFETY: the values are copied at once.
    match unsafe { (ADDRESSES.get(local), ADDRESSES.get(remote)) } {
        (Some(own), Some(other)) => *own == *other,
        _ => false,
    }
}
