//! The direct lane: verdicts that let connections past the proxy, the connections that took it,
//! and what is told about them.

use crate::{Address, Cookie, End};

/// How many backends a verdict holds. A service with more of them on this node has the rest
/// chosen by the proxy.
pub const BACKENDS: usize = 8;

/// Whom a pod calls; key of VERDICTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Call {
    /// The pod's namespace.
    pub cookie: Cookie,
    /// What it dials: a pod, a service, or something outside the mesh.
    pub address: Address,
    /// The port that it dials, in host byte order.
    pub port: u32,
    /// Always zero.
    pub zero: u32,
}

/// Where a call may go directly.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend {
    /// The address to connect to.
    pub address: Address,
    /// The namespace of the pod that has this address, or 0 outside the mesh. Where another pod
    /// has it by now, the verdict does not count.
    pub server: Cookie,
    /// The port to connect to, in host byte order.
    pub port: u16,
    /// A set of the `FLOW_` bits.
    pub flags: u16,
    /// Its share of [`Verdict::total`].
    pub weight: u32,
}

/// What the proxy has judged about a call; value of VERDICTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    /// [`crate::Config::epoch`] when it was written.
    pub epoch: u32,
    /// The weights of all backends that could be chosen, those that are not listed included: their
    /// share goes to the proxy.
    pub total: u32,
    /// How many backends are listed.
    pub count: u32,
    /// Always zero.
    pub zero: u32,
    /// The backends; those behind `count` are zero.
    pub backends: [Backend; BACKENDS],
}

/// Plaintext from outside; key of ARRIVALS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Arrival {
    /// The pod's address that is called.
    pub to: Address,
    /// Who calls.
    pub from: Address,
    /// The port that is called, in host byte order.
    pub port: u32,
}

/// What the proxy has judged about an arrival; value of ARRIVALS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Admission {
    /// The namespace of the pod that is called.
    pub server: Cookie,
    /// [`crate::Config::epoch`] when it was written.
    pub epoch: u32,
    /// Always zero.
    pub zero: u32,
}

/// The two ends of a connection on the direct lane; key of FLOWS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Flow {
    /// The client's address.
    pub client: Address,
    /// The server's address, after a service's was rewritten.
    pub server: Address,
    /// The client's port, in host byte order.
    pub client_port: u32,
    /// The server's port, in host byte order.
    pub server_port: u32,
}

impl Flow {
    /// The same connection seen from the other side.
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
    pub const fn client_end(&self) -> End {
        End {
            local: self.client,
            remote: self.server,
            local_port: self.client_port,
            remote_port: self.server_port,
            cookie: 0,
        }
    }
}

/// What is known of a connection on the direct lane; value of FLOWS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlowState {
    /// The namespace of the pod whose socket is watched: the client's, or the server's where
    /// [`FLOW_INBOUND`] is set.
    pub pod: Cookie,
    /// The namespace of the pod that is called; 0 outside the mesh.
    pub server: Cookie,
    /// The watched socket's cookie.
    pub socket: u64,
    /// When the SYN was sent or the connection accepted: nanoseconds of CLOCK_MONOTONIC.
    pub opened: u64,
    /// Bytes from the client that went past TCP, between joined sockets.
    pub joined_request: u64,
    /// Bytes from the server that went past TCP.
    pub joined_response: u64,
    /// What the client dialled.
    pub dialled: Address,
    /// Its port, in host byte order.
    pub dialled_port: u32,
    /// A set of the `FLOW_` bits.
    pub flags: u32,
}

/// The watched socket is the server's: the client is not on this node, or not in the mesh.
pub const FLOW_INBOUND: u32 = 1;
/// The proxy opened it on behalf of an application and keeps its record itself.
pub const FLOW_PROXY: u32 = 2;
/// The two ends, both on this node, are to be joined.
pub const FLOW_JOIN: u32 = 4;
/// The server's pod has seen the connection come.
pub const FLOW_ARRIVED: u32 = 8;

/// Something happened to a connection on the direct lane; record of EVENTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// The connection.
    pub flow: Flow,
    /// What was known of it.
    pub state: FlowState,
    /// When it happened: nanoseconds of CLOCK_MONOTONIC.
    pub at: u64,
    /// Bytes from the client to the server so far.
    pub request: u64,
    /// Bytes from the server to the client so far.
    pub response: u64,
    /// One of the `EVENT_` values.
    pub kind: u32,
    /// Always zero.
    pub zero: u32,
}

/// The connection is established.
pub const EVENT_OPENED: u32 = 1;
/// It ended in an orderly way.
pub const EVENT_CLOSED: u32 = 2;
/// It was reset, by an end or on the way.
pub const EVENT_RESET: u32 = 3;
/// It never came to be.
pub const EVENT_FAILED: u32 = 4;

/// Index of COUNTS: connections that are open.
pub const COUNT_OPEN: u32 = 0;
/// Index of COUNTS: events that found no room.
pub const COUNT_LOST: u32 = 1;
/// Entries of COUNTS.
pub const COUNTS: u32 = 2;

/// How many connections can be on the direct lane at once; beyond it the proxy carries them.
pub const FLOW_LIMIT: u32 = 262_144;

const _: () = assert!(size_of::<Call>() == 32);
const _: () = assert!(size_of::<Backend>() == 32);
const _: () = assert!(size_of::<Verdict>() == 16 + 32 * BACKENDS);
const _: () = assert!(size_of::<Arrival>() == 36);
const _: () = assert!(size_of::<Admission>() == 16);
const _: () = assert!(size_of::<Flow>() == 40);
const _: () = assert!(size_of::<FlowState>() == 72);
const _: () = assert!(size_of::<Event>() == 144);
