//! A reset arrives as a reset: a broken connection never looks like a finished one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::Stream;

use crate::connections::{TIMEOUT, listen};

/// Exchanges a byte in both directions, so that the whole path exists.
fn exchange_byte(client: &mut Stream, server: &mut Stream) {
    client.write_all(b"!").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// Closes with a reset instead of a FIN (socket(7), `SO_LINGER` of zero).
fn abort(stream: Stream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

fn assert_read_is_reset(stream: &mut Stream, case: &str) {
    let outcome = stream.read(&mut [0; 64]);
    let kind = outcome.as_ref().map_err(std::io::Error::kind);
    assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{case}: {outcome:?}");
}

/// Polls SO_ERROR, without reading or writing: the stream has ended already.
fn assert_socket_error(stream: &Stream, case: &str) {
    let started = Instant::now();
    while started.elapsed() < TIMEOUT {
        if SockRef::from(stream).take_error().unwrap().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{case}: the socket has no error");
}

on_paths!(a_reset_arrives_at_the_peer: tunnel, direct, joined, auto);
fn a_reset_arrives_at_the_peer(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for family in Family::BOTH {
        let connect_pair = || {
            let to = topology.server().at(family, 8080);
            let (mut client, mut server) = topology.connect(to, &listener).unwrap();
            exchange_byte(&mut client, &mut server);
            (client, server)
        };
        let (mut client, server) = connect_pair();
        abort(server);
        assert_read_is_reset(&mut client, "the server resets");

        let (client, mut server) = connect_pair();
        abort(client);
        assert_read_is_reset(&mut server, "the client resets");

        let (mut client, server) = connect_pair();
        client.shutdown(Shutdown::Write).unwrap();
        abort(server);
        assert_read_is_reset(
            &mut client,
            "the server resets after the client's half-close",
        );

        let (client, mut server) = connect_pair();
        server.shutdown(Shutdown::Write).unwrap();
        abort(client);
        assert_read_is_reset(
            &mut server,
            "the client resets after the server's half-close",
        );

        // The end that has half-closed resets, and the peer sends nothing.
        let (client, mut server) = connect_pair();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 64]).unwrap(), 0);
        abort(client);
        assert_socket_error(&server, "the client resets after its own half-close");

        let (mut client, server) = connect_pair();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
        abort(server);
        assert_socket_error(&client, "the server resets after its own half-close");
    }
}

on_paths!(a_writer_gets_an_error_after_its_reader_has_closed: tunnel, direct, joined, auto);
fn a_writer_gets_an_error_after_its_reader_has_closed(data_path: DataPath) {
    write_to_closed_reader(
        data_path,
        &[
            (Family::V4, Writer::Client),
            (Family::V4, Writer::Server),
            (Family::V6, Writer::Client),
        ],
    );
}

on_paths!(a_server_gets_an_error_after_its_ipv6_client_has_closed: tunnel, direct, joined, auto);
/// The kernel answers data for a closed socket with a reset. A reset to `::1` uses the device of
/// its source address strictly (`rt6_need_strict`): from the pod's address it would leave through
/// `eth0`, which is why a captured IPv6 socket has the source address `::1`.
fn a_server_gets_an_error_after_its_ipv6_client_has_closed(data_path: DataPath) {
    write_to_closed_reader(data_path, &[(Family::V6, Writer::Server)]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Client,
    Server,
}

fn write_to_closed_reader(data_path: DataPath, cases: &[(Family, Writer)]) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for (family, writer) in cases {
        let to = topology.server().at(*family, 8080);
        let (mut client, mut server) = topology.connect(to, &listener).unwrap();
        exchange_byte(&mut client, &mut server);
        let (mut writing, reading) = match writer {
            Writer::Client => (client, server),
            Writer::Server => (server, client),
        };
        // The reader closes while it has unread data.
        writing.write_all(&[1; 100_000]).unwrap();
        drop(reading);
        let chunk = vec![1; 1 << 20];
        let error = (0..1000).find_map(|_| writing.write_all(&chunk).err());
        let kind = error
            .expect("a gigabyte was written after the reader had closed")
            .kind();
        let is_expected = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(is_expected, "{family:?}, {writer:?} writes: {kind:?}");
    }
}
