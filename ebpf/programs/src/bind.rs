//! Giving a socket an address and a port of its own, in the connect hook.

use aya_ebpf::bindings::{bpf_sock, sockaddr};
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_prandom_u32};
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::Address;

use crate::connect::network_port;
use crate::context::{local_port, source};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The kernel's default range of ephemeral ports; a program cannot read the namespace's own.
const FIRST_PORT: u32 = 32768;
const PORTS: u32 = 28232;
/// Half of them with the pod's address, half without.
const ATTEMPTS: u32 = 16;

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

/// Gives the socket the pod's address, so that neither end sees 127.0.0.1 as the client. It
/// fails, rightly, on a socket that the application has bound itself.
#[inline(always)]
pub fn bind4(ctx: &SockAddrContext, own: &Address) {
    if !own.is(&Address::NONE) {
        name4(ctx, own, 0);
    }
}

/// As [`bind4`], for an AF_INET6 socket that calls an IPv4 address in mapped form.
#[inline(always)]
pub fn bind6(ctx: &SockAddrContext, own: &Address) {
    if !own.is(&Address::NONE) {
        name6(ctx, own, 0);
    }
}

/// The local port of a UDP socket that is about to be connected. One that has none yet gets one,
/// with the pod's address: the kernel would choose it when the hook is done. None: every port that
/// was tried belonged to somebody.
#[inline(always)]
pub fn port(ctx: &SockAddrContext, sk: *mut bpf_sock, own: &Address) -> Option<u32> {
    // SAFETY: the caller has checked for null; the field is readable.
    let is_v6 = unsafe { (*sk).family } == u32::from(AF_INET6);
    // What it was bound to without a port stays.
    let before = source(sk, own.is_v4() || !is_v6);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let port = local_port(sk);
        if port != 0 {
            return Some(port);
        }
        let address = match (before, attempt < ATTEMPTS / 2) {
            (Some(before), _) => before,
            (None, true) => *own,
            (None, false) => Address::NONE,
        };
        // SAFETY: no arguments.
        let port = FIRST_PORT + unsafe { bpf_get_prandom_u32() } % PORTS;
        if is_v6 {
            name6(ctx, &address, port);
        } else {
            name4(ctx, &address, port);
        }
        attempt += 1;
    }
    let port = local_port(sk);
    (port != 0).then_some(port)
}

#[inline(always)]
fn name4(ctx: &SockAddrContext, own: &Address, port: u32) {
    let mut name = SockaddrIn {
        family: AF_INET,
        port: network_port(port) as u16,
        address: own.words[3],
        zero: [0; 2],
    };
    // SAFETY: the address and its size belong together.
    let _ = unsafe {
        bpf_bind(
            ctx.sock_addr,
            core::ptr::from_mut(&mut name).cast::<sockaddr>(),
            size_of::<SockaddrIn>() as i32,
        )
    };
}

#[inline(always)]
fn name6(ctx: &SockAddrContext, own: &Address, port: u32) {
    let mut name = SockaddrIn6 {
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
            core::ptr::from_mut(&mut name).cast::<sockaddr>(),
            size_of::<SockaddrIn6>() as i32,
        )
    };
}
