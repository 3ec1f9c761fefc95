//! Peers that do not speak the protocol, or never finish a sentence of it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, World};

use super::{HASTE, Stage};
use crate::peer::{client, client_config, dial};
use crate::scene::LIMIT;

/// A ClientHello as TLS 1.2 has it: without the extension that offers a later version.
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

/// Reads until the other end is done; an error is an end, too, but waiting too long is none.
fn ends(mut stream: &TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("no end in {LIMIT:?}")
            }
            Err(_reset) => return all,
        }
    }
}

#[test]
fn what_is_no_tls_is_refused() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
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
        let to = stage.hbone(family);
        for (name, bytes) in &cases {
            let said = stage.attack(|| {
                let mut stream = dial(to).unwrap();
                // The proxy may hang up before it was told everything.
                drop(stream.write_all(bytes));
                ends(&stream)
            });
            // Nothing, or an alert and no more.
            assert!(said.is_empty() || said[0] == 21, "{name}: {said:02x?}");
            if *name == "TLS 1.2" {
                assert_eq!(said, [21, 3, 3, 0, 2, 2, 70], "an alert: protocol version");
            }
        }
        for cut in [1, 5, 40, hello.len() - 1] {
            stage.attack(|| drop(dial(to).unwrap().write_all(&hello[..cut])));
        }
    }
    stage.stands();
}

#[test]
fn only_http_2_is_negotiated() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let to = stage.hbone(Family::V4);
    for protocols in [&[][..], &[&b"http/1.1"[..]], &[b"h3", b"http/1.0"]] {
        let leaf = stage.stolen();
        let outcome = stage.attack(|| {
            let mut stream = client(to, &client_config(Some(leaf), protocols))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: b\r\n\r\n")?;
            stream.read(&mut [0; 100])
        });
        assert!(
            matches!(outcome, Err(_) | Ok(0)),
            "{protocols:?}: {outcome:?}"
        );
    }
    stage.stands();
}

#[test]
fn a_handshake_that_never_ends_is_given_up() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::hasty(&world);
    let hello = hello_of_tls_1_2();
    for family in Family::BOTH {
        let to = stage.hbone(family);
        // Silent, and silent after half a message.
        for begun in [0, hello.len() / 2] {
            let after = stage.attack(|| {
                let started = Instant::now();
                let mut stream = dial(to).unwrap();
                // Where this thread was late, the proxy may have given it up.
                drop(stream.write_all(&hello[..begun]));
                assert!(ends(&stream).is_empty());
                started.elapsed()
            });
            assert!(
                after >= HASTE.mul_f64(0.75),
                "given up after {after:?} already"
            );
        }
        // A byte at a time does not win more time.
        let sent = stage.attack(|| {
            let mut stream = dial(to).unwrap();
            let mut trickle = hello.iter().cycle().take(400);
            trickle.position(|byte| {
                thread::sleep(Duration::from_millis(50));
                stream.write_all(&[*byte]).is_err()
            })
        });
        assert!(sent.is_some(), "20 seconds were not too long");
        stage
            .mesh
            .proxy("b")
            .wait_for_log("handshake_timeout", LIMIT)
            .unwrap();
    }
    stage.stands();
}

#[test]
fn a_session_without_http_2_is_given_up() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::hasty(&world);
    for family in Family::BOTH {
        let (to, leaf) = (stage.hbone(family), stage.stolen());
        let outcome = stage.attack(|| {
            let mut stream = client(to, &client_config(Some(leaf), &[b"h2"])).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map_err(|error| error.kind())
        });
        let gone = !matches!(outcome, Err(io::ErrorKind::WouldBlock));
        assert!(gone, "the session was still there after {LIMIT:?}");
    }
    stage.stands();
}
