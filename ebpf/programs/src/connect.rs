//! Outbound capture: a socket of an enrolled pod is marked, and keeps its destination. A routing rule in
//! the pod brings what it sends back to the pod, where `inbound` gives the connection to the proxy. If a
//! fast-path entry allows it, the connection goes to a backend instead.

use aya_ebpf::bindings::{SO_MARK, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_set_retval, bpf_sk_release};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    Address, CAPTURED_BOUND, CAPTURED_OPTIONS, CAPTURED_UNLISTED, CONNECTION_BY_PROXY, Config,
    Cookie, ISTIO_MARK_MASK, LISTENER_DNS, LISTENER_OUTBOUND, ListenerKey, PASS_THROUGH_MARK,
    POD_ENROLLED, POD_HANDSHAKE, Pod, SOCKET_CAPTURED, SOCKET_FAST_PATH, SOCKET_HANDSHAKE,
    SOCKET_UNUSED, SocketState, capture_mark, is_capture_mark,
};

use crate::context::{address_bytes, destination6, network_port, set_destination6, source};
use crate::dns;
use crate::exempt::{is_exempt, is_local, is_proxy, process_id};
use crate::fast_path::{self, Route};
use crate::maps::{
    CONFIG, HAS_PROCESS_ID, HAS_SET_RETVAL, POD_LISTENERS, PROXY_DNS_PORT, config, is_logging,
    netns,
};
use crate::socket::{
    LOOPBACK_DEVICE, application_mark, clear_state, is_known_source, is_link_local6, pod,
    set_option, set_state, state,
};

/// `connect()` continues with the address in the context.
const PROCEED: i32 = 1;
/// `connect()` fails with EPERM.
const REFUSE: i32 = 0;
/// Errors of `connect()`.
const EADDRNOTAVAIL: i32 = 99;
const ECONNREFUSED: i32 = 111;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// `connect()` of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
fn capture4(ctx: SockAddrContext) -> i32 {
    let Some(pod) = pod(&ctx) else {
        return outside(&ctx);
    };
    // SAFETY: the context is valid and these fields are readable in connect4.
    let dialled = unsafe { (*ctx.sock_addr).user_ip4 };
    match decide(&ctx, pod, Address::v4(dialled)) {
        Decision::Redirect { address, port } => {
            // SAFETY: writable fields of connect4.
            unsafe {
                (*ctx.sock_addr).user_ip4 = address.words[3];
                (*ctx.sock_addr).user_port = port;
            }
            PROCEED
        }
        Decision::Proceed => PROCEED,
        Decision::Refuse => REFUSE,
    }
}

/// `connect()` of an AF_INET6 socket, possibly to an IPv4 address in mapped form.
#[cgroup_sock_addr(connect6)]
fn capture6(ctx: SockAddrContext) -> i32 {
    let Some(pod) = pod(&ctx) else {
        return outside(&ctx);
    };
    match decide(&ctx, pod, destination6(&ctx)) {
        Decision::Redirect { address, port } => {
            set_destination6(&ctx, &address);
            // SAFETY: a writable field of connect6.
            unsafe { (*ctx.sock_addr).user_port = port };
            PROCEED
        }
        Decision::Proceed => PROCEED,
        Decision::Refuse => REFUSE,
    }
}

/// A socket of a namespace that is not captured. One of a pod that has left may have been captured before;
/// the mark alone may be that of another proxy's programs, which run for the same socket.
#[inline(always)]
fn outside(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid; the fields are checked for null before they are read.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() || !is_capture_mark(unsafe { (*sk).mark }) {
        return PROCEED;
    }
    let stored = state(sk);
    // SAFETY: not null when it is read.
    if stored.is_null() || unsafe { (*stored).kind } != SOCKET_CAPTURED {
        return PROCEED;
    }
    if let Some(config) = config() {
        release(ctx, config, sk);
        clear_state(sk, SOCKET_UNUSED);
    }
    PROCEED
}

enum Decision {
    /// The socket's storage has the destination: connect to this address instead. The port has the form
    /// of the context: converted later, on all paths, the verifier would miss its value on the others.
    Redirect {
        address: Address,
        port: u32,
    },
    /// Connect to the destination: outside of capture, or marked for it.
    Proceed,
    Refuse,
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, pod: &Pod, address: Address) -> Decision {
    let Some(config) = config() else {
        return Decision::Refuse;
    };
    // SAFETY: the context is valid; the fields are readable in connect4 and connect6.
    let (protocol, port, sk) = unsafe {
        let addr = ctx.sock_addr;
        (
            (*addr).protocol,
            u32::from(u16::from_be((*addr).user_port as u16)),
            (*addr).__bindgen_anon_1.sk,
        )
    };
    if sk.is_null() {
        return Decision::Refuse;
    }
    if pod.flags & POD_HANDSHAKE != 0 && is_handshake(sk) {
        return Decision::Refuse;
    }
    if pod.flags & POD_ENROLLED == 0 {
        return Decision::Proceed;
    }
    if protocol == IPPROTO_UDP {
        return match dns::connect(ctx, config, pod, sk, &address, port) {
            dns::Decision::Capture => Decision::Redirect {
                address: if address.is_v4() {
                    Address::LOOPBACK4
                } else {
                    Address::LOOPBACK6
                },
                port: network_port(PROXY_DNS_PORT.load()),
            },
            dns::Decision::Proceed => Decision::Proceed,
            dns::Decision::Refuse => Decision::Refuse,
        };
    }
    if protocol != IPPROTO_TCP {
        return Decision::Proceed;
    }
    let cookie = netns(ctx);
    if is_by_proxy(sk) {
        return Decision::Proceed;
    }
    if is_proxy(config, sk) {
        clear_state(sk, SOCKET_FAST_PATH);
        return Decision::Proceed;
    }
    let Some(application_mark) = release(ctx, config, sk) else {
        return Decision::Refuse;
    };
    if is_exempt(config, cookie, &address, port) {
        clear_state(sk, SOCKET_UNUSED);
        if !is_local(cookie, &address) {
            set_pass_through_mark(ctx, config, sk);
        }
        return Decision::Proceed;
    }
    let mut value = SocketState {
        dialled_address: address,
        dialled_port: port,
        kind: SOCKET_CAPTURED,
        application_mark,
        ..SocketState::default()
    };
    // SAFETY: checked for null.
    let has_device = unsafe { (*sk).bound_dev_if } > LOOPBACK_DEVICE;
    let is_dns = dns::is_to_resolver(pod, &address, port);
    let route = if has_device || is_dns {
        Route::NoEntry
    } else {
        fast_path::route(config, cookie, &address, port)
    };
    let route = match route {
        Route::Backend(_) if !set_pass_through_mark(ctx, config, sk) => Route::NoEntry,
        route => route,
    };
    match route {
        Route::Backend(backend) => {
            value.kind = SOCKET_FAST_PATH;
            value.peer_address = backend.address;
            value.peer_port = u32::from(backend.port);
            value.flags = u32::from(backend.flags);
            value.server_pod = backend.server_pod;
            if set_state(ctx, value).is_none() {
                return Decision::Refuse;
            }
            return Decision::Redirect {
                address: backend.address,
                port: network_port(u32::from(backend.port)),
            };
        }
        Route::Unlisted => value.flags = CAPTURED_UNLISTED,
        Route::NoEntry => {}
    }
    if let Some(source) = source(sk, address.is_v4()) {
        if !is_known_source(cookie, &source) {
            return refuse(EADDRNOTAVAIL);
        }
        value.flags |= CAPTURED_BOUND;
    }
    if application_mark != 0 || has_device {
        value.flags |= CAPTURED_OPTIONS;
    }
    let kind = if is_dns {
        LISTENER_DNS
    } else {
        LISTENER_OUTBOUND
    };
    let captured = if has_listener(cookie, kind) {
        capture(ctx, value)
    } else {
        None
    };
    if is_logging(config) {
        match captured {
            Some(()) => debug!(
                ctx,
                "connect to {:i} port {} captured",
                address_bytes(&address),
                port
            ),
            None => debug!(
                ctx,
                "connect to {:i} port {} refused: the socket cannot be captured",
                address_bytes(&address),
                port
            ),
        }
    }
    match captured {
        Some(()) => Decision::Proceed,
        None => refuse(ECONNREFUSED),
    }
}

/// Whether the proxy has marked the socket as its own, in its storage. Such a socket may have the mark of
/// the application that it stands for.
#[inline(always)]
fn is_by_proxy(sk: *mut bpf_sock) -> bool {
    let stored = state(sk);
    // SAFETY: not null when it is read.
    !stored.is_null()
        && unsafe {
            (*stored).kind == SOCKET_FAST_PATH && (*stored).flags & CONNECTION_BY_PROXY != 0
        }
}

/// Whether the proxy has a listener in the pod. Without the check, `connect()` would wait for an answer:
/// `inbound` drops what nothing listens for.
#[inline(always)]
fn has_listener(pod: Cookie, kind: u32) -> bool {
    let key = ListenerKey { pod, kind, zero: 0 };
    let map = core::ptr::from_ref(&POD_LISTENERS).cast_mut().cast();
    // SAFETY: a lookup in a map of sockets returns a socket with a reference, or null.
    unsafe {
        let listener = bpf_map_lookup_elem(map, core::ptr::from_ref(&key).cast());
        if listener.is_null() {
            return false;
        }
        bpf_sk_release(listener);
    }
    true
}

/// Makes `connect()` fail with this error; with EPERM where programs cannot choose the error.
#[inline(always)]
fn refuse(error: i32) -> Decision {
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: no pointers. The error is one of the system call's own.
        let _ = unsafe { bpf_set_retval(-error) };
    }
    Decision::Refuse
}

/// Marks the socket for the proxy and stores its original destination. None: it cannot be captured, and
/// its connection must be refused.
#[inline(always)]
fn capture(ctx: &SockAddrContext, value: SocketState) -> Option<()> {
    // An address of one link is valid with a device only, and the proxy cannot dial it.
    if is_link_local6(&value.dialled_address) {
        return None;
    }
    set_state(ctx, value)?;
    set_option(ctx, SO_MARK, capture_mark(value.flags)).then_some(())
}

/// Gives a socket that was captured before its own mark again. Returns the mark that the application
/// has set; None: the kernel refuses.
#[inline(always)]
fn release(ctx: &SockAddrContext, config: &Config, sk: *mut bpf_sock) -> Option<u32> {
    // SAFETY: checked for null by the caller.
    let mark = unsafe { (*sk).mark };
    let own = application_mark(config, sk, mark);
    (own == mark || set_option(ctx, SO_MARK, own)).then_some(own)
}

/// Sets the mark that Istio's rules inside the pod let out; without it they would redirect the
/// connection to the proxy's port, where its original destination is unknown. The additional bit
/// distinguishes the socket from the proxy's own. False: the application has set another mark, or
/// the kernel refuses.
#[inline(always)]
fn set_pass_through_mark(ctx: &SockAddrContext, config: &Config, sk: *mut bpf_sock) -> bool {
    // SAFETY: checked for null by the caller.
    let current = unsafe { (*sk).mark };
    if current != 0 {
        return (current ^ config.mark) & ISTIO_MARK_MASK == 0;
    }
    set_option(ctx, SO_MARK, config.mark ^ PASS_THROUGH_MARK)
}

/// Whether this is the handshake, by which the proxy identifies itself; if so, its process id is
/// recorded. The proxy connects a socket with a storage that only a process with access to the
/// maps can have written.
#[inline(always)]
fn is_handshake(sk: *mut bpf_sock) -> bool {
    if HAS_PROCESS_ID.load() == 0 {
        return false;
    }
    let stored = state(sk);
    // SAFETY: not null when it is read.
    if stored.is_null() || unsafe { (*stored).kind } != SOCKET_HANDSHAKE {
        return false;
    }
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        // SAFETY: an aligned word of the map's value.
        unsafe { (*config).process = process_id() };
    }
    true
}
