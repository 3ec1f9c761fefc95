//! What a captured socket's owner is told: it called whom it called, from its own address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{Address, SAVED_DESTINATION, SAVED_DIRECT, SAVED_RESOLVER, Saved};

use crate::connect::{network_port, write6};
use crate::maps::{DNS_PORT, PODS, config, netns, saved};

/// These hooks cannot refuse; the verifier wants the value 1.
const DONE: i32 = 1;

/// `getpeername()` of an AF_INET socket.
#[cgroup_sock_addr(getpeername4)]
fn peer4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid; the field is readable in getpeername4.
    let told = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(saved) = remembered(&ctx)
        && is_stand_in(&ctx, saved, &told)
    {
        // SAFETY: writable fields of getpeername4.
        unsafe {
            (*ctx.sock_addr).user_ip4 = saved.address.words[3];
            (*ctx.sock_addr).user_port = network_port(saved.port);
        }
    }
    DONE
}

/// `getpeername()` of an AF_INET6 socket.
#[cgroup_sock_addr(getpeername6)]
fn peer6(ctx: SockAddrContext) -> i32 {
    let told = told6(&ctx);
    if let Some(saved) = remembered(&ctx)
        && is_stand_in(&ctx, saved, &told)
    {
        write6(&ctx, &saved.address);
        // SAFETY: a writable field of getpeername6.
        unsafe { (*ctx.sock_addr).user_port = network_port(saved.port) };
    }
    DONE
}

/// `getsockname()` of an AF_INET socket: one that was bound to the wildcard with a port of its
/// own got 127.0.0.1 from the kernel.
#[cgroup_sock_addr(getsockname4)]
fn name4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid; the field is readable in getsockname4.
    let told = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(own) = own(&ctx, &told) {
        // SAFETY: a writable field of getsockname4.
        unsafe { (*ctx.sock_addr).user_ip4 = own.words[3] };
    }
    DONE
}

/// `getsockname()` of an AF_INET6 socket.
#[cgroup_sock_addr(getsockname6)]
fn name6(ctx: SockAddrContext) -> i32 {
    let told = told6(&ctx);
    if let Some(own) = own(&ctx, &told) {
        write6(&ctx, &own);
    }
    DONE
}

/// What the socket remembers. Sockets of pods only: the others have no storage of ours.
#[inline(always)]
fn remembered(ctx: &SockAddrContext) -> Option<&'static Saved> {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket, which this call holds.
    unsafe { saved(sk).as_ref() }
}

/// Whether the peer that the kernel would tell stands in for the one that was called: the proxy's
/// listener, or the backend that was chosen for a service. A socket that was captured once and
/// used for something else since then is left alone.
#[inline(always)]
fn is_stand_in(ctx: &SockAddrContext, saved: &Saved, told: &Address) -> bool {
    // SAFETY: the context is valid.
    let port = unsafe { (*ctx.sock_addr).user_port };
    match saved.kind {
        SAVED_DESTINATION => {
            let Some(config) = config() else { return false };
            let is_listener =
                port == network_port(config.outbound) || port == network_port(DNS_PORT.load());
            told.is_loopback() && is_listener
        }
        // One that is connected to nothing remembers no port.
        SAVED_RESOLVER => {
            saved.port != 0 && told.is_loopback() && port == network_port(DNS_PORT.load())
        }
        SAVED_DIRECT => told.is(&saved.peer) && port == network_port(saved.peer_port),
        _ => false,
    }
}

/// The pod's address of the family of a loopback address that the socket should not show.
#[inline(always)]
fn own(ctx: &SockAddrContext, told: &Address) -> Option<Address> {
    if !told.is_loopback() {
        return None;
    }
    let kind = remembered(ctx)?.kind;
    if kind != SAVED_DESTINATION && kind != SAVED_RESOLVER {
        return None;
    }
    // SAFETY: copied at once.
    let pod = unsafe { PODS.get(&netns(ctx)) }?;
    let own = if told.is_v4() { pod.v4 } else { pod.v6 };
    (!own.is(&Address::NONE)).then_some(own)
}

#[inline(always)]
fn told6(ctx: &SockAddrContext) -> Address {
    let mut words = [0; 4];
    // SAFETY: the context is valid; the field is readable in the name hooks of IPv6.
    unsafe {
        words[0] = (*ctx.sock_addr).user_ip6[0];
        words[1] = (*ctx.sock_addr).user_ip6[1];
        words[2] = (*ctx.sock_addr).user_ip6[2];
        words[3] = (*ctx.sock_addr).user_ip6[3];
    }
    Address { words }
}
