//! An abort arrives as an abort: nobody takes a broken connection for a finished one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::End;

use crate::ends::{PATIENCE, listen};

/// Both ends have heard each other, so that the whole way exists.
fn greet(client: &mut End, server: &mut End) {
    client.write_all(b"!").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// Closes with a reset instead of a FIN (socket(7), `SO_LINGER` of zero).
fn abort(stream: End) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

fn hears_a_reset(stream: &mut End, case: &str) {
    let outcome = stream.read(&mut [0; 64]);
    let kind = outcome.as_ref().map_err(std::io::Error::kind);
    assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{case}: {outcome:?}");
}

/// Without reading or writing: the stream has ended already.
fn finds_an_error(stream: &End, case: &str) {
    let asked = Instant::now();
    while asked.elapsed() < PATIENCE {
        if SockRef::from(stream).take_error().unwrap().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{case}: nothing was heard of it");
}

on_lanes!(a_reset_arrives_at_the_other_end: tunnel, direct, joined, auto);
fn a_reset_arrives_at_the_other_end(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for family in Family::BOTH {
        let ends = || {
            let to = scene.server().at(family, 8080);
            let (mut client, mut server) = scene.connect(to, &listener).unwrap();
            greet(&mut client, &mut server);
            (client, server)
        };
        let (mut client, server) = ends();
        abort(server);
        hears_a_reset(&mut client, "the server resets");

        let (client, mut server) = ends();
        abort(client);
        hears_a_reset(&mut server, "the client resets");

        let (mut client, server) = ends();
        client.shutdown(Shutdown::Write).unwrap();
        abort(server);
        hears_a_reset(
            &mut client,
            "the server resets after the client's half-close",
        );

        let (client, mut server) = ends();
        server.shutdown(Shutdown::Write).unwrap();
        abort(client);
        hears_a_reset(
            &mut server,
            "the client resets after the server's half-close",
        );

        // The one that has half-closed resets, and the other says nothing.
        let (client, mut server) = ends();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0; 64]).unwrap(), 0);
        abort(client);
        finds_an_error(&server, "the client resets after its own half-close");

        let (mut client, server) = ends();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
        abort(server);
        finds_an_error(&client, "the server resets after its own half-close");
    }
}

on_lanes!(a_writer_learns_that_its_reader_is_gone: tunnel, direct, joined, auto);
fn a_writer_learns_that_its_reader_is_gone(lane: Lane) {
    writes_to_nobody(
        lane,
        &[
            (Family::V4, Writer::Client),
            (Family::V4, Writer::Server),
            (Family::V6, Writer::Client),
        ],
    );
}

on_lanes!(a_server_learns_that_its_ipv6_client_is_gone: tunnel, direct, joined, auto);
/// The kernel answers data for a socket that is gone with a reset. One that goes to `::1` takes
/// the device of the address it comes from, strictly (`rt6_need_strict`): from the pod's address it
/// would leave through `eth0`, which is why a captured IPv6 socket comes from `::1`.
fn a_server_learns_that_its_ipv6_client_is_gone(lane: Lane) {
    writes_to_nobody(lane, &[(Family::V6, Writer::Server)]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Client,
    Server,
}

fn writes_to_nobody(lane: Lane, cases: &[(Family, Writer)]) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for (family, writer) in cases {
        let to = scene.server().at(*family, 8080);
        let (mut client, mut server) = scene.connect(to, &listener).unwrap();
        greet(&mut client, &mut server);
        let (mut writing, reading) = match writer {
            Writer::Client => (client, server),
            Writer::Server => (server, client),
        };
        // It is in the middle of it, its data unread, when the reader ends.
        writing.write_all(&[1; 100_000]).unwrap();
        drop(reading);
        let chunk = vec![1; 1 << 20];
        let error = (0..1000).find_map(|_| writing.write_all(&chunk).err());
        let kind = error.expect("a gigabyte was written to nobody").kind();
        let told = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(told, "{family:?}, {writer:?} writes: {kind:?}");
    }
}
