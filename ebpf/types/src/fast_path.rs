//! Types of the fast path: the entries that let the kernel carry connections without the proxy,
//! the connections that it carries, and the events that it reports about them.

use crate::{Address, ConnectionEnd, Cookie};

/// How many backends an entry holds. For a service with more backends on this node, the proxy
/// chooses among the rest.
pub const MAX_BACKENDS: usize = 8;

/// A pod and the destination that it connects to; key of `FAST_PATH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FastPathKey {
    /// The network namespace of the pod that connects.
    pub pod: Cookie,
    /// The address that the application passes to `connect()`: of a pod, of a service, or outside
    /// the mesh.
    pub address: Address,
    /// The port that the application passes to `connect()`, in host byte order.
    pub port: u32,
    /// Always zero.
    pub zero: u32,
}

/// One destination that the kernel may choose for a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend {
    /// The address to connect to.
    pub address: Address,
    /// The network namespace of the pod that has this address, or 0 outside the mesh. If another
    /// pod has the address by now, the entry is not used.
    pub server_pod: Cookie,
    /// The port to connect to, in host byte order.
    pub port: u16,
    /// A set of the `CONNECTION_` bits.
    pub flags: u16,
    /// The backend's share of [`FastPathEntry::total_weight`].
    pub weight: u32,
}

/// What the proxy has authorized for a [`FastPathKey`]; value of `FAST_PATH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FastPathEntry {
    /// [`crate::Config::epoch`] when the entry was written.
    pub epoch: u32,
    /// The weights of all backends of the destination, including those that are not listed here:
    /// the proxy carries the share of the unlisted ones.
    pub total_weight: u32,
    /// How many backends are listed.
    pub backend_count: u32,
    /// A set of the `ENTRY_` bits.
    pub flags: u32,
    /// The listed backends; the places behind them are zero.
    pub backends: [Backend; MAX_BACKENDS],
}

/// No new connection uses the entry. One that has been routed by it and has not sent its SYN may go on.
pub const ENTRY_RETIRED: u32 = 1;

/// A source of plaintext and the pod address that it connects to; key of `INBOUND_ENTRIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct InboundKey {
    /// The pod's address.
    pub destination: Address,
    /// The client's address.
    pub source: Address,
    /// The destination's port, in host byte order.
    pub port: u32,
}

/// What the proxy has authorized for an [`InboundKey`]; value of `INBOUND_ENTRIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InboundEntry {
    /// The network namespace of the destination's pod.
    pub pod: Cookie,
    /// [`crate::Config::epoch`] when the entry was written.
    pub epoch: u32,
    /// Always zero.
    pub zero: u32,
}

/// The two ends of a fast-path connection; key of `CONNECTIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ConnectionKey {
    /// The client's address.
    pub client: Address,
    /// The server's address; if the application dialled a service, the chosen backend's.
    pub server: Address,
    /// The client's port, in host byte order.
    pub client_port: u32,
    /// The server's port, in host byte order.
    pub server_port: u32,
}

impl ConnectionKey {
    /// The same connection with client and server exchanged.
    #[inline(always)]
    #[must_use]
    pub const fn swapped(&self) -> Self {
        Self {
            client: self.server,
            server: self.client,
            client_port: self.server_port,
            server_port: self.client_port,
        }
    }

    /// The client's end, between two pods.
    #[inline(always)]
    #[must_use]
    pub const fn client_end(&self) -> ConnectionEnd {
        ConnectionEnd {
            local: self.client,
            remote: self.server,
            local_port: self.client_port,
            remote_port: self.server_port,
            cookie: 0,
        }
    }
}

/// A fast-path connection; value of `CONNECTIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConnectionState {
    /// The network namespace of the watched socket: the client's pod, or the server's pod if
    /// [`CONNECTION_INBOUND`] is set.
    pub pod: Cookie,
    /// The network namespace of the server's pod; 0 outside the mesh.
    pub server_pod: Cookie,
    /// The watched socket's cookie.
    pub socket_cookie: u64,
    /// When the SYN was sent or the connection accepted: nanoseconds of CLOCK_MONOTONIC.
    pub opened_at: u64,
    /// Bytes from the client that the join of the two sockets carried instead of TCP.
    pub joined_request_bytes: u64,
    /// Bytes from the server that the join carried instead of TCP.
    pub joined_response_bytes: u64,
    /// The address that the application passed to `connect()`.
    pub dialled_address: Address,
    /// The port that the application passed to `connect()`, in host byte order.
    pub dialled_port: u32,
    /// A set of the `CONNECTION_` bits.
    pub flags: u32,
}

/// The watched socket is the server's: the client is on another node or outside the mesh.
pub const CONNECTION_INBOUND: u32 = 1;
/// The proxy opened the connection on behalf of an application and reports it itself.
pub const CONNECTION_BY_PROXY: u32 = 2;
/// The two ends are on this node and are to be joined.
pub const CONNECTION_JOIN: u32 = 4;
/// The SYN has arrived in the server's pod.
pub const CONNECTION_SYN_ARRIVED: u32 = 8;

/// A change of a fast-path connection; record of `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// The connection.
    pub connection: ConnectionKey,
    /// Its state at the time of the event.
    pub state: ConnectionState,
    /// The time of the event: nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Bytes from the client to the server so far.
    pub request_bytes: u64,
    /// Bytes from the server to the client so far.
    pub response_bytes: u64,
    /// One of the `EVENT_` values.
    pub kind: u32,
    /// Always zero.
    pub zero: u32,
}

/// The connection was established.
pub const EVENT_OPENED: u32 = 1;
/// The connection ended in an orderly way.
pub const EVENT_CLOSED: u32 = 2;
/// The connection was reset, by one of its ends or on the path between them.
pub const EVENT_RESET: u32 = 3;
/// The connection was never established.
pub const EVENT_FAILED: u32 = 4;

/// Index in `COUNTERS`: open fast-path connections.
pub const COUNTER_OPEN_CONNECTIONS: u32 = 0;
/// Index in `COUNTERS`: events that were lost because the ring buffer was full.
pub const COUNTER_LOST_EVENTS: u32 = 1;
/// The number of entries of `COUNTERS`.
pub const COUNTER_COUNT: u32 = 2;

/// How many connections the fast path carries at once; the proxy carries the rest.
pub const MAX_CONNECTIONS: u32 = 262_144;

const _: () = assert!(size_of::<FastPathKey>() == 32);
const _: () = assert!(size_of::<Backend>() == 32);
const _: () = assert!(size_of::<FastPathEntry>() == 16 + 32 * MAX_BACKENDS);
const _: () = assert!(size_of::<InboundKey>() == 36);
const _: () = assert!(size_of::<InboundEntry>() == 16);
const _: () = assert!(size_of::<ConnectionKey>() == 40);
const _: () = assert!(size_of::<ConnectionState>() == 72);
const _: () = assert!(size_of::<Event>() == 144);
