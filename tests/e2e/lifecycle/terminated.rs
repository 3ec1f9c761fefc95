//! After SIGTERM a proxy lets open connections finish until a deadline, and leaves its pods
//! captured.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, call, expect_answer, is_refused, wait_for_answer};

const ECHO: u16 = 9000;

fn mesh_with_deadline<'world>(world: &'world World, deadline: &'world str) -> Mesh<'world> {
    Mesh::builder(world)
        .settings(move |settings| settings.set_deadline(deadline))
        .start()
        .unwrap()
}

fn open(from: &Host, to: std::net::SocketAddr) -> TcpStream {
    let stream = from
        .enter(|| TcpStream::connect_timeout(&to, LIMIT))
        .unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends data to an echo and reads the echo.
fn exchange(mut stream: &TcpStream, number: u32) -> io::Result<()> {
    let mut received = [0; 4];
    stream.write_all(&number.to_be_bytes())?;
    stream.read_exact(&mut received)?;
    assert_eq!(u32::from_be_bytes(received), number);
    Ok(())
}

#[test]
fn open_connections_finish_before_the_proxy_exits() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_deadline(&world, "60s");
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for (node, family) in [("a", Family::V4), ("b", Family::V6)] {
        let stream = open(client, server.at(family, ECHO));
        exchange(&stream, 0).unwrap();
        thread::scope(|scope| {
            let proxy = mesh.proxy(node);
            let ending = scope.spawn(|| proxy.terminate(2 * LIMIT));
            // New connections are refused after some time; open ones continue.
            let mut number = 0;
            let refused = assertions::wait(|| {
                number += 1;
                exchange(&stream, number).unwrap();
                call(client, server.at(family, HTTP)).err()
            });
            assert!(
                refused.is_some(),
                "node {node} still accepted new connections"
            );
            for number in number + 1..number + 100 {
                exchange(&stream, number).unwrap();
            }
            assert!(
                !ending.is_finished(),
                "the proxy of node {node} ended although a connection was open"
            );
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
            drop(stream);
            let status = ending.join().unwrap().unwrap();
            assert!(status.success(), "node {node}: {status}");
        });
        assertions::assert_no_panic(mesh.proxy(node));
        mesh.proxy(node).start().unwrap();
        wait_for_answer(client, server.at(family, HTTP));
    }
}

#[test]
fn open_connections_are_reset_at_the_deadline() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_deadline(&world, "1s");
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let stream = open(client, server.at(Family::V4, ECHO));
    exchange(&stream, 7).unwrap();
    let started = Instant::now();
    let status = mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "the proxy did not wait for the deadline"
    );
    let end = (&stream).read(&mut [0; 1]);
    let reset = matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
    assert!(reset, "expected a reset at the deadline, found {end:?}");
    assertions::assert_no_panic(mesh.proxy("a"));
}

#[test]
fn pods_stay_captured_after_the_proxy_has_ended() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    expect_answer(client, server.at(Family::V4, HTTP));
    let status = mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    for family in Family::BOTH {
        let outcome = call(client, server.at(family, HTTP));
        assert!(is_refused(&outcome), "outbound: {outcome:?}");
        let outcome = call(world.outside(), client.at(family, HTTP));
        assert!(is_refused(&outcome), "inbound: {outcome:?}");
    }
    mesh.proxy("a").start().unwrap();
    wait_for_answer(client, server.at(Family::V6, HTTP));
    assertions::assert_all_running(&mut mesh);
}
