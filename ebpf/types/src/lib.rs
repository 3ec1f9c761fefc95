//! Keys and values of the maps that the kernel programs share with the proxy.
//!
//! Both sides compile this one definition. Every type is `repr(C)`, has no implicit padding
//! (the kernel hashes keys byte by byte) and has a size assertion that holds on both targets. A
//! change of a map's name, key or value needs a new [`LAYOUT`]: a proxy never reuses the maps of
//! another layout.
#![no_std]

/// The version of the maps: their names, keys and values. It is a directory name in the BPF file
/// system: a proxy reuses only maps of its own layout.
pub const LAYOUT: u32 = 3;

/// The cookie of a network namespace (`SO_NETNS_COOKIE`), unique until the machine reboots.
pub type Cookie = u64;

/// An IP address in the form of the kernel's socket calls: four words in network byte order. An
/// IPv4 address has the form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Address {
    /// The words, each in network byte order.
    pub words: [u32; 4],
}

/// The third word of an IPv4 address in IPv6 form.
const MAPPED: u32 = 0xffff_u32.to_be();
/// 127.0.0.0/8, of the fourth word.
const LOOPBACK_NET: u32 = 0x7f00_0000_u32.to_be();
const LOOPBACK_MASK: u32 = 0xff00_0000_u32.to_be();

impl Address {
    /// 127.0.0.1 in its mapped form.
    pub const LOOPBACK4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOOPBACK6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };
    /// `::`, also used for "no address of this family".
    pub const NONE: Self = Self { words: [0; 4] };

    /// An IPv4 address, from its network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, address],
        }
    }

    /// Whether this is an IPv4 address in mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Whether the address is in 127.0.0.0/8, or is ::1.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.words[3] & LOOPBACK_MASK == LOOPBACK_NET
        } else {
            self.is(&Self::LOOPBACK6)
        }
    }

    /// Whether the address is 0.0.0.0 or ::, which `connect()` takes for the local host.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.is(&Self::NONE) || (self.is_v4() && self.words[3] == 0)
    }

    /// Equality for const and BPF code, without a call of memcmp.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
            && self.words[3] == other.words[3]
    }
}

/// An enrolled pod; value of `PODS`, whose key is the pod's [`Cookie`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pod {
    /// The pod's first IPv4 address in mapped form, or [`Address::NONE`].
    pub v4: Address,
    /// The pod's first IPv6 address, or [`Address::NONE`].
    pub v6: Address,
    /// A set of the `POD_` bits.
    pub flags: u32,
}

/// The pod's outbound connections are captured.
pub const POD_ENROLLED: u32 = 1;
/// A proxy in this namespace is about to identify itself: see [`SOCKET_HANDSHAKE`].
pub const POD_HANDSHAKE: u32 = 2;
/// The pod's connections with the proxy are joined.
pub const POD_JOIN: u32 = 4;
/// The pod's DNS queries are captured; needs [`POD_ENROLLED`], too.
pub const POD_DNS: u32 = 8;
/// The pod has just been enrolled: an application may still accept a connection whose SYN arrived
/// before.
pub const POD_ARRIVING: u32 = 16;

/// The port of DNS servers (RFC 1035, 4.2).
pub const RESOLVER_PORT: u32 = 53;

/// What the programs store with a socket; value of `SOCKET_STATES`, a socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SocketState {
    /// The address that the application passed to `connect()`.
    pub dialled_address: Address,
    /// The port that the application passed to `connect()`, in host byte order.
    pub dialled_port: u32,
    /// One of the `SOCKET_` values.
    pub kind: u32,
    /// On the fast path: the address that the connection goes to.
    pub peer_address: Address,
    /// The port of `peer_address`, in host byte order.
    pub peer_port: u32,
    /// On the fast path: the `CONNECTION_` bits that the connection begins with. Captured:
    /// [`CAPTURED_UNLISTED`] or 0.
    pub flags: u32,
    /// The network namespace of the pod that must have `peer_address`; 0 outside the mesh.
    pub server_pod: Cookie,
    /// Bytes received when the socket entered FIN_WAIT2: bytes that arrive later end with a FIN.
    pub received_at_fin_wait2: u64,
    /// A set of the `PROGRESS_` bits.
    pub progress: u32,
    /// Captured: the mark (`SO_MARK`) that the application had set.
    pub application_mark: u32,
}

/// The socket was not captured, or no longer is.
pub const SOCKET_UNUSED: u32 = 0;
/// The socket was captured; [`SocketState::dialled_address`] is the original destination.
pub const SOCKET_CAPTURED: u32 = 1;
/// One of the [`SocketState::flags`] of a captured socket: the random choice fell on a backend that
/// the fast-path entry does not list.
pub const CAPTURED_UNLISTED: u32 = 1;
/// One of these flags: the application has bound the socket to an address.
pub const CAPTURED_BOUND: u32 = 2;
/// One of these flags: the application has set a mark, or bound the socket to a device.
/// `CAPTURED_SOCKETS` has them.
pub const CAPTURED_OPTIONS: u32 = 4;
/// Written by user space only: the process that connects this socket is the proxy.
pub const SOCKET_HANDSHAKE: u32 = 2;
/// The socket is on the fast path: an entry allows it, or the proxy has marked its own socket.
pub const SOCKET_FAST_PATH: u32 = 3;
/// The socket was accepted on the fast path: plaintext that policy allows into the pod.
pub const SOCKET_INBOUND: u32 = 4;
/// Written by user space only, on the proxy's inbound listeners: connections that they accept
/// belong to the proxy.
pub const SOCKET_LISTENER: u32 = 5;
/// As [`SOCKET_LISTENER`], on the listeners of captured connections.
pub const SOCKET_OUTBOUND_LISTENER: u32 = 7;
/// The socket was accepted from a delivery of the proxy.
pub const SOCKET_DELIVERED: u32 = 8;
/// A UDP socket whose DNS queries were captured. [`SocketState::peer_address`] is the resolver of
/// the last query. [`SocketState::dialled_address`] is the resolver that the socket is connected
/// to; on an unconnected socket, [`SocketState::dialled_port`] is 0.
pub const SOCKET_DNS: u32 = 6;

/// The peer has acknowledged the socket's FIN.
pub const PROGRESS_FIN_ACKNOWLEDGED: u32 = 1;
/// The peer's FIN was received.
pub const PROGRESS_FIN_RECEIVED: u32 = 2;
/// The socket opened the connection: the kernel includes its SYN in the acknowledged bytes.
pub const PROGRESS_ACTIVE_OPEN: u32 = 4;
/// [`SocketState::received_at_fin_wait2`] is set.
pub const PROGRESS_FIN_WAIT2: u32 = 8;
/// The connection was established.
pub const PROGRESS_ESTABLISHED: u32 = 16;

/// A listener of the proxy in a pod; key of `POD_LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ListenerKey {
    /// The pod's network namespace.
    pub pod: Cookie,
    /// One of the `LISTENER_` values.
    pub kind: u32,
    /// Always zero.
    pub zero: u32,
}

/// The number that stands for the pod's [`Cookie`] in `inbound`, until user space replaces it.
pub const INSTANCE_POD: Cookie = 0x7a74_6e5f_706f_6421;

/// The listener of connections into the pod.
pub const LISTENER_INBOUND: u32 = 0;
/// The listener of the pod's captured connections.
pub const LISTENER_OUTBOUND: u32 = 1;
/// The listener of the pod's captured connections to resolvers.
pub const LISTENER_DNS: u32 = 2;

/// The client's end of a captured connection, as the proxy's `accept()` returns it; key of
/// `ORIGINAL_DESTINATIONS`. Also the source of a captured DNS query, as the proxy's `recvfrom()`
/// returns it; key of `RESOLVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ClientKey {
    /// The network namespace: loopback tuples repeat in each.
    pub cookie: Cookie,
    /// The client's address.
    pub address: Address,
    /// The client's port, in host byte order.
    pub port: u32,
    /// Always zero.
    pub zero: u32,
}

/// A captured connection; key of `CAPTURED_SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CapturedKey {
    /// The pod's network namespace.
    pub pod: Cookie,
    /// The application's address.
    pub client: Address,
    /// The address that it dialled.
    pub server: Address,
    /// The application's port, in host byte order.
    pub client_port: u32,
    /// The port that it dialled, in host byte order.
    pub server_port: u32,
}

/// What the application has set on a captured socket; value of `CAPTURED_SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CapturedSocket {
    /// Its mark (`SO_MARK`), or 0.
    pub mark: u32,
    /// The index of its device (`SO_BINDTODEVICE`), or 0.
    pub device: u32,
}

/// The original destination of a captured connection; value of `ORIGINAL_DESTINATIONS`. Also the
/// resolver that a captured query was sent to; value of `RESOLVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OriginalDestination {
    /// The address that the application dialled.
    pub address: Address,
    /// The port that the application dialled, in host byte order.
    pub port: u32,
    /// [`CAPTURED_UNLISTED`] or 0.
    pub flags: u32,
}

/// One end of a connection whose two ends are on this machine; key of `JOINED_SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ConnectionEnd {
    /// The address of the socket itself.
    pub local: Address,
    /// The address of its peer.
    pub remote: Address,
    /// The socket's port, in host byte order.
    pub local_port: u32,
    /// Its peer's port, in host byte order.
    pub remote_port: u32,
    /// The network namespace of a connection inside one pod, whose tuples repeat in each. Zero
    /// between two pods, whose addresses are unique on a machine.
    pub cookie: Cookie,
}

impl ConnectionEnd {
    /// The other end of the connection.
    #[inline(always)]
    #[must_use]
    pub const fn peer(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            cookie: self.cookie,
        }
    }
}

/// What the programs store with a socket of `JOINED_SOCKETS`; value of `JOIN_STATES`, a socket
/// storage. A direction that has switched to TCP stays with TCP: the receiver reads redirected
/// bytes before bytes that TCP delivered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct JoinState {
    /// How the socket's bytes reach the peer, one of the `JOIN_` values.
    pub mode: u32,
    /// Which end the socket is, one of the `SIDE_` values.
    pub side: u32,
    /// As in [`ConnectionEnd::cookie`].
    pub cookie: Cookie,
}

/// The socket opened the connection.
pub const SIDE_CLIENT: u32 = 0;
/// The socket was accepted.
pub const SIDE_SERVER: u32 = 1;

/// The socket has sent no bytes yet.
pub const JOIN_UNUSED: u32 = 0;
/// All bytes so far were redirected to the peer's socket.
pub const JOIN_REDIRECTED: u32 = 1;
/// TCP carries all bytes from now on.
pub const JOIN_TCP: u32 = 2;

/// Key of `EXEMPT_NETWORKS`, a longest-prefix-match trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Network {
    /// The length of the prefix in bits; 96 more than in IPv4 notation.
    pub prefix_length: u32,
    /// The network's address; the bits behind the prefix are zero.
    pub address: Address,
}

/// The only value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// `SO_MARK` of the proxy's own sockets.
    pub mark: u32,
    /// The proxy's process id in the initial pid namespace, recorded by the handshake; 0 if
    /// unknown.
    pub process: u32,
    /// The port of the proxy's outbound listener on the pod's loopback device, where connections arrive
    /// that rules or the version before have redirected.
    pub outbound_port: u32,
    /// The port of inbound HBONE, which is not steered.
    pub hbone_port: u32,
    /// A set of the `CONFIG_` bits.
    pub flags: u32,
    /// `SO_MARK` of the proxy's deliveries; the application's accepted sockets inherit it.
    pub delivery_mark: u32,
    /// Entries of another epoch are not used: one write invalidates all of them.
    pub epoch: u32,
}

/// The bit of `SO_MARK` that distinguishes a pod's socket that is let through from the proxy's own
/// sockets. Istio's node agent installs rules in pods that let both pass, because they compare the
/// bits of [`ISTIO_MARK_MASK`] only.
pub const PASS_THROUGH_MARK: u32 = 0x1_0000;
/// The bits of a mark that those rules compare.
pub const ISTIO_MARK_MASK: u32 = 0xfff;

/// `SO_MARK` of captured sockets: a routing rule in the pod brings their packets back to the pod
/// itself, to the proxy's listener. In the bits of [`ISTIO_MARK_MASK`] it differs from the marks of
/// Istio and its node agent.
pub const CAPTURE_MARK: u32 = 0x7a74_0000;
/// The bits of the mark that the rule compares. The others tell the proxy about the connection: its
/// accepted socket has the same mark.
pub const CAPTURE_MARK_MASK: u32 = 0xffff_0fff;
/// The place of the socket's `CAPTURED_` bits in the mark.
pub const CAPTURE_MARK_FLAGS: u32 = 12;

/// The mark of a captured socket with these `CAPTURED_` bits.
#[inline(always)]
#[must_use]
pub const fn capture_mark(flags: u32) -> u32 {
    CAPTURE_MARK | (flags << CAPTURE_MARK_FLAGS)
}

/// The `CAPTURED_` bits in a mark; none if it is not one of captured sockets.
#[inline(always)]
#[must_use]
pub const fn flags_of_mark(mark: u32) -> u32 {
    if is_capture_mark(mark) {
        (mark & !CAPTURE_MARK_MASK) >> CAPTURE_MARK_FLAGS
    } else {
        0
    }
}

/// Whether a mark is one of captured sockets.
#[inline(always)]
#[must_use]
pub const fn is_capture_mark(mark: u32) -> bool {
    mark & CAPTURE_MARK_MASK == CAPTURE_MARK
}

/// A value of `EXEMPT_PORTS` or `EXEMPT_NETWORKS` is a set of the `EXEMPT_` bits. This bit:
/// connections of a pod to the port or network are not captured.
pub const EXEMPT_OUTBOUND: u32 = 1;
/// Connections into a pod, to the port or from the network, are not captured.
pub const EXEMPT_INBOUND: u32 = 2;

/// `EXEMPT_PORTS` has entries.
pub const CONFIG_EXEMPT_PORTS: u32 = 1;
/// `EXEMPT_NETWORKS` has entries.
pub const CONFIG_EXEMPT_NETWORKS: u32 = 2;
/// The programs log their decisions.
pub const CONFIG_LOG: u32 = 4;

// The sizes are spelled out: an accidental change or padding fails the build on both targets.
const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Pod>() == 36);
const _: () = assert!(size_of::<SocketState>() == 72);
const _: () = assert!(size_of::<ListenerKey>() == 16);
const _: () = assert!(size_of::<CapturedKey>() == 48);
const _: () = assert!(size_of::<CapturedSocket>() == 8);
const _: () = assert!(size_of::<ClientKey>() == 32);
const _: () = assert!(size_of::<OriginalDestination>() == 24);
const _: () = assert!(size_of::<ConnectionEnd>() == 48 && align_of::<ConnectionEnd>() == 8);
const _: () = assert!(size_of::<JoinState>() == 16);
const _: () = assert!(size_of::<Network>() == 20);
const _: () = assert!(size_of::<Config>() == 28);

mod fast_path;
pub use fast_path::*;

#[cfg(feature = "user")]
mod user;
