//! `getpeername()` of sockets whose destination was replaced: the application sees the address that it
//! dialled.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{Address, SOCKET_DNS, SOCKET_FAST_PATH, SocketState};

use crate::context::{destination6, network_port, set_destination6};
use crate::maps::PROXY_DNS_PORT;
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

/// Whether another address than the dialled one is the socket's real peer: the backend that was chosen
/// for a service, or the proxy's DNS listener. False for a socket that is connected to something else
/// by now.
#[inline(always)]
fn is_rewritten(ctx: &SockAddrContext, socket: &SocketState, real: &Address) -> bool {
    // SAFETY: the context is valid.
    let port = unsafe { (*ctx.sock_addr).user_port };
    match socket.kind {
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
