//! Outbound capture: a connection of an enrolled pod goes to the proxy's listener on the pod's
//! loopback, and the socket remembers where it was meant to go.

use aya_ebpf::bindings::{SO_BINDTOIFINDEX, SO_MARK, SOL_SOCKET, bpf_sock};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use ztunnel_ebpf_types::{
    Address, Backend, Config, DIRECT_MARK, MARK_MASK, POD_ENROLLED, POD_HANDSHAKE, Pod,
    SAVED_DESTINATION, SAVED_DIRECT, SAVED_ELSEWHERE, SAVED_HANDSHAKE, SAVED_NOTHING, Saved,
};

use crate::bind::{bind4, bind6};
use crate::direct::{Choice, choose};
use crate::judge::{is_exempt, is_here, is_proxy, process};
use crate::maps::{CONFIG, DNS_PORT, KNOWS_PROCESS, PODS, SOCKETS, config, logs, netns, saved};
use crate::resolver::{self, Question};

/// The hook lets the call go on, with the address as it now is.
const PROCEED: i32 = 1;
/// `connect()` fails with EPERM.
const REFUSE: i32 = 0;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// The loopback device is the first of every namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// `connect()` of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
fn capture4(ctx: SockAddrContext) -> i32 {
    let Some(pod) = pod(&ctx) else { return PROCEED };
    // SAFETY: the context is valid and these fields are readable in connect4.
    let wanted = unsafe { (*ctx.sock_addr).user_ip4 };
    match judge(&ctx, pod, Address::v4(wanted)) {
        Judgement::Capture(port) => {
            bind4(&ctx, &pod.v4);
            // SAFETY: writable fields of connect4.
            unsafe {
                (*ctx.sock_addr).user_ip4 = Address::LOOPBACK4.words[3];
                (*ctx.sock_addr).user_port = network_port(port);
            }
            PROCEED
        }
        Judgement::Direct(backend) => {
            // SAFETY: as above.
            unsafe {
                (*ctx.sock_addr).user_ip4 = backend.address.words[3];
                (*ctx.sock_addr).user_port = network_port(u32::from(backend.port));
            }
            PROCEED
        }
        Judgement::Proceed => PROCEED,
        Judgement::Refuse => REFUSE,
    }
}

/// `connect()` of an AF_INET6 socket, which may well go to an IPv4 address in mapped form.
#[cgroup_sock_addr(connect6)]
fn capture6(ctx: SockAddrContext) -> i32 {
    let Some(pod) = pod(&ctx) else { return PROCEED };
    let wanted = destination6(&ctx);
    match judge(&ctx, pod, wanted) {
        Judgement::Capture(port) => {
            // A native IPv6 socket is not bound to the pod's address: the kernel would send a reset
            // for it to ::1 out of the pod, and the proxy would never learn that its client is
            // gone. The name hooks hide ::1 from the application all the same.
            if wanted.is_v4() {
                bind6(&ctx, &pod.v4);
                write6(&ctx, &Address::LOOPBACK4);
            } else {
                write6(&ctx, &Address::LOOPBACK6);
            }
            // SAFETY: a writable field of connect6.
            unsafe { (*ctx.sock_addr).user_port = network_port(port) };
            PROCEED
        }
        Judgement::Direct(backend) => {
            write6(&ctx, &backend.address);
            // SAFETY: as above.
            unsafe { (*ctx.sock_addr).user_port = network_port(u32::from(backend.port)) };
            PROCEED
        }
        Judgement::Proceed => PROCEED,
        Judgement::Refuse => REFUSE,
    }
}

enum Judgement {
    /// The socket remembers its destination: send it to this port of the proxy.
    Capture(u32),
    /// The socket remembers its destination: send it to this backend.
    Direct(Backend),
    Proceed,
    Refuse,
}

/// The entry of the socket's namespace; most connections of a machine end here.
#[inline(always)]
pub fn pod(ctx: &SockAddrContext) -> Option<&'static Pod> {
    // SAFETY: entries are replaced whole and freed after a grace period; a torn read is possible
    // only for the addresses, while a pod's addresses are being changed.
    unsafe { PODS.get(&netns(ctx)) }
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, pod: &Pod, address: Address) -> Judgement {
    let Some(config) = config() else {
        return Judgement::Refuse;
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
        return Judgement::Refuse;
    }
    if pod.flags & POD_HANDSHAKE != 0 && handshake(sk) {
        return Judgement::Refuse;
    }
    if pod.flags & POD_ENROLLED == 0 {
        return Judgement::Proceed;
    }
    if protocol == IPPROTO_UDP {
        return match resolver::connect(ctx, config, pod, sk, &address, port) {
            Question::Capture => Judgement::Capture(DNS_PORT.load()),
            Question::Proceed => Judgement::Proceed,
            Question::Refuse => Judgement::Refuse,
        };
    }
    if protocol != IPPROTO_TCP {
        return Judgement::Proceed;
    }
    let cookie = netns(ctx);
    if is_proxy(config, sk) {
        forget(sk, SAVED_DIRECT);
        return Judgement::Proceed;
    }
    if is_exempt(config, cookie, &address, port) {
        forget(sk, SAVED_NOTHING);
        if !is_here(cookie, &address) {
            mark(ctx, config, sk);
        }
        return Judgement::Proceed;
    }
    let mut value = Saved {
        address,
        port,
        kind: SAVED_DESTINATION,
        ..Saved::default()
    };
    // SAFETY: checked for null. A socket that is bound to a device could not be stopped later.
    let bound = unsafe { (*sk).bound_dev_if } > LOOPBACK_DEVICE;
    let is_question = resolver::is_question(pod, &address, port);
    let choice = if bound || is_question {
        Choice::Unknown
    } else {
        choose(config, cookie, &address, port)
    };
    let choice = match choice {
        Choice::Direct(_) if !mark(ctx, config, sk) => Choice::Unknown,
        choice => choice,
    };
    match choice {
        Choice::Direct(backend) => {
            value.kind = SAVED_DIRECT;
            value.peer = backend.address;
            value.peer_port = u32::from(backend.port);
            value.flags = u32::from(backend.flags);
            value.server = backend.server;
            if save(ctx, value).is_none() {
                return Judgement::Refuse;
            }
            return Judgement::Direct(backend);
        }
        Choice::Elsewhere => value.flags = SAVED_ELSEWHERE,
        Choice::Unknown => {}
    }
    let verdict = capture(ctx, sk, value);
    if logs(config) {
        match verdict {
            Some(()) => debug!(
                ctx,
                "connect to {:i} port {} captured",
                shown(&address),
                port
            ),
            None => debug!(
                ctx,
                "connect to {:i} port {} refused",
                shown(&address),
                port
            ),
        }
    }
    match verdict {
        Some(()) if is_question => Judgement::Capture(DNS_PORT.load()),
        Some(()) => Judgement::Capture(config.outbound),
        None => Judgement::Refuse,
    }
}

/// The address as the log takes it.
#[inline(always)]
pub fn shown(address: &Address) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut index = 0;
    while index < 4 {
        let [a, b, c, d] = address.words[index].to_ne_bytes();
        octets[index * 4] = a;
        octets[index * 4 + 1] = b;
        octets[index * 4 + 2] = c;
        octets[index * 4 + 3] = d;
        index += 1;
    }
    octets
}

/// Makes the socket able to reach the proxy and remembers where it was to go. None: it cannot be
/// captured and must not pass.
#[inline(always)]
fn capture(ctx: &SockAddrContext, sk: *mut bpf_sock, value: Saved) -> Option<()> {
    // SAFETY: checked for null by the caller.
    let device = unsafe { (*sk).bound_dev_if };
    if device != 0 && device != LOOPBACK_DEVICE {
        if !unbind_device(ctx) {
            return None;
        }
    }
    save(ctx, value)
}

/// Has the socket remember something. None: there is no memory for it.
#[inline(always)]
fn save(ctx: &SockAddrContext, mut value: Saved) -> Option<()> {
    // SAFETY: the socket is valid; the storage is the socket's own and the call holds its lock.
    unsafe {
        let place = SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut value));
        if place.is_null() {
            return None;
        }
        *place = value;
    }
    Some(())
}

/// Gives a socket that goes by itself the mark that Istio's rules inside the pod let out; without
/// it they would send the connection to the proxy's port, where nobody knows it. The bit that is
/// added keeps it from being taken for the proxy's own. False: the application has marked the
/// socket for a purpose of its own, or the mark cannot be set.
#[inline(always)]
fn mark(ctx: &SockAddrContext, config: &Config, sk: *mut bpf_sock) -> bool {
    // SAFETY: checked for null by the caller.
    let now = unsafe { (*sk).mark };
    if now != 0 {
        return (now ^ config.mark) & MARK_MASK == 0;
    }
    set_option(ctx, SO_MARK, config.mark ^ DIRECT_MARK)
}

/// A socket bound to another device than loopback would never reach the proxy.
#[inline(always)]
pub fn unbind_device(ctx: &SockAddrContext) -> bool {
    set_option(ctx, SO_BINDTOIFINDEX, 0)
}

/// Sets an option of the socket itself. False: it cannot be set.
#[inline(always)]
fn set_option(ctx: &SockAddrContext, option: u32, mut value: u32) -> bool {
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

/// A socket that was captured before and now goes somewhere by itself has no other destination.
/// What it remembers of the kind `except` stays.
#[inline(always)]
pub fn forget(sk: *mut bpf_sock, except: u32) {
    let place = saved(sk);
    // SAFETY: not null where it is read; the socket's lock is held.
    unsafe {
        if !place.is_null() && (*place).kind != except {
            (*place).kind = SAVED_NOTHING;
        }
    }
}

/// The proxy makes itself known: it connects a socket whose storage only user space with access
/// to the maps can have written. Says whether this was it.
#[inline(always)]
fn handshake(sk: *mut bpf_sock) -> bool {
    if KNOWS_PROCESS.load() == 0 {
        return false;
    }
    let place = saved(sk);
    // SAFETY: not null where it is read.
    if place.is_null() || unsafe { (*place).kind } != SAVED_HANDSHAKE {
        return false;
    }
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        // SAFETY: an aligned word of the map's value.
        unsafe { (*config).process = process() };
    }
    true
}

/// The address of the hooks of IPv6, read word by word as the verifier wants it.
#[inline(always)]
pub fn destination6(ctx: &SockAddrContext) -> Address {
    let mut words = [0; 4];
    // SAFETY: the context is valid and the field readable in connect6.
    unsafe {
        words[0] = (*ctx.sock_addr).user_ip6[0];
        words[1] = (*ctx.sock_addr).user_ip6[1];
        words[2] = (*ctx.sock_addr).user_ip6[2];
        words[3] = (*ctx.sock_addr).user_ip6[3];
    }
    Address { words }
}

#[inline(always)]
pub fn write6(ctx: &SockAddrContext, address: &Address) {
    // SAFETY: writable fields of the address hooks of IPv6.
    unsafe {
        (*ctx.sock_addr).user_ip6[0] = address.words[0];
        (*ctx.sock_addr).user_ip6[1] = address.words[1];
        (*ctx.sock_addr).user_ip6[2] = address.words[2];
        (*ctx.sock_addr).user_ip6[3] = address.words[3];
    }
}

/// The context's form of a port: 16 bits in network byte order in the lower half of a word.
#[inline(always)]
pub fn network_port(port: u32) -> u32 {
    u32::from((port as u16).to_be())
}
