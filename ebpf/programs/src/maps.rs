//! Every map, once. Their keys and values are defined in `ztunnel-ebpf-types`.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, RingBuf, SockHash};
use aya_ebpf::{EbpfContext, Global};
use ztunnel_ebpf_types::{
    Address, Admission, Arrival, CONFIG_LOG, COUNT_OPEN, COUNTS as COUNTERS, Call, Client, Config,
    Cookie, Destination, End, FLOW_LIMIT, Flow, FlowState, Join, Pod, Saved, Verdict,
};

/// The proxy's settings; index 0 is the only one.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Process ids of proxies that were in charge before and have connections yet; they count as the
/// one in CONFIG does. The value, whose turn was after whose, is for the proxy alone.
#[map]
pub static FORMERS: HashMap<u32, u32> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);

/// The enrolled pods by namespace.
#[map]
pub static PODS: HashMap<Cookie, Pod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Every address of every enrolled pod, and whose it is.
#[map]
pub static ADDRESSES: HashMap<Address, Cookie> =
    HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// The proxy's inbound listener in each pod, by the pod's addresses. The kernel takes a listener
/// out when it is closed, so a dead proxy leaves nothing here and connections are dropped.
#[map]
pub static LISTENERS: SockHash<Address> = SockHash::with_max_entries(16384, 0);

/// Original destinations by the client's end of the connection; the proxy takes them out at
/// accept. A connection that is never accepted ages out.
#[map]
pub static ORIGINS: LruHashMap<Client, Destination> = LruHashMap::with_max_entries(65536, 0);

/// The resolvers that were asked, by the client's end of the question. Sockets do not say when
/// they are closed: the entries that were not used for the longest time make room.
#[map]
pub static RESOLVERS: LruHashMap<Client, Destination> = LruHashMap::with_max_entries(32768, 0);

/// What the proxy has judged about the calls of the pods. The settings say how many it holds; the
/// ones that were not used for the longest time make room.
#[map]
pub static VERDICTS: LruHashMap<Call, Verdict> = LruHashMap::with_max_entries(16384, 0);

/// What the proxy has judged about plaintext from outside; as large as VERDICTS.
#[map]
pub static ARRIVALS: LruHashMap<Arrival, Admission> = LruHashMap::with_max_entries(16384, 0);

/// Every open connection of the direct lane.
#[map]
pub static FLOWS: HashMap<Flow, FlowState> =
    HashMap::with_max_entries(FLOW_LIMIT, BPF_F_NO_PREALLOC);

/// What happened to connections of the direct lane, for metrics and the access log.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Counters, by the `COUNT_` indexes.
#[map]
pub static COUNTS: Array<u64> = Array::with_max_entries(COUNTERS, 0);

/// Ports, in host byte order, that are not captured in the directions that the value says.
#[map]
pub static EXEMPT_PORTS: HashMap<u32, u32> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Networks that are not captured in the directions that the value says, IPv4 in mapped form. Only
/// the longest prefix is found: its value includes those of the prefixes that contain it.
#[map]
pub static EXEMPT_NETS: LpmTrie<Address, u32> = LpmTrie::with_max_entries(4096, 0);

/// What a captured socket remembers. It is freed with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<Saved> = SkStorage::new();

/// The ends of joined connections. The kernel takes a socket out when it is closed. `past` hangs
/// on this map and is called for whatever a socket in it sends.
#[map]
pub static JOINED: SockHash<End> = SockHash::with_max_entries(65536, 0);

/// The way that the bytes of a socket in JOINED take. It is freed with the socket.
#[btf_map]
pub static JOINS: SkStorage<Join> = SkStorage::new();

/// Whether this kernel lets every program ask for the process id (Linux 6.10). Set before
/// loading; the verifier drops the branch that is not taken.
#[unsafe(no_mangle)]
pub static KNOWS_PROCESS: Global<u8> = Global::new(1);

/// The port of the proxy's DNS listener on the pods' loopback. Set before loading; a constant,
/// because datagrams that are nobody's business here compare it and nothing else.
#[unsafe(no_mangle)]
pub static DNS_PORT: Global<u32> = Global::new(15053);

/// The settings. A map lookup that cannot fail at run time, but the verifier does not know.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether decisions are logged: off, this is one flag test on the enrolled pods' path only.
#[inline(always)]
pub fn logs(config: &Config) -> bool {
    config.flags & CONFIG_LOG != 0
}

/// Whether the port is exempt in a direction, one of the `EXEMPT_` bits.
#[inline(always)]
pub fn is_exempt_port(port: u32, direction: u32) -> bool {
    // SAFETY: the value is copied at once.
    match unsafe { EXEMPT_PORTS.get(&port) } {
        Some(directions) => *directions & direction != 0,
        None => false,
    }
}

/// Whether the address is in a network that is exempt in a direction.
#[inline(always)]
pub fn is_exempt_net(address: &Address, direction: u32) -> bool {
    match EXEMPT_NETS.get(Key::new(128, *address)) {
        Some(directions) => *directions & direction != 0,
        None => false,
    }
}

/// The cookie of the socket's network namespace.
#[inline(always)]
pub fn netns<C: EbpfContext>(ctx: &C) -> Cookie {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Adds in one step. The compiler has no atomic addition for this target.
///
/// # Safety
/// `place` is an aligned value of a map.
#[inline(always)]
pub unsafe fn add(place: *mut u64, by: i64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "lock *(u64 *)({place} + 0) += {by}",
            place = in(reg) place,
            by = in(reg) by,
            options(nostack),
        );
    }
}

/// Adds to a counter.
#[inline(always)]
pub fn count(index: u32, by: i64) {
    let Some(place) = COUNTS.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: an aligned value of the map.
    unsafe { add(place, by) };
}

/// Whether the direct lane is as good as full: then the proxy takes new connections.
#[inline(always)]
pub fn is_crowded() -> bool {
    match COUNTS.get(COUNT_OPEN) {
        Some(open) => *open as i64 > i64::from(FLOW_LIMIT - FLOW_LIMIT / 16),
        None => true,
    }
}

/// The pod that has this address, or 0.
#[inline(always)]
pub fn owner(address: &Address) -> Cookie {
    // SAFETY: the value is copied at once.
    match unsafe { ADDRESSES.get(address) } {
        Some(cookie) => *cookie,
        None => 0,
    }
}

/// The way that the bytes of a socket take, or null if it is not joined.
#[inline(always)]
pub fn join(sk: *mut bpf_sock) -> *mut Join {
    let map = core::ptr::from_ref(&JOINS).cast_mut().cast();
    // SAFETY: the verifier checks that `sk` is a socket and not null.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// What the socket remembers, or null.
#[inline(always)]
pub fn saved(sk: *mut bpf_sock) -> *mut Saved {
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    // SAFETY: the verifier checks that `sk` is a socket and not null.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// What the socket remembers from now on, all zero where it remembered nothing; or null.
#[inline(always)]
pub fn saved_or_new(sk: *mut bpf_sock) -> *mut Saved {
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as in `saved`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags).cast() }
}
