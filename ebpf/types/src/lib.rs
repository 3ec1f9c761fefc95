//! Keys and values of the maps that the kernel programs share with the proxy.
//!
//! Both sides compile this one definition. Every type is `repr(C)`, has no implicit padding
//! (the kernel hashes keys byte by byte) and a size assertion that holds on both targets.
//! A change of any layout here is a new [`LAYOUT`]: pins of another layout are never reused.
#![no_std]

/// The version of every layout in this file. It is a directory name in the pins: a proxy only
/// takes over maps that have its own layout.
pub const LAYOUT: u32 = 2;

/// The network namespace's cookie, `SO_NETNS_COOKIE`: never reused while the machine is up.
pub type Cookie = u64;

/// An IP address as the kernel's socket calls have it: four words in network byte order, an IPv4
/// address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
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
    /// ::1
    pub const LOOPBACK6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };
    /// ::, which also stands for "no address of this family".
    pub const NONE: Self = Self { words: [0; 4] };

    /// An IPv4 address, given in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, address],
        }
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Whether it is in 127.0.0.0/8, or ::1.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.words[3] & LOOPBACK_MASK == LOOPBACK_NET
        } else {
            self.is(&Self::LOOPBACK6)
        }
    }

    /// Whether it is 0.0.0.0 or ::, which `connect()` takes for the local host.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.is(&Self::NONE) || (self.is_v4() && self.words[3] == 0)
    }

    /// Equality for const and BPF code: no call of memcmp.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
            && self.words[3] == other.words[3]
    }
}

/// What the programs need to know of an enrolled pod; the value of PODS, keyed by [`Cookie`].
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
/// A proxy in this namespace is about to make itself known: see [`Saved::kind`].
pub const POD_HANDSHAKE: u32 = 2;
/// The pod's connections with the proxy are joined.
pub const POD_JOIN: u32 = 4;
/// What the pod asks of its resolvers is captured, with [`POD_ENROLLED`].
pub const POD_DNS: u32 = 8;

/// The port of DNS, RFC 1035, 4.2.
pub const DNS: u32 = 53;

/// What a socket carries in SOCKETS, its socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Saved {
    /// Where the application wanted to go.
    pub address: Address,
    /// Its port, in host byte order.
    pub port: u32,
    /// One of the `SAVED_` values.
    pub kind: u32,
    /// On the direct lane: where the connection really goes.
    pub peer: Address,
    /// Its port, in host byte order.
    pub peer_port: u32,
    /// On the direct lane a set of the `FLOW_` bits: what the connection's flow begins with.
    /// Captured: [`SAVED_ELSEWHERE`] or 0.
    pub flags: u32,
    /// The namespace of the pod that has to be there; 0 outside the mesh.
    pub server: Cookie,
    /// Bytes received when the socket entered FIN_WAIT2: what comes after them ends with a FIN.
    pub received: u64,
    /// A set of the `FIN_` bits.
    pub fins: u32,
    /// Always zero.
    pub zero: u32,
}

/// The socket was not captured, or no longer is.
pub const SAVED_NOTHING: u32 = 0;
/// The socket was captured; [`Saved::address`] is the original destination.
pub const SAVED_DESTINATION: u32 = 1;
/// [`Saved::flags`] of a captured socket: a verdict knows direct backends, and the dice chose none
/// of them.
pub const SAVED_ELSEWHERE: u32 = 1;
/// Only user space writes this: the process that connects this socket is the proxy.
pub const SAVED_HANDSHAKE: u32 = 2;
/// The socket is on the direct lane, by a verdict or because the proxy says so.
pub const SAVED_DIRECT: u32 = 3;
/// The socket was accepted on the direct lane: plaintext that policy lets into the pod.
pub const SAVED_ARRIVED: u32 = 4;
/// Only user space writes this, on the proxy's inbound listeners: what they accept is the proxy's.
pub const SAVED_LISTENER: u32 = 5;
/// A UDP socket whose questions were captured: [`Saved::peer`] is the resolver that it has asked
/// last. [`Saved::address`] is the one that it is connected to, [`Saved::port`] is 0 where it is
/// not.
pub const SAVED_RESOLVER: u32 = 6;

/// The socket's own FIN was acknowledged.
pub const FIN_ACKNOWLEDGED: u32 = 1;
/// The peer's FIN was received.
pub const FIN_RECEIVED: u32 = 2;
/// The socket opened the connection: its SYN counts among the bytes acknowledged.
pub const FIN_ACTIVE: u32 = 4;
/// [`Saved::received`] is set.
pub const FIN_WAITING: u32 = 8;
/// The connection was established.
pub const FIN_ESTABLISHED: u32 = 16;

/// The client's end of a captured connection, as the proxy's `accept()` sees it; key of ORIGINS.
/// Of a captured question, as the proxy's `recvfrom()` sees it; key of RESOLVERS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Client {
    /// The namespace: loopback tuples repeat in each.
    pub cookie: Cookie,
    /// The client's address.
    pub address: Address,
    /// The client's port, in host byte order.
    pub port: u32,
    /// Always zero.
    pub zero: u32,
}

/// The original destination of a captured connection; value of ORIGINS. The resolver that was
/// asked; value of RESOLVERS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Destination {
    /// The address that the application called.
    pub address: Address,
    /// Its port, in host byte order.
    pub port: u32,
    /// 1 where a verdict knows direct backends and the dice chose none of them.
    pub elsewhere: u32,
}

/// One end of a connection whose two ends are both on this machine; key of JOINED.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct End {
    /// The address of the socket itself.
    pub local: Address,
    /// The address of its peer.
    pub remote: Address,
    /// The socket's port, in host byte order.
    pub local_port: u32,
    /// Its peer's port, in host byte order.
    pub remote_port: u32,
    /// The namespace of a connection that stays inside one, whose tuples repeat in each; zero
    /// between two pods, whose addresses do not repeat on a machine.
    pub cookie: Cookie,
}

impl End {
    /// The end that talks to this one.
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

/// What a socket of JOINED remembers in JOINS, its socket storage: the way that the bytes take
/// which it sends. TCP once is TCP for ever: the receiver reads bytes that went past TCP first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Join {
    /// One of the `JOIN_` values.
    pub way: u32,
    /// Whose socket it is, one of the `SIDE_` values.
    pub side: u32,
    /// As in [`End::cookie`].
    pub cookie: Cookie,
}

/// It has opened the connection.
pub const SIDE_CLIENT: u32 = 0;
/// It was accepted.
pub const SIDE_SERVER: u32 = 1;

/// Nothing was sent yet.
pub const JOIN_OPEN: u32 = 0;
/// All bytes so far went past TCP.
pub const JOIN_PAST: u32 = 1;
/// TCP carries the bytes from now on.
pub const JOIN_TCP: u32 = 2;

/// A key of EXEMPT_NETS, a longest-prefix-match trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Net {
    /// How many leading bits of the address count; 96 more than in IPv4 notation.
    pub bits: u32,
    /// The network's address; bits behind the prefix are zero.
    pub address: Address,
}

/// The one value of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// `SO_MARK` of the proxy's own sockets.
    pub mark: u32,
    /// The proxy's process id in the first pid namespace, learnt by the handshake; 0 is none.
    pub process: u32,
    /// Port of the proxy's outbound listener on the pod's loopback.
    pub outbound: u32,
    /// Port of inbound HBONE, which arrives without steering.
    pub hbone: u32,
    /// A set of the `CONFIG_` bits.
    pub flags: u32,
    /// `SO_MARK` of the proxy's deliveries, which the application's accepted sockets inherit.
    pub delivery: u32,
    /// Verdicts of another epoch do not count: one write makes all of them void.
    pub epoch: u32,
}

/// A value of EXEMPT_PORTS or EXEMPT_NETS is a set of the `EXEMPT_` bits. This one: connections of
/// a pod to the port or network are left alone.
pub const EXEMPT_OUTBOUND: u32 = 1;
/// Connections into a pod, on the port or from the network, are left alone.
pub const EXEMPT_INBOUND: u32 = 2;

/// EXEMPT_PORTS has entries.
pub const CONFIG_PORTS: u32 = 1;
/// EXEMPT_NETS has entries.
pub const CONFIG_NETS: u32 = 2;
/// Decisions are written to the log.
pub const CONFIG_LOG: u32 = 4;

// The sizes are spelled out: an accidental change or padding fails the build on both targets.
const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
const _: () = assert!(size_of::<Pod>() == 36);
const _: () = assert!(size_of::<Saved>() == 72);
const _: () = assert!(size_of::<Client>() == 32);
const _: () = assert!(size_of::<Destination>() == 24);
const _: () = assert!(size_of::<End>() == 48 && align_of::<End>() == 8);
const _: () = assert!(size_of::<Join>() == 16);
const _: () = assert!(size_of::<Net>() == 20);
const _: () = assert!(size_of::<Config>() == 28);

mod direct;
pub use direct::*;

#[cfg(feature = "user")]
mod user;
