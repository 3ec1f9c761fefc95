//! Capture of DNS over UDP: what a pod asks of its resolvers goes to the proxy's DNS listener on
//! the pod's loopback, and the application sees the answer come from the resolver that it asked.
//!
//! The proxy must know which resolver that was. A datagram carries no more than its two ends, so
//! RESOLVERS says it by the client's end. A connected socket has one resolver. One that is not
//! connected may ask several at once: over IPv4, where all of 127.0.0.0/8 is the machine itself,
//! its question gets a source address there for each of them, and the answer, sent from that same
//! address, names the resolver again. Over IPv6, and from a socket that is bound to an address, it
//! is the resolver that was asked last.
//!
//! Questions over TCP are captured as any connection, only to another port (`connect`).

use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::{
    Address, Client, Config, Cookie, DNS, Destination, POD_DNS, POD_ENROLLED, Pod, SAVED_NOTHING,
    SAVED_RESOLVER,
};

use crate::bind;
use crate::connect::{destination6, forget, network_port, pod, unbind_device, write6};
use crate::context::{local_port, message_source6, source};
use crate::judge::{is_exempt, is_proxy};
use crate::maps::{DNS_PORT, RESOLVERS, config, netns, saved, saved_or_new};

/// `sendto()` goes on, with the address as it now is; the only value of the recvmsg hooks.
const PROCEED: i32 = 1;
/// `sendto()` fails with EPERM.
const REFUSE: i32 = 0;
const IPPROTO_UDP: u32 = 17;
/// The loopback device is the first of every namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// What becomes of a question.
pub enum Question {
    /// RESOLVERS knows it by its source: send it to the proxy.
    Capture,
    Proceed,
    Refuse,
}

/// Whether somebody of this pod who calls there asks a resolver that capture concerns. A
/// link-local one is the node itself or the next router, known only together with a device; what
/// is meant for many hosts has no resolver.
#[inline(always)]
pub fn is_question(pod: &Pod, address: &Address, port: u32) -> bool {
    if port != DNS || pod.flags & POD_DNS == 0 {
        return false;
    }
    if address.is_v4() {
        return u32::from_be(address.words[3]) < 0xe000_0000;
    }
    let first = u32::from_be(address.words[0]);
    first & 0xffc0_0000 != 0xfe80_0000 && first & 0xff00_0000 != 0xff00_0000
}

/// `connect()` of a UDP socket: what it sends later passes no hook.
#[inline(always)]
pub fn connect(
    ctx: &SockAddrContext,
    config: &Config,
    pod: &Pod,
    sk: *mut bpf_sock,
    wanted: &Address,
    port: u32,
) -> Question {
    if !is_question(pod, wanted, port) {
        return Question::Proceed;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) || is_exempt(config, cookie, wanted, port) {
        forget(sk, SAVED_NOTHING);
        return Question::Proceed;
    }
    if !has_no_device(sk) && !unbind_device(ctx) {
        return Question::Refuse;
    }
    let own = if wanted.is_v4() { pod.v4 } else { pod.v6 };
    let Some(local_port) = bind::port(ctx, sk, &own) else {
        return Question::Refuse;
    };
    let from = source(sk, wanted.is_v4()).unwrap_or(if wanted.is_v4() {
        Address::LOOPBACK4
    } else {
        Address::LOOPBACK6
    });
    remember(sk, cookie, from, local_port, wanted, true)
}

/// `sendto()` with an IPv4 address, of a socket of either family.
#[cgroup_sock_addr(sendmsg4)]
fn ask4(ctx: SockAddrContext) -> i32 {
    // Every datagram of the machine that bears an address comes by.
    // SAFETY: the context is valid and the field readable in sendmsg4.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(DNS) {
        return PROCEED;
    }
    let Some(pod) = pod(&ctx) else { return PROCEED };
    // SAFETY: as above.
    let wanted = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    // SAFETY: as above.
    let bound = unsafe { (*ctx.sock_addr).msg_src_ip4 };
    let from = if bound == 0 {
        stand_in(&wanted)
    } else {
        Address::v4(bound)
    };
    match ask(&ctx, pod, &wanted, from) {
        Question::Capture => {
            // SAFETY: writable fields of sendmsg4.
            unsafe {
                (*ctx.sock_addr).msg_src_ip4 = from.words[3];
                (*ctx.sock_addr).user_ip4 = Address::LOOPBACK4.words[3];
                (*ctx.sock_addr).user_port = network_port(DNS_PORT.load());
            }
            PROCEED
        }
        Question::Proceed => PROCEED,
        Question::Refuse => REFUSE,
    }
}

/// `sendto()` with an IPv6 address that is not a mapped one.
#[cgroup_sock_addr(sendmsg6)]
fn ask6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the field readable in sendmsg6.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(DNS) {
        return PROCEED;
    }
    let Some(pod) = pod(&ctx) else { return PROCEED };
    let wanted = destination6(&ctx);
    let bound = message_source6(ctx.sock_addr);
    let from = if bound.is(&Address::NONE) {
        Address::LOOPBACK6
    } else {
        bound
    };
    match ask(&ctx, pod, &wanted, from) {
        Question::Capture => {
            write6(&ctx, &Address::LOOPBACK6);
            // SAFETY: a writable field of sendmsg6.
            unsafe { (*ctx.sock_addr).user_port = network_port(DNS_PORT.load()) };
            PROCEED
        }
        Question::Proceed => PROCEED,
        Question::Refuse => REFUSE,
    }
}

/// `recvfrom()` of an AF_INET socket tells where the datagram came from.
#[cgroup_sock_addr(recvmsg4)]
fn answer4(ctx: SockAddrContext) -> i32 {
    // Every datagram of the machine whose receiver asks for its source comes by.
    // SAFETY: the context is valid and the field readable in recvmsg4.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(DNS_PORT.load()) {
        return PROCEED;
    }
    // SAFETY: as above.
    let told = Address::v4(unsafe { (*ctx.sock_addr).user_ip4 });
    if let Some(asked) = asked(&ctx, &told) {
        // SAFETY: writable fields of recvmsg4.
        unsafe {
            (*ctx.sock_addr).user_ip4 = asked.words[3];
            (*ctx.sock_addr).user_port = network_port(DNS);
        }
    }
    PROCEED
}

/// `recvfrom()` of an AF_INET6 socket, whose datagram may have come by IPv4.
#[cgroup_sock_addr(recvmsg6)]
fn answer6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the field readable in recvmsg6.
    if unsafe { (*ctx.sock_addr).user_port } != network_port(DNS_PORT.load()) {
        return PROCEED;
    }
    let told = destination6(&ctx);
    if let Some(asked) = asked(&ctx, &told) {
        write6(&ctx, &asked);
        // SAFETY: a writable field of recvmsg6.
        unsafe { (*ctx.sock_addr).user_port = network_port(DNS) };
    }
    PROCEED
}

/// The source of a question over IPv4 whose socket has none of its own: one in 127.64.0.0/10 for
/// each resolver. Should two of a socket's resolvers share one, it stands for the later.
#[inline(always)]
fn stand_in(resolver: &Address) -> Address {
    let mixed = u32::from_be(resolver.words[3]).wrapping_mul(0x9e37_79b1) >> 10;
    Address::v4((0x7f40_0000 | mixed).to_be())
}

/// Judges one datagram.
#[inline(always)]
fn ask(ctx: &SockAddrContext, pod: &Pod, wanted: &Address, from: Address) -> Question {
    let Some(config) = config() else {
        return Question::Refuse;
    };
    // SAFETY: the context is valid; the fields are readable in sendmsg4 and sendmsg6.
    let (protocol, sk) = unsafe {
        (
            (*ctx.sock_addr).protocol,
            (*ctx.sock_addr).__bindgen_anon_1.sk,
        )
    };
    if protocol != IPPROTO_UDP || pod.flags & POD_ENROLLED == 0 || !is_question(pod, wanted, DNS) {
        return Question::Proceed;
    }
    if sk.is_null() {
        return Question::Refuse;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) || is_exempt(config, cookie, wanted, DNS) {
        return Question::Proceed;
    }
    if !has_no_device(sk) {
        // This datagram's device is settled already. The socket is free of it for the next one.
        unbind_device(ctx);
        return Question::Refuse;
    }
    // The kernel has given it one before this hook.
    let port = local_port(sk);
    remember(sk, cookie, from, port, wanted, false)
}

/// Writes down whom the socket asks, for the proxy and for the answer.
#[inline(always)]
fn remember(
    sk: *mut bpf_sock,
    cookie: Cookie,
    from: Address,
    port: u32,
    wanted: &Address,
    connected: bool,
) -> Question {
    let place = saved_or_new(sk);
    // SAFETY: the storage lives as long as the socket, whose lock this call holds.
    let Some(saved) = (unsafe { place.as_mut() }) else {
        return Question::Refuse;
    };
    if saved.kind != SAVED_RESOLVER || connected {
        saved.address = *wanted;
        saved.port = if connected { DNS } else { 0 };
        saved.kind = SAVED_RESOLVER;
    }
    saved.peer = *wanted;
    saved.peer_port = DNS;
    let client = Client {
        cookie,
        address: from,
        port,
        zero: 0,
    };
    let resolver = Destination {
        address: *wanted,
        port: DNS,
        elsewhere: 0,
    };
    match RESOLVERS.insert(&client, &resolver, u64::from(BPF_ANY)) {
        Ok(()) => Question::Capture,
        Err(_) => Question::Refuse,
    }
}

/// The resolver that an answer of the proxy stands for. None: the datagram is none of ours.
#[inline(always)]
fn asked(ctx: &SockAddrContext, told: &Address) -> Option<Address> {
    if !told.is_loopback() {
        return None;
    }
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the storage lives as long as the socket, which this call holds.
    let saved = unsafe { saved(sk).as_ref() }?;
    if saved.kind != SAVED_RESOLVER {
        return None;
    }
    if told.is_v4() && !told.is(&Address::LOOPBACK4) {
        let client = Client {
            cookie: netns(ctx),
            address: *told,
            port: local_port(sk),
            zero: 0,
        };
        // SAFETY: copied at once.
        if let Some(resolver) = unsafe { RESOLVERS.get(&client) } {
            return Some(resolver.address);
        }
    }
    Some(saved.peer)
}

#[inline(always)]
fn has_no_device(sk: *mut bpf_sock) -> bool {
    // SAFETY: the callers have checked for null; the field is readable.
    let device = unsafe { (*sk).bound_dev_if };
    device == 0 || device == LOOPBACK_DEVICE
}
