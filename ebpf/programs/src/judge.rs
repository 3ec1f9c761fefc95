//! The one question that `connect` and `established` both ask of a pod's socket: may it go where
//! it wants to by itself, or does it belong to the proxy?

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use ztunnel_ebpf_types::{Address, CONFIG_NETS, CONFIG_PORTS, Config, Cookie, EXEMPT_OUTBOUND};

use crate::maps::{ADDRESSES, FORMERS, KNOWS_PROCESS, is_exempt_net, is_exempt_port};

/// Whether the socket is the proxy's own: it bears the mark, and the process that connects it is
/// the one that made itself known, or one that did before it and still lives. The mark alone would
/// not do, a container with CAP_NET_RAW may set any.
#[inline(always)]
pub fn is_proxy(config: &Config, sk: *mut bpf_sock) -> bool {
    // SAFETY: the callers have checked for null; the field is readable in both contexts.
    let mark = unsafe { (*sk).mark };
    if mark != config.mark {
        return false;
    }
    if KNOWS_PROCESS.load() == 0 {
        return true;
    }
    let process = process();
    // SAFETY: the value is not read.
    process == config.process || unsafe { FORMERS.get(&process) }.is_some()
}

/// The calling process, as the first pid namespace numbers it.
#[inline(always)]
pub fn process() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Whether a destination is left alone: the machine itself, the pod itself, or exempt.
#[inline(always)]
pub fn is_exempt(config: &Config, cookie: Cookie, address: &Address, port: u32) -> bool {
    if is_here(cookie, address) {
        return true;
    }
    if config.flags & CONFIG_PORTS != 0 && is_exempt_port(port, EXEMPT_OUTBOUND) {
        return true;
    }
    config.flags & CONFIG_NETS != 0 && is_exempt_net(address, EXEMPT_OUTBOUND)
}

/// Whether a destination is the machine itself or the pod itself.
#[inline(always)]
pub fn is_here(cookie: Cookie, address: &Address) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    // SAFETY: the value is copied at once; an address changes its owner only after withdrawal.
    match unsafe { ADDRESSES.get(address) } {
        Some(owner) => *owner == cookie,
        None => false,
    }
}
