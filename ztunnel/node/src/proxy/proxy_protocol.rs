//! The PROXY protocol v2 header, for applications that request it (`application_tunnel`). It passes
//! the client's address and identity to the application in-band.
//!
//! Format: the PROXY protocol specification, section 2.2. The identity travels in a TLV of type
//! 0xD0, the type Istio's ztunnel uses.

use std::net::{IpAddr, SocketAddr};

use mesh::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const IDENTITY_TLV: u8 = 0xd0;

/// Builds the header. If the address families differ, both addresses are written as IPv6, the IPv4
/// one mapped.
#[must_use]
pub fn header(client: SocketAddr, server: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    let family = match (client.ip(), server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend_from_slice(&from.octets());
            body.extend_from_slice(&to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            body.extend_from_slice(&as_v6(from));
            body.extend_from_slice(&as_v6(to));
            TCP_OVER_IPV6
        }
    };
    body.extend_from_slice(&client.port().to_be_bytes());
    body.extend_from_slice(&server.port().to_be_bytes());
    // An identity is at most 2048 bytes long, so its length always fits.
    if let Some((identity, length)) =
        identity.and_then(|id| Some((id, u16::try_from(id.as_str().len()).ok()?)))
    {
        body.push(IDENTITY_TLV);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(identity.as_str().as_bytes());
    }
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[VERSION_AND_COMMAND, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.append(&mut body);
    header
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_addresses_ports_and_identity() {
        let id: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let header = header(
            "10.0.0.1:1000".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
            Some(&id),
        );
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&header[12..16], &[0x21, 0x11, 0, 12 + 3 + 21]);
        assert_eq!(
            &header[16..28],
            &[10, 0, 0, 1, 10, 0, 0, 2, 0x03, 0xe8, 0, 80]
        );
        assert_eq!(&header[28..31], &[0xd0, 0, 21]);
        assert_eq!(&header[31..], id.as_str().as_bytes());
    }

    #[test]
    fn writes_mixed_families_as_ipv6() {
        let header = header(
            "10.0.0.1:1".parse().unwrap(),
            "[fd00::2]:2".parse().unwrap(),
            None,
        );
        assert_eq!(&header[12..16], &[0x21, 0x21, 0, 36]);
        assert_eq!(&header[26..32], &[0xff, 0xff, 10, 0, 0, 1]);
    }
}
