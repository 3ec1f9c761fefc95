//! The PROXY protocol header for an application. The proxy only writes it; this target parses it as
//! the specification says (version 2, section 2.2) and compares the fields.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use mesh::Identity;
use node::proxy::proxy_protocol;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|input: ((IpAddr, u16), (IpAddr, u16), String)| {
    let (client, server, identity) = input;
    let (client, server) = (SocketAddr::from(client), SocketAddr::from(server));
    let identity: Option<Identity> = identity.parse().ok();
    let header = proxy_protocol::header(client, server, identity.as_ref());

    let (signature, rest) = header.split_at(12);
    assert_eq!(signature, b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(rest[0], 0x21);
    assert_eq!(
        usize::from(u16::from_be_bytes([rest[2], rest[3]])),
        rest.len() - 4
    );
    let body = &rest[4..];
    let (width, body) = match rest[1] {
        0x11 => (4, body),
        0x21 => (16, body),
        family => panic!("unexpected family {family:#x}"),
    };
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let found = [
        (address(&body[..width]), port(&body[2 * width..])),
        (
            address(&body[width..2 * width]),
            port(&body[2 * width + 2..]),
        ),
    ];
    for ((ip, port), expected) in found.into_iter().zip([client, server]) {
        assert_eq!(
            (ip.to_canonical(), port),
            (expected.ip().to_canonical(), expected.port())
        );
    }
    let extension = &body[2 * width + 4..];
    match identity {
        None => assert!(extension.is_empty()),
        Some(identity) => {
            assert_eq!(extension[0], 0xd0);
            assert_eq!(usize::from(port(&extension[1..])), extension.len() - 3);
            assert_eq!(&extension[3..], identity.as_str().as_bytes());
        }
    }
});
