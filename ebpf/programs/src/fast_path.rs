//! Lookup of the entries that the proxy has authorized: which connections the kernel carries
//! without the proxy, and where they go.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use ztunnel_ebpf_types::{
    Address, Backend, Config, ConnectionKey, Cookie, ENTRY_RETIRED, FastPathEntry, FastPathKey,
    InboundKey, MAX_BACKENDS, SocketState,
};

use crate::maps::{FAST_PATH, INBOUND_ENTRIES, is_nearly_full, pod_of};

/// Where a new connection goes.
pub enum Route {
    /// To the proxy: there is no valid entry.
    NoEntry,
    /// To the proxy, which chooses among the backends that the entry does not list.
    Unlisted,
    /// To this backend.
    Backend(Backend),
}

/// Looks up the entry of a pod and destination. If it lists several backends, one is chosen at
/// random by weight.
#[inline(always)]
pub fn route(config: &Config, cookie: Cookie, address: &Address, port: u32) -> Route {
    let key = FastPathKey {
        pod: cookie,
        address: *address,
        port,
        zero: 0,
    };
    // SAFETY: the kernel may reuse the element for another key while it is read here: the backend
    // is copied once, and `is_still_authorized` looks the entry up again before the SYN leaves.
    let Some(entry) = (unsafe { FAST_PATH.get(&key) }) else {
        return Route::NoEntry;
    };
    if entry.epoch != config.epoch || entry.flags & ENTRY_RETIRED != 0 || is_nearly_full() {
        return Route::NoEntry;
    }
    let Some(backend) = choose_backend(entry) else {
        return Route::Unlisted;
    };
    let backend = *backend;
    // The address must still belong to the pod that was authorized, or still to no pod.
    if pod_of(&backend.address) != backend.server_pod || backend.address.is_v4() != address.is_v4()
    {
        return Route::NoEntry;
    }
    Route::Backend(backend)
}

/// Whether the entry that a socket was routed by is still valid. The caller has recorded the
/// connection and not sent its SYN: a change of policy either finds the recorded connection, or
/// this lookup finds the entry removed. If such connections may go on, the entry is only retired for
/// that time. An application can delay the SYN for any time after its
/// `connect()` (Fast Open).
#[inline(always)]
pub fn is_still_authorized(config: &Config, cookie: Cookie, socket: &SocketState) -> bool {
    let key = FastPathKey {
        pod: cookie,
        address: socket.dialled_address,
        port: socket.dialled_port,
        zero: 0,
    };
    // SAFETY: as in `route`; an element that is reused for another key now was removed before.
    let Some(entry) = (unsafe { FAST_PATH.get(&key) }) else {
        return false;
    };
    if entry.epoch != config.epoch {
        return false;
    }
    let mut index = 0;
    while index < MAX_BACKENDS {
        let backend = &entry.backends[index];
        if backend.weight != 0
            && backend.address.is(&socket.peer_address)
            && u32::from(backend.port) == socket.peer_port
            && backend.server_pod == socket.server_pod
        {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether an inbound entry allows plaintext from this client into this pod.
#[inline(always)]
pub fn is_inbound_authorized(config: &Config, connection: &ConnectionKey, pod: Cookie) -> bool {
    let key = InboundKey {
        destination: connection.server,
        source: connection.client,
        port: connection.server_port,
    };
    // SAFETY: the value is copied at once.
    match unsafe { INBOUND_ENTRIES.get(&key) } {
        Some(entry) => {
            pod != 0 && entry.pod == pod && entry.epoch == config.epoch && !is_nearly_full()
        }
        None => false,
    }
}

#[inline(always)]
fn choose_backend(entry: &'static FastPathEntry) -> Option<&'static Backend> {
    let first = &entry.backends[0];
    if entry.backend_count == 1 && first.weight == entry.total_weight {
        return Some(first);
    }
    // SAFETY: no arguments.
    let mut random = (unsafe { bpf_get_prandom_u32() })
        .checked_rem(entry.total_weight)
        .unwrap_or(0);
    let mut index = 0;
    while index < MAX_BACKENDS {
        let backend = &entry.backends[index];
        // Places behind the last backend have the weight 0.
        if random < backend.weight {
            return Some(backend);
        }
        random -= backend.weight;
        index += 1;
    }
    None
}
