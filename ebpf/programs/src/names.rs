//! `getpeername()` and `getsockname()` of captured sockets: the application sees the address that
//! it dialled, and its pod's own address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{Address, SOCKET_CAPTURED, SOCKET_DNS, SOCKET_FAST_PATH, SocketState};

use crate::context::{destination6, network_port, set_destination6};
use crate::maps::{PODS, PROXY_DNS_PORT, config, netns};
use crate::socket::state;

/// These hooks cannot refuse; the verifier wants the value 1.
const DONE: i32 = 1;

/// `getpeername()` of an AF_INET socket.
#[cgroup_sock_addr(getpeername4)]
fn peername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid; the field is readable in getpeername4.
    let real = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(socket) = socket_state(&ctx)
        && is_rewritten(&ctx, socket, &real)
    {
        // SAFETY: writable fields of getpeername4.
        unsafe {
            (*ctx.sock_addr).user_ip4 = socket.dialled_address.words[3];
            (*ctx.sock_addr).user_port = network_port(socket.dialled_port);
        }
    }
    DONE
}

/// `getpeername()` of an AF_INET6 socket.
#[cgroup_sock_addr(getpeername6)]
fn peername6(ctx: SockAddrContext) -> i32 {
    let real = destination6(&ctx);
    if let Some(socket) = socket_state(&ctx)
        && is_rewritten(&ctx, socket, &real)
    {
        set_destination6(&ctx, &socket.dialled_address);
        // SAFETY: a writable field of getpeername6.
        unsafe { (*ctx.sock_addr).user_port = network_port(socket.dialled_port) };
    }
    DONE
}

/// `getsockname()` of an AF_INET socket: the kernel gave 127.0.0.1 to a captured socket that was
/// bound to the wildcard address and a port.
#[cgroup_sock_addr(getsockname4)]
fn sockname4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid; the field is readable in getsockname4.
    let real = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(shown) = pod_address(&ctx, &real) {
        // SAFETY: a writable field of getsockname4.
        unsafe { (*ctx.sock_addr).user_ip4 = shown.words[3] };
    }
    DONE
}

/// `getsockname()` of an AF_INET6 socket.
#[cgroup_sock_addr(getsockname6)]
fn sockname6(ctx: SockAddrContext) -> i32 {
    let real = destination6(&ctx);
    if let Some(shown) = pod_address(&ctx, &real) {
        set_destination6(&ctx, &shown);
    }
    DONE
}

/// The state that the programs have stored with the socket. Sockets outside of enrolled pods have
/// none.
#[inline(always)]
fn socket_state(ctx: &SockAddrContext) -> Option<&'static SocketState> {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket, which this call holds.
    unsafe { state(sk).as_ref() }
}

/// Whether the socket's real peer replaces the dialled one: it is the proxy's listener, or the
/// backend that was chosen for a service. False for a socket that was captured once and is
/// connected to something else by now.
#[inline(always)]
fn is_rewritten(ctx: &SockAddrContext, socket: &SocketState, real: &Address) -> bool {
    // SAFETY: the context is valid.
    let port = unsafe { (*ctx.sock_addr).user_port };
    match socket.kind {
        SOCKET_CAPTURED => {
            let Some(config) = config() else { return false };
            let is_listener = port == network_port(config.outbound_port)
                || port == network_port(PROXY_DNS_PORT.load());
            real.is_loopback() && is_listener
        }
        // An unconnected socket has no dialled port.
        SOCKET_DNS => {
            socket.dialled_port != 0
                && real.is_loopback()
                && port == network_port(PROXY_DNS_PORT.load())
        }
        SOCKET_FAST_PATH => real.is(&socket.peer_address) && port == network_port(socket.peer_port),
        _ => false,
    }
}

/// The pod's address to show instead of a captured socket's loopback address.
#[inline(always)]
fn pod_address(ctx: &SockAddrContext, real: &Address) -> Option<Address> {
    if !real.is_loopback() {
        return None;
    }
    let kind = socket_state(ctx)?.kind;
    if kind != SOCKET_CAPTURED && kind != SOCKET_DNS {
        return None;
    }
    // SAFETY: copied at once.
    let pod = unsafe { PODS.get(&netns(ctx)) }?;
    let shown = if real.is_v4() { pod.v4 } else { pod.v6 };
    (!shown.is(&Address::NONE)).then_some(shown)
}
