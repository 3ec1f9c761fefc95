//! Implementations for user space: [`aya::Pod`], which says that a type is plain bytes, and the
//! conversions from and to the standard library's addresses.
#![allow(unsafe_code, reason = "aya::Pod is an unsafe trait")]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    Address, CapturedKey, CapturedSocket, ClientKey, Config, ConnectionEnd, ConnectionKey,
    ConnectionState, Event, FastPathEntry, FastPathKey, InboundEntry, InboundKey, JoinState,
    ListenerKey, Network, OriginalDestination, Pod, SocketState,
};

// SAFETY: repr(C), only integers, no padding (the size assertions), any bit pattern is valid.
unsafe impl aya::Pod for Address {}
// SAFETY: as for Address.
unsafe impl aya::Pod for CapturedKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for CapturedSocket {}
// SAFETY: as for Address.
unsafe impl aya::Pod for ClientKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for Config {}
// SAFETY: as for Address.
unsafe impl aya::Pod for ConnectionEnd {}
// SAFETY: as for Address.
unsafe impl aya::Pod for ConnectionKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for ConnectionState {}
// SAFETY: as for Address.
unsafe impl aya::Pod for Event {}
// SAFETY: as for Address.
unsafe impl aya::Pod for FastPathEntry {}
// SAFETY: as for Address.
unsafe impl aya::Pod for FastPathKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for InboundEntry {}
// SAFETY: as for Address.
unsafe impl aya::Pod for InboundKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for JoinState {}
// SAFETY: as for Address.
unsafe impl aya::Pod for ListenerKey {}
// SAFETY: as for Address.
unsafe impl aya::Pod for Network {}
// SAFETY: as for Address.
unsafe impl aya::Pod for OriginalDestination {}
// SAFETY: as for Address.
unsafe impl aya::Pod for Pod {}
// SAFETY: as for Address.
unsafe impl aya::Pod for SocketState {}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { words }
    }
}

impl From<Address> for IpAddr {
    /// An IPv4 address is returned as such, never in its mapped form.
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let v6 = Ipv6Addr::from(octets);
        v6.to_ipv4_mapped()
            .map_or(Self::V6(v6), |v4: Ipv4Addr| Self::V4(v4))
    }
}
