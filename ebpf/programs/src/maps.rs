//! Every map of the programs. Keys and values are defined in `ztunnel-ebpf-types`.

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, RingBuf, SockHash};
use aya_ebpf::{EbpfContext, Global};
use ztunnel_ebpf_types::{
    Address, CONFIG_LOG, COUNTER_COUNT, COUNTER_OPEN_CONNECTIONS, CapturedKey, CapturedSocket,
    ClientKey, Config, ConnectionEnd, ConnectionKey, ConnectionState, Cookie, FastPathEntry,
    FastPathKey, InboundEntry, InboundKey, JoinState, ListenerKey, MAX_CONNECTIONS,
    OriginalDestination, Pod, SocketState,
};

/// The proxy's settings, at index 0.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Process ids of proxies that were active before and still have connections. The programs treat
/// their sockets like those of the process in CONFIG. The value, the order in which the processes
/// were active, is used by user space only.
#[map]
pub static PREVIOUS_PROXIES: HashMap<u32, u32> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);

/// The enrolled pods by network namespace.
#[map]
pub static PODS: HashMap<Cookie, Pod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Every address of every enrolled pod, with the pod's network namespace.
#[map]
pub static ADDRESSES: HashMap<Address, Cookie> =
    HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// The proxy's listeners in each pod. The kernel removes a listener when it is closed: after the
/// proxy's death the map is empty, and connections are dropped.
#[map]
pub static POD_LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16384, 0);

/// What applications have set on captured sockets, if they have set something. The proxy removes an entry
/// at accept. Entries of connections that are never accepted are evicted.
#[map]
pub static CAPTURED_SOCKETS: LruHashMap<CapturedKey, CapturedSocket> =
    LruHashMap::with_max_entries(16384, 0);

/// Original destinations by the client's end of the connection, of connections that an earlier version
/// has captured (`rewritten`).
#[map]
pub static ORIGINAL_DESTINATIONS: LruHashMap<ClientKey, OriginalDestination> =
    LruHashMap::with_max_entries(65536, 0);

/// The resolvers that pods have queried, by the source of the query. No hook reports the end of a
/// UDP socket, so the least recently used entries are evicted.
#[map]
pub static RESOLVERS: LruHashMap<ClientKey, OriginalDestination> =
    LruHashMap::with_max_entries(32768, 0);

/// The fast-path entries. A setting gives the size; the least recently used entries are evicted.
#[map]
pub static FAST_PATH: LruHashMap<FastPathKey, FastPathEntry> =
    LruHashMap::with_max_entries(16384, 0);

/// The sources whose plaintext policy allows into a pod; as large as FAST_PATH.
#[map]
pub static INBOUND_ENTRIES: LruHashMap<InboundKey, InboundEntry> =
    LruHashMap::with_max_entries(16384, 0);

/// Every open connection of the fast path.
#[map]
pub static CONNECTIONS: HashMap<ConnectionKey, ConnectionState> =
    HashMap::with_max_entries(MAX_CONNECTIONS, BPF_F_NO_PREALLOC);

/// Events of fast-path connections, for metrics and the access log.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Counters, by the `COUNTER_` indexes.
#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(COUNTER_COUNT, 0);

/// Ports, in host byte order, that are not captured in the directions given by the value.
#[map]
pub static EXEMPT_PORTS: HashMap<u32, u32> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Networks that are not captured in the directions given by the value, IPv4 in mapped form. A
/// lookup finds the longest prefix only: its value includes the directions of all prefixes that
/// contain it.
#[map]
pub static EXEMPT_NETWORKS: LpmTrie<Address, u32> = LpmTrie::with_max_entries(4096, 0);

/// What the programs store with a socket. The kernel frees it with the socket.
#[btf_map]
pub static SOCKET_STATES: SkStorage<SocketState> = SkStorage::new();

/// The ends of joined connections. The kernel removes a socket when it is closed. The program
/// `redirect` is attached to this map and runs for all bytes that its sockets send.
#[map]
pub static JOINED_SOCKETS: SockHash<ConnectionEnd> = SockHash::with_max_entries(65536, 0);

/// How the bytes of a socket in JOINED_SOCKETS reach the peer. The kernel frees it with the socket.
#[btf_map]
pub static JOIN_STATES: SkStorage<JoinState> = SkStorage::new();

/// Whether programs of every type can read the process id (Linux 6.10). Set before loading; the
/// verifier removes the branch that is not taken.
#[unsafe(no_mangle)]
pub static HAS_PROCESS_ID: Global<u8> = Global::new(1);

/// Whether programs can choose the error of a refused system call (Linux 5.18).
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(1);

/// The port of the proxy's DNS listener on the pods' loopback device. Set before loading: a
/// constant keeps the check of unrelated datagrams to one comparison.
#[unsafe(no_mangle)]
pub static PROXY_DNS_PORT: Global<u32> = Global::new(15053);

/// The proxy's settings. The lookup cannot fail at run time, but the verifier wants the check.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether decisions are logged.
#[inline(always)]
pub fn is_logging(config: &Config) -> bool {
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
pub fn is_exempt_network(address: &Address, direction: u32) -> bool {
    match EXEMPT_NETWORKS.get(Key::new(128, *address)) {
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

/// Adds atomically. The compiler has no atomic addition for this target.
///
/// # Safety
/// `value` is an aligned value of a map.
#[inline(always)]
pub unsafe fn add(value: *mut u64, by: i64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "lock *(u64 *)({value} + 0) += {by}",
            value = in(reg) value,
            by = in(reg) by,
            options(nostack),
        );
    }
}

/// Adds to a counter.
#[inline(always)]
pub fn count(index: u32, by: i64) {
    let Some(counter) = COUNTERS.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: an aligned value of the map.
    unsafe { add(counter, by) };
}

/// Whether CONNECTIONS is nearly full: then the proxy carries new connections.
#[inline(always)]
pub fn is_nearly_full() -> bool {
    match COUNTERS.get(COUNTER_OPEN_CONNECTIONS) {
        Some(open) => *open as i64 > i64::from(MAX_CONNECTIONS - MAX_CONNECTIONS / 16),
        None => true,
    }
}

/// The network namespace of the pod that has this address, or 0.
#[inline(always)]
pub fn pod_of(address: &Address) -> Cookie {
    // SAFETY: the value is copied at once.
    match unsafe { ADDRESSES.get(address) } {
        Some(cookie) => *cookie,
        None => 0,
    }
}
