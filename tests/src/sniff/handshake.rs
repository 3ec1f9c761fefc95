//! The parameters of TLS handshakes, parsed from captured ServerHello messages.
//!
//! A ServerHello is not encrypted (RFC 8446, section 4.1.3): it proves the version, the cipher suite and
//! the key exchange independently of the proxies' logs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A captured TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The address of the client.
    pub client: SocketAddr,
    /// The address of the server.
    pub server: SocketAddr,
    /// The version, such as 0x0304 for TLS 1.3.
    pub version: u16,
    /// The number of the cipher suite.
    pub cipher: u16,
    /// The number of the key exchange group, if the message contains one.
    pub group: Option<u16>,
}

/// TLS 1.3.
pub const TLS_1_3: u16 = 0x0304;

impl Handshake {
    /// The version's name.
    #[must_use]
    pub fn version_name(&self) -> &'static str {
        match self.version {
            TLS_1_3 => "TLS 1.3",
            0x0303 => "TLS 1.2",
            _ => "TLS ?",
        }
    }

    /// The cipher's name, for those of TLS 1.3.
    #[must_use]
    pub fn cipher_name(&self) -> &'static str {
        match self.cipher {
            0x1301 => "AES-128-GCM",
            0x1302 => "AES-256-GCM",
            0x1303 => "ChaCha20-Poly1305",
            _ => "unknown",
        }
    }

    /// The name of the key exchange.
    #[must_use]
    pub fn group_name(&self) -> &'static str {
        match self.group {
            Some(0x11ec) => "X25519MLKEM768",
            Some(0x001d) => "X25519",
            Some(0x0017) => "P-256",
            Some(_) => "unknown",
            None => "none",
        }
    }
}

/// Parses an Ethernet frame with the beginning of a ServerHello.
pub(super) fn parse(frame: &[u8]) -> Option<Handshake> {
    let (source, destination, payload) = tcp(frame)?;
    let hello = server_hello(payload)?;
    // The fields: legacy_version, random, session id, cipher suite, compression, extensions.
    let after_random = hello.get(2 + 32..)?;
    let (session, rest) = after_random.split_first()?;
    let rest = rest.get(usize::from(*session)..)?;
    let cipher = number(rest, 0)?;
    let mut version = number(hello, 0)?;
    let mut group = None;
    let mut extensions = rest.get(2 + 1 + 2..)?;
    while let (Some(kind), Some(length)) = (number(extensions, 0), number(extensions, 2)) {
        let Some(body) = extensions.get(4..4 + usize::from(length)) else {
            break;
        };
        match kind {
            43 => version = number(body, 0)?,
            51 => group = number(body, 0),
            _ => {}
        }
        extensions = extensions.get(4 + usize::from(length)..)?;
    }
    Some(Handshake {
        client: destination,
        server: source,
        version,
        cipher,
        group,
    })
}

/// The body of a ServerHello at the beginning of a TCP payload.
fn server_hello(payload: &[u8]) -> Option<&[u8]> {
    const HANDSHAKE: u8 = 22;
    const SERVER_HELLO: u8 = 2;
    let message = payload.get(5..)?;
    (payload[0] == HANDSHAKE && payload[1] == 3 && *message.first()? == SERVER_HELLO)
        .then(|| message.get(4..))
        .flatten()
}

/// Source, destination and payload of a TCP segment.
fn tcp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match number(frame, 12)? {
        0x0800 if *packet.get(9)? == TCP => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            (
                v4(packet, 12)?.into(),
                v4(packet, 16)?.into(),
                packet.get(header..)?,
            )
        }
        0x86dd if *packet.get(6)? == TCP => (
            v6(packet, 8)?.into(),
            v6(packet, 24)?.into(),
            packet.get(40..)?,
        ),
        _ => return None,
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some((
        SocketAddr::new(source, number(segment, 0)?),
        SocketAddr::new(destination, number(segment, 2)?),
        segment.get(header..)?,
    ))
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    let pair: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45]);
        bytes.extend([0; 8]);
        bytes.extend([6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        bytes.extend([0x3a, 0xa0, 0x10, 0x00]);
        bytes.extend([0; 8]);
        bytes.extend([0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        // The record and the message. Their lengths are zero, because `parse` does not use them.
        bytes.extend([22, 3, 3, 0, 0, 2, 0, 0, 0, 3, 3]);
        bytes.extend([7; 32]);
        bytes.extend([1, 9, 0x13, 0x01, 0, 0, 14]);
        bytes.extend([0, 51, 0, 4, 0x11, 0xec, 0, 0, 0, 43, 0, 2, 3, 4]);
        bytes
    }

    #[test]
    fn a_server_hello_is_parsed() {
        let handshake = parse(&frame()).unwrap();
        assert_eq!(handshake.client, "10.0.0.1:4096".parse().unwrap());
        assert_eq!(handshake.server, "10.0.0.2:15008".parse().unwrap());
        assert_eq!(
            (
                handshake.version_name(),
                handshake.cipher_name(),
                handshake.group_name()
            ),
            ("TLS 1.3", "AES-128-GCM", "X25519MLKEM768")
        );
    }

    #[test]
    fn a_truncated_frame_is_parsed_in_part_or_not_at_all() {
        let whole = frame();
        for length in 0..whole.len() {
            if let Some(handshake) = parse(&whole[..length]) {
                assert_eq!(handshake.cipher, 0x1301);
            }
        }
    }
}
