//! Peers that do not use TLS, or never finish a message.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, World};

use super::{AttackSetup, HANDSHAKE_TIMEOUT};
use crate::assertions::LIMIT;
use crate::peer::{client, client_config, dial};

/// A ClientHello of TLS 1.2, without the supported_versions extension.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [
        // supported_groups: P-256
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        // signature_algorithms: ECDSA with P-256 and SHA-256
        &[0, 13, 0, 4, 0, 2, 4, 3],
        // ALPN: h2
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; ECDHE-ECDSA with AES-128-GCM; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(length(&extensions));
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(length(&body));
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(length(&message));
    record.extend(message);
    record
}

fn length(of: &[u8]) -> [u8; 2] {
    u16::try_from(of.len()).unwrap().to_be_bytes()
}

/// Reads until the connection ends or fails; a timeout fails the test.
fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("the connection has not ended within {LIMIT:?}")
            }
            Err(_reset) => return all,
        }
    }
}

#[test]
fn data_that_is_not_tls_is_refused() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let hello = hello_of_tls_1_2();
    let cases: [(&str, Vec<u8>); 7] = [
        ("zeros", vec![0; 5000]),
        ("ones", vec![0xff; 5000]),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: b\r\n\r\n".to_vec()),
        (
            "HTTP/2 without TLS",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        ),
        ("an alert", vec![21, 3, 3, 0, 2, 2, 40]),
        (
            "a record longer than allowed",
            [&[22, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat(),
        ),
        ("TLS 1.2", hello.clone()),
    ];
    for family in Family::BOTH {
        let to = setup.hbone(family);
        for (name, bytes) in &cases {
            let received = setup.attack(|| {
                let mut stream = dial(to).unwrap();
                // The proxy may close the connection before it has received everything.
                drop(stream.write_all(bytes));
                read_to_end(&stream)
            });
            // No data, or an alert.
            assert!(
                received.is_empty() || received[0] == 21,
                "{name}: {received:02x?}"
            );
            if *name == "TLS 1.2" {
                assert_eq!(
                    received,
                    [21, 3, 3, 0, 2, 2, 70],
                    "an alert: protocol version"
                );
            }
        }
        for length in [1, 5, 40, hello.len() - 1] {
            setup.attack(|| drop(dial(to).unwrap().write_all(&hello[..length])));
        }
    }
    setup.assert_still_serving();
}

#[test]
fn only_http_2_is_negotiated() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let to = setup.hbone(Family::V4);
    for protocols in [&[][..], &[&b"http/1.1"[..]], &[b"h3", b"http/1.0"]] {
        let leaf = setup.stolen_certificate();
        let outcome = setup.attack(|| {
            let mut stream = client(to, &client_config(Some(leaf), protocols))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n")?;
            stream.read(&mut [0; 100])
        });
        assert!(
            matches!(outcome, Err(_) | Ok(0)),
            "{protocols:?}: {outcome:?}"
        );
    }
    setup.assert_still_serving();
}

#[test]
fn an_incomplete_handshake_times_out() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::with_short_handshake_timeout(&world);
    let hello = hello_of_tls_1_2();
    for family in Family::BOTH {
        let to = setup.hbone(family);
        // One connection without data, and one with half a message.
        for begun in [0, hello.len() / 2] {
            let after = setup.attack(|| {
                let started = Instant::now();
                let mut stream = dial(to).unwrap();
                // If this thread was late, the proxy may have given up already.
                drop(stream.write_all(&hello[..begun]));
                assert!(read_to_end(&stream).is_empty());
                started.elapsed()
            });
            assert!(
                after >= HANDSHAKE_TIMEOUT.mul_f64(0.75),
                "given up after {after:?} already"
            );
        }
        // Sending one byte at a time does not extend the timeout.
        let sent = setup.attack(|| {
            let mut stream = dial(to).unwrap();
            let mut trickle = hello.iter().cycle().take(400);
            trickle.position(|byte| {
                thread::sleep(Duration::from_millis(50));
                stream.write_all(&[*byte]).is_err()
            })
        });
        assert!(sent.is_some(), "20 seconds were not too long");
        setup
            .mesh
            .proxy("b")
            .wait_for_log("handshake_timeout", LIMIT)
            .unwrap();
    }
    setup.assert_still_serving();
}

#[test]
fn a_session_without_http_2_times_out() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::with_short_handshake_timeout(&world);
    for family in Family::BOTH {
        let (to, leaf) = (setup.hbone(family), setup.stolen_certificate());
        let outcome = setup.attack(|| {
            let mut stream = client(to, &client_config(Some(leaf), &[b"h2"])).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map_err(|error| error.kind())
        });
        let gone = !matches!(outcome, Err(io::ErrorKind::WouldBlock));
        assert!(gone, "the session was still there after {LIMIT:?}");
    }
    setup.assert_still_serving();
}
