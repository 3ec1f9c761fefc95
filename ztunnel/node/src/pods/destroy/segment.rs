//! TCP segments as bytes: built with their IP header to be sent, and read as the kernel shows those
//! that pass.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6Header, Ipv6HeaderSlice, TcpHeader, TcpHeaderSlice,
};

/// The hop limit of a sent segment.
const HOPS: u8 = 64;

/// The kinds of segments that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first segment of a handshake.
    Syn,
    /// A segment with an acknowledgement.
    Ack,
    /// A reset with an acknowledgement.
    Reset,
}

/// A segment with few bytes of data or none, and without options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    /// Ignored in a [`Kind::Syn`], which acknowledges nothing.
    pub(super) acknowledgement: u32,
    pub(super) data: &'static [u8],
}

impl Segment {
    /// The packet with its IP header. None if the ends belong to two address families.
    pub(super) fn packet(&self) -> Option<Vec<u8>> {
        packet(self.tcp(), self.from.ip(), self.to.ip(), self.data)
    }

    fn tcp(&self) -> TcpHeader {
        let (from, to) = (self.from.port(), self.to.port());
        let mut tcp = TcpHeader::new(from, to, self.sequence, 0);
        tcp.syn = self.kind == Kind::Syn;
        tcp.ack = self.kind != Kind::Syn;
        tcp.rst = self.kind == Kind::Reset;
        if tcp.ack {
            tcp.acknowledgment_number = self.acknowledgement;
        }
        tcp
    }
}

fn packet(mut tcp: TcpHeader, from: IpAddr, to: IpAddr, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(tcp.header_len() + data.len()).ok()?;
    let mut packet = Vec::with_capacity(Ipv6Header::LEN + usize::from(length));
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (source, destination) = (from.octets(), to.octets());
            let checksum = tcp.calc_checksum_ipv4_raw(source, destination, data);
            tcp.checksum = checksum.ok()?;
            // The kernel fills in the identification and the checksum (raw(7)).
            let ip = Ipv4Header {
                dont_fragment: false,
                ..Ipv4Header::new(length, HOPS, IpNumber::TCP, source, destination).ok()?
            };
            packet.extend(ip.to_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (source, destination) = (from.octets(), to.octets());
            let checksum = tcp.calc_checksum_ipv6_raw(source, destination, data);
            tcp.checksum = checksum.ok()?;
            let ip = Ipv6Header {
                payload_length: length,
                next_header: IpNumber::TCP,
                hop_limit: HOPS,
                source,
                destination,
                ..Ipv6Header::default()
            };
            packet.extend(ip.to_bytes());
        }
        _ => return None,
    }
    packet.extend(tcp.to_bytes());
    packet.extend(data);
    Some(packet)
}

/// The sender of an observed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A socket: the segment acknowledges.
    Socket,
    /// The kernel, because there is no socket: a reset without an acknowledgement, in answer to an
    /// acknowledgement (RFC 9293, section 3.10.7.1).
    NoSocket,
}

/// What a segment says about the end that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) sender: Sender,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// The sequence number that this end sends next.
    pub(super) next: u32,
    /// The sequence number that this end expects next; without meaning if there is no socket.
    pub(super) expected: u32,
}

/// Reads a packet that begins with its IP header and has its whole TCP header; the data may be cut
/// off. None for other packets, and for a reset that a socket sent or that was sent in its name.
pub(super) fn observe(packet: &[u8]) -> Option<Observed> {
    let IpPacket {
        from,
        to,
        payload,
        length,
    } = match packet.first()? >> 4 {
        4 => ipv4(packet)?,
        6 => ipv6(packet)?,
        _ => return None,
    };
    let tcp = TcpHeaderSlice::from_slice(payload).ok()?;
    let sender = match (tcp.ack(), tcp.rst()) {
        (true, false) => Sender::Socket,
        (false, true) => Sender::NoSocket,
        (true, true) | (false, false) => return None,
    };
    let data = length.checked_sub(tcp.slice().len())?;
    let taken = u32::try_from(data).ok()? + u32::from(tcp.syn()) + u32::from(tcp.fin());
    Some(Observed {
        sender,
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
        next: tcp.sequence_number().wrapping_add(taken),
        expected: tcp.acknowledgment_number(),
    })
}

/// A packet of which at least the IP header is there.
struct IpPacket<'a> {
    from: IpAddr,
    to: IpAddr,
    /// The TCP segment, as far as it was captured.
    payload: &'a [u8],
    /// The length of the whole segment, from the IP header.
    length: usize,
}

fn ipv4(packet: &[u8]) -> Option<IpPacket<'_>> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    if ip.protocol() != IpNumber::TCP || ip.is_fragmenting_payload() {
        return None;
    }
    Some(IpPacket {
        from: ip.source_addr().into(),
        to: ip.destination_addr().into(),
        payload: packet.get(ip.slice().len()..)?,
        length: ip.payload_len().ok()?.into(),
    })
}

fn ipv6(packet: &[u8]) -> Option<IpPacket<'_>> {
    let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
    if ip.next_header() != IpNumber::TCP {
        return None;
    }
    Some(IpPacket {
        from: ip.source_addr().into(),
        to: ip.destination_addr().into(),
        payload: packet.get(ip.slice().len()..)?,
        length: ip.payload_length().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends in each address family, and the length of the IP header.
    const FAMILIES: [(&str, &str, usize); 2] = [
        ("10.0.0.1:80", "10.0.0.2:90", 20),
        ("[fd00::1]:80", "[fd00::2]:90", 40),
    ];

    fn segment(from: &str, to: &str) -> Segment {
        Segment {
            kind: Kind::Ack,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 0xffff_ffff,
            acknowledgement: 77,
            data: &[],
        }
    }

    #[test]
    fn a_sent_segment_is_observed_with_its_numbers() {
        for (from, to, _) in FAMILIES {
            let sent = segment(from, to);
            let expected = Observed {
                sender: Sender::Socket,
                from: sent.from,
                to: sent.to,
                next: 0xffff_ffff,
                expected: 77,
            };
            assert_eq!(observe(&sent.packet().unwrap()), Some(expected));
            let of_kind = |kind| observe(&Segment { kind, ..sent }.packet().unwrap());
            assert_eq!(of_kind(Kind::Syn), None);
            assert_eq!(of_kind(Kind::Reset), None);
            let data = &[1, 2];
            let with_data = Segment { data, ..sent };
            let observed = observe(&with_data.packet().unwrap()).unwrap();
            assert_eq!(observed.next, 1);
        }
        assert_eq!(segment("10.0.0.1:80", "[fd00::2]:90").packet(), None);
    }

    #[test]
    fn flags_tell_the_sender_and_take_a_sequence_number() {
        for (from, to, _) in FAMILIES {
            let sent = segment(from, to);
            let with = |change: fn(&mut TcpHeader)| {
                let mut tcp = sent.tcp();
                change(&mut tcp);
                observe(&packet(tcp, sent.from.ip(), sent.to.ip(), &[]).unwrap())
            };
            assert_eq!(with(|tcp| tcp.syn = true).unwrap().next, 0);
            assert_eq!(with(|tcp| tcp.fin = true).unwrap().next, 0);
            let refused = with(|tcp| (tcp.ack, tcp.rst) = (false, true)).unwrap();
            assert_eq!(refused.sender, Sender::NoSocket);
        }
    }

    #[test]
    fn checksums_are_those_of_the_protocol() {
        for (from, to, header) in FAMILIES {
            let sent = Segment {
                data: &[7],
                ..segment(from, to)
            };
            let packet = sent.packet().unwrap();
            let tcp = TcpHeaderSlice::from_slice(&packet[header..]).unwrap();
            // RFC 9293, section 3.1: the sum over pseudo header and segment is all ones.
            let mut covered = Vec::new();
            for end in [sent.from.ip(), sent.to.ip()] {
                match end {
                    IpAddr::V4(v4) => covered.extend(v4.octets()),
                    IpAddr::V6(v6) => covered.extend(v6.octets()),
                }
            }
            covered.extend([0, 6, 0, 21]);
            covered.extend(&packet[header..]);
            covered.push(0);
            let words = covered
                .chunks(2)
                .map(|word| u16::from_be_bytes([word[0], word[1]]));
            let mut sum: u32 = words.map(u32::from).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff, "{:#x}", tcp.checksum());
        }
    }

    #[test]
    fn truncated_and_corrupt_packets_are_harmless() {
        for (from, to, header) in FAMILIES {
            let packet = segment(from, to).packet().unwrap();
            for length in 0..packet.len() {
                let observed = observe(&packet[..length]);
                assert_eq!(observed.is_some(), length >= header + 20, "{length}");
            }
            for at in 0..packet.len() {
                for value in 0..=255 {
                    let mut packet = packet.clone();
                    packet[at] = value;
                    observe(&packet);
                }
            }
        }
    }
}
