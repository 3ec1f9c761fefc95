//! Connections between two pods on one link are destroyed, by the kernel and by packets.

mod world;

use std::io::Write as _;
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket};

use self::world::{JoinMode, Side, World, at, error_of, is_broken, reader, seen};
use super::diag::Diag;
use super::segment::{Kind, Segment};
use super::sniffer::Sniffer;
use super::{Connection, DestroyMethod, Failure, ListedSocket, Outcome};

/// Each method, from each side.
const TABLE: [(DestroyMethod, Side); 4] = [
    (DestroyMethod::Kernel, Side::Client),
    (DestroyMethod::Kernel, Side::Server),
    (DestroyMethod::Packets, Side::Client),
    (DestroyMethod::Packets, Side::Server),
];

/// Where the server listens, and what the client dials.
const FAMILIES: [(&str, &str); 4] = [
    ("10.11.0.2:80", "10.11.0.2:80"),
    ("[fd11::2]:80", "[fd11::2]:80"),
    // Either end, or both, in an IPv6 socket with v4-mapped addresses.
    ("[::]:80", "10.11.0.2:80"),
    ("[::]:80", "[::ffff:10.11.0.2]:80"),
];

#[test]
#[ignore = "needs root"]
fn both_ends_get_a_reset_and_other_connections_stay() {
    let world = World::new();
    for (method, side) in TABLE {
        for (listen, dial) in FAMILIES {
            let listener = world.listen(listen);
            let ends = world.connect(&listener, dial);
            let neighbour = world.connect(&listener, dial);
            let case = format!("{method:?} {side:?} {listen} {dial}");
            let readers = [reader(&ends.client), reader(&ends.server)];
            let connection = ends.seen_by(side);
            let outcome = world.destroy_one(method, side, connection);
            assert!(matches!(outcome, Outcome::Destroyed), "{case}: {outcome:?}");
            for reader in readers {
                let error = reader.join().unwrap().expect_err(&case);
                assert!(is_broken(&error), "{case}: {error}");
            }
            assert!(neighbour.is_alive(), "{case}");
            assert!(world.connect(&listener, dial).is_alive(), "{case}: listens");
            let outcome = world.destroy_one(method, side, connection);
            assert!(matches!(outcome, Outcome::Gone), "{case}: {outcome:?}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn addresses_may_be_given_v4_mapped_or_not() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        for (listen, dial) in FAMILIES {
            let listener = world.listen(listen);
            let ends = world.connect(&listener, dial);
            let Connection { local, remote, .. } = ends.seen_by(Side::Client);
            let other = |address: std::net::SocketAddr| match address.ip() {
                std::net::IpAddr::V4(v4) => (v4.to_ipv6_mapped(), address.port()).into(),
                std::net::IpAddr::V6(v6) => (v6.to_canonical(), address.port()).into(),
            };
            let connection = Connection {
                local: other(local),
                remote: other(remote),
                cookie: None,
            };
            let outcome = world.destroy_one(method, Side::Client, connection);
            assert!(
                matches!(outcome, Outcome::Destroyed),
                "{method:?} {dial}: {outcome:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_connection_whose_handshake_is_unanswered() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        for unreachable in ["10.99.0.1:80", "[fd99::1]:80"] {
            let socket = world.socket(Domain::for_address(at(unreachable)));
            socket.set_nonblocking(true).unwrap();
            socket.connect(&at(unreachable).into()).unwrap_err();
            let connection = Connection {
                local: socket.local_addr().unwrap().as_socket().unwrap(),
                remote: at(unreachable),
                cookie: None,
            };
            let outcome = world.destroy_one(method, Side::Client, connection);
            assert!(
                matches!(outcome, Outcome::Destroyed),
                "{method:?} {unreachable}: {outcome:?}"
            );
            let error = socket.take_error().unwrap().unwrap();
            assert!(is_broken(&error), "{method:?} {unreachable}: {error}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_connection_whose_handshake_the_listener_has_answered() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        for (client, server) in [
            ("10.99.0.1:5555", "10.11.0.2:80"),
            ("[fd99::1]:5555", "[fd11::2]:80"),
        ] {
            let listener = world.listen(server);
            let connection = Connection {
                local: at(server),
                remote: at(client),
                cookie: None,
            };
            let neighbour = world.connect(&listener, server);
            // The client sends nothing more.
            let first = Segment {
                kind: Kind::Syn,
                from: at(client),
                to: at(server),
                sequence: 1,
                acknowledgement: 0,
                data: &[],
            };
            let sent = world.server.visit(|| {
                // The observed connection does not matter: this sniffer only sends.
                let neighbour = neighbour.seen_by(Side::Server);
                let found = Diag::open().unwrap().find(&[neighbour]).unwrap();
                let target = ListedSocket {
                    connection: neighbour,
                    found: found[0].unwrap(),
                };
                Sniffer::open(&[target]).unwrap().send(&first)
            });
            sent.unwrap().unwrap();
            let outcome = world.destroy_one(method, Side::Server, connection);
            assert!(
                matches!(outcome, Outcome::Destroyed),
                "{method:?} {server}: {outcome:?}"
            );
            let dial = || world.connect(&listener, server).is_alive();
            assert!(dial(), "{method:?} {server}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn half_closed_connections() {
    let world = World::new();
    for (method, side) in TABLE {
        for (listen, dial) in FAMILIES {
            for closes in [Side::Client, Side::Server] {
                let listener = world.listen(listen);
                let ends = world.connect(&listener, dial);
                let case = format!("{method:?} {side:?} {dial} closed by {closes:?}");
                let closer = match closes {
                    Side::Client => &ends.client,
                    Side::Server => &ends.server,
                };
                closer.shutdown(Shutdown::Write).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                let outcome = world.destroy_one(method, side, ends.seen_by(side));
                assert!(matches!(outcome, Outcome::Destroyed), "{case}: {outcome:?}");
                for end in [&ends.client, &ends.server] {
                    let error = error_of(end).unwrap_or_else(|| panic!("{case}: no error"));
                    assert!(is_broken(&error), "{case}: {error}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_connection_that_one_end_has_closed() {
    let world = World::new();
    for (method, side) in TABLE {
        let listener = world.listen("10.11.0.2:80");
        let ends = world.connect(&listener, "10.11.0.2:80");
        let connection = ends.seen_by(side);
        let (closed, open) = match side {
            Side::Client => (ends.client, ends.server),
            Side::Server => (ends.server, ends.client),
        };
        drop(closed);
        std::thread::sleep(Duration::from_millis(5));
        // No process has the socket open; the kernel waits for the other end.
        let outcome = world.destroy_one(method, side, connection);
        assert!(
            matches!(outcome, Outcome::Destroyed),
            "{method:?} {side:?}: {outcome:?}"
        );
        let other = match side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let reversed = Connection {
            local: connection.remote,
            remote: connection.local,
            cookie: None,
        };
        // Whether the other end got a reset depends on the kernel; destroyed from its side it does.
        let outcome = world.destroy_one(method, other, reversed);
        assert!(!matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        let error = error_of(&open).unwrap();
        assert!(is_broken(&error), "{method:?} {side:?}: {error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_thousand_at_once() {
    let world = World::new();
    for (method, side) in TABLE {
        for (listen, dial) in FAMILIES {
            let listener = world.listen(listen);
            let all: Vec<JoinMode> = (0..1000).map(|_| world.connect(&listener, dial)).collect();
            let neighbour = world.connect(&listener, dial);
            let connections: Vec<_> = all.iter().map(|ends| ends.seen_by(side)).collect();
            let started = Instant::now();
            world.destroy_all(method, side, &connections);
            let took = started.elapsed();
            println!("1000 connections, {method:?} from {side:?}, {listen} {dial}: {took:?}");
            // Generous for a busy machine; on an idle one packets take 0.2 s.
            assert!(took < Duration::from_secs(5), "{took:?}");
            for end in all.iter().flat_map(|ends| [&ends.client, &ends.server]) {
                assert!(is_broken(&error_of(end).unwrap()));
            }
            assert!(neighbour.is_alive());
        }
    }
}

#[test]
#[ignore = "needs root"]
fn connections_full_of_traffic() {
    let world = World::new();
    for (method, side) in TABLE {
        for (up, down) in [(true, false), (false, true), (true, true)] {
            let listener = world.listen("[::]:80");
            let all: Vec<JoinMode> = (0..4)
                .map(|_| world.connect(&listener, "10.11.0.2:80"))
                .collect();
            let carried = Arc::new(AtomicU64::new(0));
            let enough = Arc::new(AtomicBool::new(false));
            let mut threads = Vec::new();
            for ends in &all {
                let pairs = [(&ends.client, &ends.server), (&ends.server, &ends.client)];
                for ((from, to), _) in pairs.into_iter().zip([up, down]).filter(|(_, on)| *on) {
                    threads.push(pour(from, carried.clone(), enough.clone()));
                    let reader = reader(to);
                    let case = format!("{method:?} {side:?} up {up} down {down}");
                    threads.push(std::thread::spawn(move || {
                        let read = reader.join().unwrap();
                        // A socket reports its error once, perhaps to the thread that writes.
                        let has_seen_end =
                            up && down && read.as_ref().is_ok_and(|length| *length == 0);
                        assert!(
                            has_seen_end || read.as_ref().is_err_and(is_broken),
                            "{case}: {read:?}"
                        );
                    }));
                }
            }
            std::thread::sleep(Duration::from_millis(100));
            let connections: Vec<_> = all.iter().map(|ends| ends.seen_by(side)).collect();
            let before = carried.load(Ordering::Relaxed);
            let started = Instant::now();
            world.destroy_all(method, side, &connections);
            let took = started.elapsed();
            println!("{method:?} {side:?} up {up} down {down}: {took:?} after {before} bytes");
            enough.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap();
            }
        }
    }
}

/// Writes until the connection breaks.
fn pour(
    to: &std::net::TcpStream,
    carried: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let mut to = to.try_clone().unwrap();
    std::thread::spawn(move || {
        let bytes = vec![0; 1 << 16];
        while let Ok(written) = to.write(&bytes) {
            carried.fetch_add(written as u64, Ordering::Relaxed);
            if enough.load(Ordering::Relaxed) {
                // Still connected after the end: the test has failed already.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    })
}

#[test]
#[ignore = "needs root"]
fn a_reader_that_does_not_read_and_bytes_that_were_not_read() {
    let world = World::new();
    for (method, side) in TABLE {
        let listener = world.listen("10.11.0.2:80");
        let mut ends = world.connect(&listener, "10.11.0.2:80");
        ends.client.set_nonblocking(true).unwrap();
        while ends.client.write(&[1; 4096]).is_ok() {}
        let outcome = world.destroy_one(method, side, ends.seen_by(side));
        assert!(
            matches!(outcome, Outcome::Destroyed),
            "{method:?} {side:?}: {outcome:?}"
        );
        for end in [&ends.client, &ends.server] {
            let error = error_of(end).unwrap();
            assert!(is_broken(&error), "{method:?} {side:?}: {error}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_listener_of_a_connection_that_is_gone_is_left_alone() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        let listener = world.listen("10.11.0.2:80");
        let connection = Connection {
            local: at("10.11.0.2:80"),
            remote: at("10.11.0.1:5555"),
            cookie: None,
        };
        let outcome = world.destroy_one(method, Side::Server, connection);
        assert!(matches!(outcome, Outcome::Gone), "{method:?}: {outcome:?}");
        assert!(world.connect(&listener, "10.11.0.2:80").is_alive());
    }
}

#[test]
#[ignore = "needs root"]
fn a_later_connection_between_the_same_addresses_is_left_alone() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        let listener = world.listen("10.11.0.2:80");
        let ends = world.connect(&listener, "10.11.0.2:80");
        let cookie = SockRef::from(&ends.client).cookie().unwrap();
        let with = |cookie| Connection {
            cookie: NonZeroU64::new(cookie),
            ..ends.seen_by(Side::Client)
        };
        let outcome = world.destroy_one(method, Side::Client, with(cookie + 1));
        assert!(matches!(outcome, Outcome::Gone), "{method:?}: {outcome:?}");
        assert!(ends.is_alive());
        let outcome = world.destroy_one(method, Side::Client, with(cookie));
        assert!(
            matches!(outcome, Outcome::Destroyed),
            "{method:?}: {outcome:?}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_a_device_does_not_escape_the_kernel() {
    let world = World::new();
    let listener = world.listen("10.11.0.2:80");
    let connect = || {
        let socket = world.socket(Domain::IPV4);
        socket.bind_device(Some(b"pod0")).unwrap();
        socket.connect(&at("10.11.0.2:80").into()).unwrap();
        std::net::TcpStream::from(socket)
    };
    let stream = connect();
    let outcome = world.destroy_one(DestroyMethod::Packets, Side::Client, seen(&stream));
    let Outcome::Failed(failure @ Failure::Bound { .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(failure.reason(), "bound");
    let outcome = world.destroy_one(DestroyMethod::Kernel, Side::Client, seen(&stream));
    assert!(matches!(outcome, Outcome::Destroyed), "{outcome:?}");
    // From this side packets do not reach the socket; from the other side they do.
    drop(listener.accept().unwrap());
    let stream = connect();
    let (server, _) = listener.accept().unwrap();
    let outcome = world.destroy_one(DestroyMethod::Packets, Side::Server, seen(&server));
    assert!(matches!(outcome, Outcome::Destroyed), "{outcome:?}");
    assert!(is_broken(&error_of(&stream).unwrap()));
}

#[test]
#[ignore = "needs root"]
fn both_ends_in_one_pod() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        for address in ["127.0.0.1:80", "[::1]:80", "10.11.0.1:80"] {
            let ends = world.client.visit(|| {
                let listener = std::net::TcpListener::bind(at(address)).unwrap();
                let socket = Socket::new(
                    Domain::for_address(at(address)),
                    socket2::Type::STREAM,
                    None,
                );
                let socket = socket.unwrap();
                socket.connect(&at(address).into()).unwrap();
                let (server, _) = listener.accept().unwrap();
                let client = socket.into();
                JoinMode { client, server }
            });
            let ends = ends.unwrap();
            let both = [ends.seen_by(Side::Client), ends.seen_by(Side::Server)];
            let destroyed = world.destroy(method, Side::Client, &both);
            for outcome in &destroyed.outcomes {
                assert!(
                    !matches!(outcome, Outcome::Failed(_)),
                    "{method:?} {outcome:?}"
                );
            }
            assert!(
                is_broken(&error_of(&ends.client).unwrap()),
                "{method:?} {address}"
            );
            assert!(
                is_broken(&error_of(&ends.server).unwrap()),
                "{method:?} {address}"
            );
        }
    }
}

#[test]
#[ignore = "needs root"]
fn none_at_all() {
    let world = World::new();
    for method in [DestroyMethod::Kernel, DestroyMethod::Packets] {
        world.destroy(method, Side::Client, &[]);
    }
}
