//! Outbound capture: a connection of an enrolled pod goes to the proxy's listener on the pod's
//! loopback device, and the socket's storage keeps the original destination. If a fast-path entry
//! allows it, the connection goes to a backend instead.

use aya_ebpf::bindings::{SO_MARK, bpf_sock};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    Address, Backend, CAPTURED_UNLISTED, Config, ISTIO_MARK_MASK, PASS_THROUGH_MARK, POD_ENROLLED,
    POD_HANDSHAKE, Pod, SOCKET_CAPTURED, SOCKET_FAST_PATH, SOCKET_HANDSHAKE, SOCKET_UNUSED,
    SocketState,
};

use crate::bind::{bind4, bind6};
use crate::context::{address_bytes, destination6, network_port, set_destination6};
use crate::dns;
use crate::exempt::{is_exempt, is_local, is_proxy, process_id};
use crate::fast_path::{self, Route};
use crate::maps::{CONFIG, HAS_PROCESS_ID, PROXY_DNS_PORT, config, is_logging, netns};
use crate::socket::{
    LOOPBACK_DEVICE, clear_state, pod, set_option, set_state, state, unbind_device,
};

/// `connect()` continues with the address in the context.
const PROCEED: i32 = 1;
/// `connect()` fails with EPERM.
const REFUSE: i32 = 0;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// `connect()` of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
fn capture4(ctx: SockAddrContext) -> i32 {
    let Some(pod) = pod(&ctx) else { return PROCEED };
    // SAFETY: the context is valid and these fields are readable in connect4.
    let dialled = unsafe { (*ctx.sock_addr).user_ip4 };
    match decide(&ctx, pod, Address::v4(dialled)) {
        Decision::Capture { port } => {
            bind4(&ctx, &pod.v4);
            // SAFETY: writable fields of connect4.
            unsafe {
                (*ctx.sock_addr).user_ip4 = Address::LOOPBACK4.words[3];
                (*ctx.sock_addr).user_port = network_port(port);
            }
            PROCEED
        }
        Decision::FastPath(backend) => {
            // SAFETY: as above.
            unsafe {
                (*ctx.sock_addr).user_ip4 = backend.address.words[3];
                (*ctx.sock_addr).user_port = network_port(u32::from(backend.port));
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
    let Some(pod) = pod(&ctx) else { return PROCEED };
    let dialled = destination6(&ctx);
    match decide(&ctx, pod, dialled) {
        Decision::Capture { port } => {
            // A native IPv6 socket is not bound to the pod's address: the kernel would send its
            // reset for ::1 out of the pod, and the proxy would not learn that its client has
            // gone. The getsockname hooks hide ::1 from the application.
            if dialled.is_v4() {
                bind6(&ctx, &pod.v4);
                set_destination6(&ctx, &Address::LOOPBACK4);
            } else {
                set_destination6(&ctx, &Address::LOOPBACK6);
            }
            // SAFETY: a writable field of connect6.
            unsafe { (*ctx.sock_addr).user_port = network_port(port) };
            PROCEED
        }
        Decision::FastPath(backend) => {
            set_destination6(&ctx, &backend.address);
            // SAFETY: as above.
            unsafe { (*ctx.sock_addr).user_port = network_port(u32::from(backend.port)) };
            PROCEED
        }
        Decision::Proceed => PROCEED,
        Decision::Refuse => REFUSE,
    }
}

enum Decision {
    /// The socket's storage has the destination: connect to this port of the proxy instead.
    Capture {
        port: u32,
    },
    /// The socket's storage has the destination: connect to this backend instead.
    FastPath(Backend),
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
            dns::Decision::Capture => Decision::Capture {
                port: PROXY_DNS_PORT.load(),
            },
            dns::Decision::Proceed => Decision::Proceed,
            dns::Decision::Refuse => Decision::Refuse,
        };
    }
    if protocol != IPPROTO_TCP {
        return Decision::Proceed;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) {
        clear_state(sk, SOCKET_FAST_PATH);
        return Decision::Proceed;
    }
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
        ..SocketState::default()
    };
    // SAFETY: checked for null. `tcp_events` could not stop a socket that is bound to a device.
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
            return Decision::FastPath(backend);
        }
        Route::Unlisted => value.flags = CAPTURED_UNLISTED,
        Route::NoEntry => {}
    }
    let captured = capture(ctx, sk, value);
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
        Some(()) if is_dns => Decision::Capture {
            port: PROXY_DNS_PORT.load(),
        },
        Some(()) => Decision::Capture {
            port: config.outbound_port,
        },
        None => Decision::Refuse,
    }
}

/// Makes the socket able to reach the proxy and stores its original destination. None: it cannot
/// be captured, and its connection must be refused.
#[inline(always)]
fn capture(ctx: &SockAddrContext, sk: *mut bpf_sock, value: SocketState) -> Option<()> {
    // SAFETY: checked for null by the caller.
    let device = unsafe { (*sk).bound_dev_if };
    if device != 0 && device != LOOPBACK_DEVICE {
        if !unbind_device(ctx) {
            return None;
        }
    }
    set_state(ctx, value)
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
