//! Binds a socket to an address and a port in the connect hook.

use aya_ebpf::bindings::{bpf_sock, sockaddr};
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_prandom_u32};
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::Address;

use crate::context::{local_port, network_port, source};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The kernel's default range of ephemeral ports; a program cannot read the namespace's range.
const FIRST_EPHEMERAL_PORT: u32 = 32768;
const EPHEMERAL_PORTS: u32 = 28232;
/// How many ports are tried. The verifier unrolls the loop.
const ATTEMPTS: u32 = 6;
/// How many of these attempts use the pod's address; the rest do without it, because the namespace
/// may not have it yet.
const ATTEMPTS_WITH_ADDRESS: u32 = 4;

#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    address: Address,
    scope: u32,
}

/// The local port of a UDP socket that is about to be connected. The kernel would choose it after
/// the hook, so an unbound socket is bound here, to the pod's address. None: every port that was
/// tried is in use.
#[inline(always)]
pub fn ensure_port(ctx: &SockAddrContext, sk: *mut bpf_sock, own: &Address) -> Option<u32> {
    // SAFETY: the caller has checked for null; the field is readable.
    let is_v6 = unsafe { (*sk).family } == u32::from(AF_INET6);
    // The socket may be bound to an address without a port: the address stays.
    let bound = source(sk, !is_v6);
    let address = bound.unwrap_or(*own);
    let fallback = bound.unwrap_or(Address::NONE);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        if local_port(sk) != 0 {
            break;
        }
        let address = if attempt < ATTEMPTS_WITH_ADDRESS {
            &address
        } else {
            &fallback
        };
        // SAFETY: no arguments.
        let port = FIRST_EPHEMERAL_PORT + unsafe { bpf_get_prandom_u32() } % EPHEMERAL_PORTS;
        if is_v6 {
            bind_to6(ctx, address, port);
        } else {
            bind_to4(ctx, address, port);
        }
        attempt += 1;
    }
    let port = local_port(sk);
    (port != 0).then_some(port)
}

#[inline(always)]
fn bind_to4(ctx: &SockAddrContext, own: &Address, port: u32) {
    let mut socket_address = SockaddrIn {
        family: AF_INET,
        port: network_port(port) as u16,
        address: own.words[3],
        zero: [0; 2],
    };
    // SAFETY: the address and its size belong together.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            core::ptr::from_mut(&mut socket_address).cast::<sockaddr>(),
            size_of::<SockaddrIn>() as i32,
        )
    };
}

#[inline(always)]
fn bind_to6(ctx: &SockAddrContext, own: &Address, port: u32) {
    let mut socket_address = SockaddrIn6 {
        family: AF_INET6,
        port: network_port(port) as u16,
        flow: 0,
        address: *own,
        scope: 0,
    };
    // SAFETY: the address and its size belong together.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            core::ptr::from_mut(&mut socket_address).cast::<sockaddr>(),
            size_of::<SockaddrIn6>() as i32,
        )
    };
}
