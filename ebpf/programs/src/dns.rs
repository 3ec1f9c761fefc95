//! Capture of DNS over UDP: a pod's queries to its resolvers go to the proxy's DNS listener on the
//! pod's loopback device, and the application sees the reply come from the resolver that it
//! queried.
//!
//! The proxy must know which resolver that is. A datagram carries only its two ends, so RESOLVERS
//! has the resolver by the client's end. A connected socket has one resolver. An unconnected socket
//! may query several at once. Over IPv4, where all of 127.0.0.0/8 is the machine itself, its
//! queries get a source address there for each resolver, and the reply, sent to that address,
//! identifies the resolver again. Over IPv6, and from a socket that is bound to an address, the
//! resolver of the last query is used.
//!
//! Queries over TCP are captured like any connection, but go to another port (`connect`).

use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{
    Address, ClientKey, Config, OriginalDestination, POD_DNS, POD_ENROLLED, Pod, RESOLVER_PORT,
    SOCKET_DNS, SOCKET_UNUSED,
};

use crate::bind;
use crate::context::{
    destination6, local_port, message_source6, network_port, set_destination6, source,
};
use crate::exempt::{is_exempt, is_proxy};
use crate::maps::{PROXY_DNS_PORT, RESOLVERS, config, netns};
use crate::socket::{
    LOOPBACK_DEVICE, clear_state, is_link_local6, pod, state, state_or_new, unbind_device,
};

/// `sendto()` continues with the address in the context; the only value of the recvmsg hooks.
const PROCEED: i32 = 1;
/// `sendto()` fails with EPERM.
const REFUSE: i32 = 0;
const IPPROTO_UDP: u32 = 17;

/// What to do with a query.
pub enum Decision {
    /// RESOLVERS has the resolver: send the query to the proxy.
    Capture,
    Proceed,
    Refuse,
}

/// Whether the destination is a resolver whose queries are captured in this pod. A link-local
/// resolver is the node itself or the next router and is valid only with a device: it is not
/// captured, and multicast and broadcast are not either.
#[inline(always)]
pub fn is_to_resolver(pod: &Pod, address: &Address, port: u32) -> bool {
    if port != RESOLVER_PORT || pod.flags & POD_DNS == 0 {
        return false;
    }
    if address.is_v4() {
        return u32::from_be(address.words[3]) < 0xe000_0000;
    }
    !is_link_local6(address) && u32::from_be(address.words[0]) & 0xff00_0000 != 0xff00_0000
}

/// `connect()` of a UDP socket: datagrams that it sends later run no hook.
#[inline(always)]
pub fn connect(
    ctx: &SockAddrContext,
    config: &Config,
    pod: &Pod,
    sk: *mut bpf_sock,
    resolver: &Address,
    port: u32,
) -> Decision {
    if !is_to_resolver(pod, resolver, port) {
        return Decision::Proceed;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) || is_exempt(config, cookie, resolver, port) {
        clear_state(sk, SOCKET_UNUSED);
        return Decision::Proceed;
    }
    if !has_no_device(sk) && !unbind_device(ctx) {
        return Decision::Refuse;
    }
    let own = if resolver.is_v4() { pod.v4 } else { pod.v6 };
    let Some(port) = bind::ensure_port(ctx, sk, &own) else {
        return Decision::Refuse;
    };
    let from = source(sk, resolver.is_v4()).unwrap_or(if resolver.is_v4() {
        Address::LOOPBACK4
    } else {
        Address::LOOPBACK6
    });
    let client = ClientKey {
        cookie,
        address: from,
        port,
        zero: 0,
    };
    record(sk, client, resolver, true)
}

/// `sendto()` with an IPv4 address, of a socket of either family.
#[cgroup_sock_addr(sendmsg4)]
fn query4(ctx: SockAddrContext) -> i32 {
    // This runs for every datagram of the machine that is sent with an address.
    // SAFETY: the context is valid and the field readable in sendmsg4.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(RESOLVER_PORT) {
        return PROCEED;
    }
    let Some(pod) = pod(&ctx) else { return PROCEED };
    // SAFETY: as above.
    let resolver = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    // SAFETY: as above.
    let bound = unsafe { (*ctx.sock_addr).msg_src_ip4 };
    let from = if bound == 0 {
        source_for(&resolver)
    } else {
        Address::v4(bound)
    };
    match query(&ctx, pod, &resolver, from) {
        Decision::Capture => {
            // SAFETY: writable fields of sendmsg4.
            unsafe {
                (*ctx.sock_addr).msg_src_ip4 = from.words[3];
                (*ctx.sock_addr).user_ip4 = Address::LOOPBACK4.words[3];
                (*ctx.sock_addr).user_port = network_port(PROXY_DNS_PORT.load());
            }
            PROCEED
        }
        Decision::Proceed => PROCEED,
        Decision::Refuse => REFUSE,
    }
}

/// `sendto()` with a native IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
fn query6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the field readable in sendmsg6.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(RESOLVER_PORT) {
        return PROCEED;
    }
    let Some(pod) = pod(&ctx) else { return PROCEED };
    let resolver = destination6(&ctx);
    let bound = message_source6(ctx.sock_addr);
    let from = if bound.is(&Address::NONE) {
        Address::LOOPBACK6
    } else {
        bound
    };
    match query(&ctx, pod, &resolver, from) {
        Decision::Capture => {
            set_destination6(&ctx, &Address::LOOPBACK6);
            // SAFETY: a writable field of sendmsg6.
            unsafe { (*ctx.sock_addr).user_port = network_port(PROXY_DNS_PORT.load()) };
            PROCEED
        }
        Decision::Proceed => PROCEED,
        Decision::Refuse => REFUSE,
    }
}

/// `recvfrom()` of an AF_INET socket returns the source of a datagram.
#[cgroup_sock_addr(recvmsg4)]
fn reply4(ctx: SockAddrContext) -> i32 {
    // This runs for every datagram of the machine whose receiver wants its source.
    // SAFETY: the context is valid and the field readable in recvmsg4.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(PROXY_DNS_PORT.load()) {
        return PROCEED;
    }
    // SAFETY: as above.
    let real = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(resolver) = resolver_of(&ctx, &real) {
        // SAFETY: writable fields of recvmsg4.
        unsafe {
            (*ctx.sock_addr).user_ip4 = resolver.words[3];
            (*ctx.sock_addr).user_port = network_port(RESOLVER_PORT);
        }
    }
    PROCEED
}

/// `recvfrom()` of an AF_INET6 socket, possibly of a datagram over IPv4.
#[cgroup_sock_addr(recvmsg6)]
fn reply6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the field readable in recvmsg6.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(PROXY_DNS_PORT.load()) {
        return PROCEED;
    }
    let real = destination6(&ctx);
    if let Some(resolver) = resolver_of(&ctx, &real) {
        set_destination6(&ctx, &resolver);
        // SAFETY: a writable field of recvmsg6.
        unsafe { (*ctx.sock_addr).user_port = network_port(RESOLVER_PORT) };
    }
    PROCEED
}

/// The source address of a query over IPv4 whose socket is not bound to one: an address in
/// 127.64.0.0/10 for each resolver. If two resolvers of a socket get the same address, it stands
/// for the one that was queried last.
#[inline(always)]
fn source_for(resolver: &Address) -> Address {
    let hash = u32::from_be(resolver.words[3]).wrapping_mul(0x9e37_79b1) >> 10;
    Address::v4((0x7f40_0000 | hash).to_be())
}

/// Decides about one datagram to a resolver.
#[inline(always)]
fn query(ctx: &SockAddrContext, pod: &Pod, resolver: &Address, from: Address) -> Decision {
    let Some(config) = config() else {
        return Decision::Refuse;
    };
    // SAFETY: the context is valid; the fields are readable in sendmsg4 and sendmsg6.
    let (protocol, sk) = unsafe {
        (
            (*ctx.sock_addr).protocol,
            (*ctx.sock_addr).__bindgen_anon_1.sk,
        )
    };
    if protocol != IPPROTO_UDP
        || pod.flags & POD_ENROLLED == 0
        || !is_to_resolver(pod, resolver, RESOLVER_PORT)
    {
        return Decision::Proceed;
    }
    if sk.is_null() {
        return Decision::Refuse;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) || is_exempt(config, cookie, resolver, RESOLVER_PORT) {
        return Decision::Proceed;
    }
    if !has_no_device(sk) {
        // The kernel has chosen this datagram's device already: refuse it, and unbind the socket for
        // the next one.
        unbind_device(ctx);
        return Decision::Refuse;
    }
    let client = ClientKey {
        cookie,
        address: from,
        // The kernel has bound the socket to a port before this hook.
        port: local_port(sk),
        zero: 0,
    };
    record(sk, client, resolver, false)
}

/// Records the resolver of a socket's query: in RESOLVERS for the proxy, in the socket's storage for
/// the reply.
#[inline(always)]
fn record(
    sk: *mut bpf_sock,
    client: ClientKey,
    resolver: &Address,
    is_connected: bool,
) -> Decision {
    let stored = state_or_new(sk);
    // SAFETY: the storage lives as long as the socket, whose lock this call holds.
    let Some(socket) = (unsafe { stored.as_mut() }) else {
        return Decision::Refuse;
    };
    if socket.kind != SOCKET_DNS || is_connected {
        socket.dialled_address = *resolver;
        socket.dialled_port = if is_connected { RESOLVER_PORT } else { 0 };
        socket.kind = SOCKET_DNS;
    }
    socket.peer_address = *resolver;
    socket.peer_port = RESOLVER_PORT;
    let destination = OriginalDestination {
        address: *resolver,
        port: RESOLVER_PORT,
        flags: 0,
    };
    match RESOLVERS.insert(&client, &destination, u64::from(BPF_ANY)) {
        Ok(()) => Decision::Capture,
        Err(_) => Decision::Refuse,
    }
}

/// The resolver that a reply of the proxy stands for. None: the datagram is not from the proxy.
#[inline(always)]
fn resolver_of(ctx: &SockAddrContext, real: &Address) -> Option<Address> {
    if !real.is_loopback() {
        return None;
    }
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket, which this call holds.
    let socket = unsafe { state(sk).as_ref() }?;
    if socket.kind != SOCKET_DNS {
        return None;
    }
    if real.is_v4() && !real.is(&Address::LOOPBACK4) {
        let client = ClientKey {
            cookie: netns(ctx),
            address: *real,
            port: local_port(sk),
            zero: 0,
        };
        // SAFETY: copied at once.
        if let Some(resolver) = unsafe { RESOLVERS.get(&client) } {
            return Some(resolver.address);
        }
    }
    Some(socket.peer_address)
}

#[inline(always)]
fn has_no_device(sk: *mut bpf_sock) -> bool {
    // SAFETY: the callers have checked for null; the field is readable.
    let device = unsafe { (*sk).bound_dev_if };
    device == 0 || device == LOOPBACK_DEVICE
}
