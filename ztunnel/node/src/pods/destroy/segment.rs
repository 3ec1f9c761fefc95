//! TCP segments as bytes: with their IP header to send them, and as the kernel shows those that
//! pass. Plain functions of bytes; every length is checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
/// How many hops a segment lives.
const HOPS: u8 = 64;

/// TCP's flags, from RFC 9293, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u8);

impl Flags {
    pub(super) const FIN: Self = Self(0x01);
    pub(super) const SYN: Self = Self(0x02);
    pub(super) const RST: Self = Self(0x04);
    pub(super) const ACK: Self = Self(0x10);

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A segment with few bytes of data or none, and no options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledges: u32,
    pub(super) flags: Flags,
    pub(super) data: &'static [u8],
}

impl Segment {
    /// The packet, its IP header included. None if its ends are of two families.
    pub(super) fn packet(&self) -> Option<Vec<u8>> {
        let mut tcp = Vec::with_capacity(TCP_HEADER + self.data.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledges.to_be_bytes());
        // Five words of header, the flags, a window of 0, no checksum yet, nothing urgent.
        tcp.extend([5 << 4, self.flags.0, 0, 0, 0, 0, 0, 0]);
        tcp.extend(self.data);
        let length = u16::try_from(tcp.len()).ok()?;
        let (mut packet, pseudo) = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (
                header_v4(from, to, length)?,
                pseudo(&from.octets(), &to.octets(), length),
            ),
            (IpAddr::V6(from), IpAddr::V6(to)) => (
                header_v6(from, to, length),
                pseudo(&from.octets(), &to.octets(), length),
            ),
            _ => return None,
        };
        let checksum = checksum([pseudo.as_slice(), &tcp]);
        if let Some(place) = tcp.get_mut(16..18) {
            place.copy_from_slice(&checksum.to_be_bytes());
        }
        packet.append(&mut tcp);
        Some(packet)
    }
}

/// The kernel fills in the identification and the checksum (raw(7)).
fn header_v4(from: Ipv4Addr, to: Ipv4Addr, payload: u16) -> Option<Vec<u8>> {
    let mut header = Vec::with_capacity(64);
    header.extend([4 << 4 | 5, 0]);
    header.extend(payload.checked_add(20)?.to_be_bytes());
    header.extend([0, 0, 0, 0, HOPS, TCP, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    Some(header)
}

fn header_v6(from: Ipv6Addr, to: Ipv6Addr, payload: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(64);
    header.extend([6 << 4, 0, 0, 0]);
    header.extend(payload.to_be_bytes());
    header.extend([TCP, HOPS]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// What TCP's checksum covers besides the segment. One form does for both families: the order
/// and zeros in between do not change the sum.
fn pseudo(from: &[u8], to: &[u8], length: u16) -> Vec<u8> {
    let mut pseudo = Vec::with_capacity(36);
    pseudo.extend(from);
    pseudo.extend(to);
    pseudo.extend([0, TCP]);
    pseudo.extend(length.to_be_bytes());
    pseudo
}

/// RFC 1071. Every part but the last has an even length.
fn checksum(parts: [&[u8]; 2]) -> u16 {
    let words = parts.into_iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| match *word {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(u16::from_be_bytes([high, 0])),
            _ => 0,
        })
        .sum();
    while sum > u32::from(u16::MAX) {
        sum = (sum & u32::from(u16::MAX)) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Who says something in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// A socket: the segment acknowledges.
    Socket,
    /// The kernel, in place of a socket that is not there: a reset that answers an acknowledgement
    /// and bears none itself (RFC 9293, section 3.10.7.1).
    Nobody,
}

/// What an end of a connection said about itself in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) voice: Voice,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// The sequence number of what it says next.
    pub(super) next: u32,
    /// The sequence number of what it expects next; nothing if nobody is there to expect it.
    pub(super) expects: u32,
}

/// Reads a packet that begins with its IP header; its data need not be there. None for a reset
/// that a socket sends, or that is sent in a socket's name.
pub(super) fn hear(packet: &[u8]) -> Option<Heard> {
    let (from, to, tcp, length) = match packet.first()? >> 4 {
        4 => parts_v4(packet)?,
        6 => parts_v6(packet)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let flags = Flags(*tcp.get(13)?);
    let voice = match (flags.has(Flags::ACK), flags.has(Flags::RST)) {
        (true, false) => Voice::Socket,
        (false, true) => Voice::Nobody,
        (true, true) | (false, false) => return None,
    };
    if header < TCP_HEADER {
        return None;
    }
    let data = u32::try_from(length.checked_sub(header)?).ok()?;
    let taken = data + u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));
    Some(Heard {
        voice,
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        next: word(4)?.wrapping_add(taken),
        expects: word(8)?,
    })
}

type Parts<'a> = (IpAddr, IpAddr, &'a [u8], usize);

/// The ends, the segment as far as it is there, and its length as the header has it.
fn parts_v4(packet: &[u8]) -> Option<Parts<'_>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[9] != TCP || fragment != 0 || length < header.len() {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?));
    let tcp = packet.get(length..)?;
    Some((
        address(12)?.into(),
        address(16)?.into(),
        tcp,
        total.checked_sub(length)?,
    ))
}

fn parts_v6(packet: &[u8]) -> Option<Parts<'_>> {
    let (header, tcp) = packet.split_first_chunk::<40>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[6] != TCP {
        return None;
    }
    let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
    Some((address(8)?.into(), address(24)?.into(), tcp, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 0xffff_ffff,
            acknowledges: 77,
            flags: Flags::ACK,
            data: &[],
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        for (from, to) in [
            ("10.0.0.1:80", "10.0.0.2:90"),
            ("[fd00::1]:80", "[fd00::2]:90"),
        ] {
            let said = segment(from, to);
            let heard = Heard {
                voice: Voice::Socket,
                from: said.from,
                to: said.to,
                next: 0xffff_ffff,
                expects: 77,
            };
            assert_eq!(hear(&said.packet().unwrap()), Some(heard));
            let ends = |flags: Flags| {
                let packet = Segment { flags, ..said }.packet().unwrap();
                hear(&packet).map(|heard| heard.next)
            };
            assert_eq!(ends(Flags::ACK.and(Flags::SYN)), Some(0));
            assert_eq!(ends(Flags::ACK.and(Flags::FIN)), Some(0));
            assert_eq!(ends(Flags::SYN), None);
            assert_eq!(ends(Flags::ACK.and(Flags::RST)), None);
            let flags = Flags::RST;
            let heard = hear(&Segment { flags, ..said }.packet().unwrap());
            assert_eq!(heard.map(|heard| heard.voice), Some(Voice::Nobody));
            let with_data = Segment {
                data: &[1, 2],
                ..said
            };
            let heard = hear(&with_data.packet().unwrap());
            assert_eq!(heard.map(|heard| heard.next), Some(1));
        }
        assert_eq!(segment("10.0.0.1:80", "[fd00::2]:90").packet(), None);
    }

    #[test]
    fn checksums_are_those_of_the_protocol() {
        // With its own checksum in place, the sum of everything is "none missing".
        for (from, to, header) in [
            ("10.0.0.1:80", "10.0.0.2:90", 20),
            ("[fd00::1]:80", "[fd00::2]:90", 40),
        ] {
            let said = Segment {
                data: &[7],
                ..segment(from, to)
            };
            let packet = said.packet().unwrap();
            let tcp = &packet[header..];
            let pseudo = match (said.from.ip(), said.to.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => pseudo(&a.octets(), &b.octets(), 21),
                (IpAddr::V6(a), IpAddr::V6(b)) => pseudo(&a.octets(), &b.octets(), 21),
                _ => unreachable!(),
            };
            assert_eq!(checksum([&pseudo, tcp]), 0);
        }
    }

    #[test]
    fn no_length_of_a_packet_is_believed() {
        // Up to the flags, the last thing that is read.
        for (from, to, least) in [
            ("10.0.0.1:80", "10.0.0.2:90", 34),
            ("[fd00::1]:80", "[fd00::2]:90", 54),
        ] {
            let packet = segment(from, to).packet().unwrap();
            for length in 0..packet.len() {
                assert_eq!(
                    hear(&packet[..length]).is_some(),
                    length >= least,
                    "{length}"
                );
            }
            for at in 0..packet.len() {
                for value in 0..=255 {
                    let mut packet = packet.clone();
                    packet[at] = value;
                    hear(&packet);
                }
            }
        }
    }
}
