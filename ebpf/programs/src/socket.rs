//! A socket's own storage and options, shared by the programs that run in its context.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, SO_BINDTOIFINDEX, SOL_SOCKET, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_setsockopt, bpf_sk_storage_get};
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{
    Address, Config, Cookie, JoinState, PASS_THROUGH_MARK, Pod, SOCKET_CAPTURED, SOCKET_UNUSED,
    SocketState, is_capture_mark,
};

use crate::maps::{JOIN_STATES, PODS, SOCKET_STATES, netns, pod_of};

/// The loopback device is the first of every namespace.
pub const LOOPBACK_DEVICE: u32 = 1;

/// The enrolled pod of the socket's namespace. For most sockets of a machine there is none.
#[inline(always)]
pub fn pod(ctx: &SockAddrContext) -> Option<&'static Pod> {
    // SAFETY: entries are replaced as a whole and freed after a grace period; a torn read is
    // possible only for the addresses, while a pod's addresses are being changed.
    unsafe { PODS.get(&netns(ctx)) }
}

/// How the bytes of a socket reach the peer, or null if it is not joined.
#[inline(always)]
pub fn join_state(sk: *mut bpf_sock) -> *mut JoinState {
    let map = core::ptr::from_ref(&JOIN_STATES).cast_mut().cast();
    // SAFETY: the verifier checks that `sk` is a socket and not null.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// The socket's state, or null if it has none.
#[inline(always)]
pub fn state(sk: *mut bpf_sock) -> *mut SocketState {
    let map = core::ptr::from_ref(&SOCKET_STATES).cast_mut().cast();
    // SAFETY: the verifier checks that `sk` is a socket and not null.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// The socket's state; a new one is all zero. Null if there is no memory for it.
#[inline(always)]
pub fn state_or_new(sk: *mut bpf_sock) -> *mut SocketState {
    let map = core::ptr::from_ref(&SOCKET_STATES).cast_mut().cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as in `state`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags).cast() }
}

/// Stores a state with the socket. None: there is no memory for it.
#[inline(always)]
pub fn set_state(ctx: &SockAddrContext, mut value: SocketState) -> Option<()> {
    // SAFETY: the socket is valid; the storage is the socket's own and the call holds its lock.
    unsafe {
        let stored = SOCKET_STATES.get_or_insert_ptr_mut(ctx, Some(&mut value));
        if stored.is_null() {
            return None;
        }
        *stored = value;
    }
    Some(())
}

/// Marks the state of a socket that is used again as unused, unless it has the kind `except`.
#[inline(always)]
pub fn clear_state(sk: *mut bpf_sock, except: u32) {
    let stored = state(sk);
    // SAFETY: not null when it is read; the socket's lock is held.
    unsafe {
        if !stored.is_null() && (*stored).kind != except {
            (*stored).kind = SOCKET_UNUSED;
        }
    }
}

/// The mark that the application has set on a socket whose mark is `mark`. The marks of captured
/// sockets, and of those that are let through, are the programs'.
#[inline(always)]
pub fn application_mark(config: &Config, sk: *mut bpf_sock, mark: u32) -> u32 {
    if mark == config.mark ^ PASS_THROUGH_MARK {
        return 0;
    }
    if !is_capture_mark(mark) {
        return mark;
    }
    let stored = state(sk);
    // SAFETY: not null when it is read.
    unsafe {
        if !stored.is_null() && (*stored).kind == SOCKET_CAPTURED {
            (*stored).application_mark
        } else {
            0
        }
    }
}

/// Whether a socket that is bound to this address can be captured: `inbound` recognises what comes from
/// the pod by its source.
#[inline(always)]
pub fn is_known_source(cookie: Cookie, source: &Address) -> bool {
    source.is_loopback() || is_link_local6(source) || pod_of(source) == cookie
}

/// Whether an address is one of fe80::/10 (RFC 4291, 2.5.6).
#[inline(always)]
pub fn is_link_local6(address: &Address) -> bool {
    u32::from_be(address.words[0]) & 0xffc0_0000 == 0xfe80_0000
}

/// Removes the socket's device: bound to another device than loopback it would never reach the
/// proxy. False: the kernel refuses.
#[inline(always)]
pub fn unbind_device(ctx: &SockAddrContext) -> bool {
    set_option(ctx, SO_BINDTOIFINDEX, 0)
}

/// Sets an option of level SOL_SOCKET. False: the kernel refuses.
#[inline(always)]
pub fn set_option(ctx: &SockAddrContext, option: u32, mut value: u32) -> bool {
    // SAFETY: the option is an int, and its size is given.
    let result = unsafe {
        bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET as i32,
            option as i32,
            core::ptr::from_mut(&mut value).cast(),
            4,
        )
    };
    result == 0
}
