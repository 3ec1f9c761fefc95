//! A proxy that is asked to end lets what is open finish, for a while, and leaves its pods
//! captured.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, answered, answered_soon, call, is_refused};

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

/// Says something to an echo and hears it again.
fn speak(mut stream: &TcpStream, number: u32) -> io::Result<()> {
    let mut heard = [0; 4];
    stream.write_all(&number.to_be_bytes())?;
    stream.read_exact(&mut heard)?;
    assert_eq!(u32::from_be_bytes(heard), number);
    Ok(())
}

#[test]
fn open_connections_finish_before_the_proxy_ends() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_deadline(&world, "60s");
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for (node, family) in [("a", Family::V4), ("b", Family::V6)] {
        let stream = open(client, server.at(family, ECHO));
        speak(&stream, 0).unwrap();
        thread::scope(|scope| {
            let proxy = mesh.proxy(node);
            let ending = scope.spawn(|| proxy.terminate(2 * LIMIT));
            // New connections are refused from some moment on; the open one does not notice.
            let mut number = 0;
            let refused = scene::wait(|| {
                number += 1;
                speak(&stream, number).unwrap();
                call(client, server.at(family, HTTP)).err()
            });
            assert!(refused.is_some(), "node {node} still took new connections");
            for number in number + 1..number + 100 {
                speak(&stream, number).unwrap();
            }
            assert!(
                !ending.is_finished(),
                "node {node} ended over an open connection"
            );
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
            drop(stream);
            let status = ending.join().unwrap().unwrap();
            assert!(status.success(), "node {node}: {status}");
        });
        scene::no_panic(mesh.proxy(node));
        mesh.proxy(node).start().unwrap();
        answered_soon(client, server.at(family, HTTP));
    }
}

#[test]
fn the_deadline_ends_what_does_not_end_itself() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_deadline(&world, "1s");
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let stream = open(client, server.at(Family::V4, ECHO));
    speak(&stream, 7).unwrap();
    let started = Instant::now();
    let status = mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "it did not wait"
    );
    let end = (&stream).read(&mut [0; 1]);
    let reset = matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
    assert!(reset, "a cut connection looked like {end:?}");
    scene::no_panic(mesh.proxy("a"));
}

#[test]
fn a_proxy_that_ended_leaves_its_pods_captured() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    answered(client, server.at(Family::V4, HTTP));
    let status = mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    for family in Family::BOTH {
        let outcome = call(client, server.at(family, HTTP));
        assert!(is_refused(&outcome), "outbound: {outcome:?}");
        let outcome = call(world.outside(), client.at(family, HTTP));
        assert!(is_refused(&outcome), "inbound: {outcome:?}");
    }
    mesh.proxy("a").start().unwrap();
    answered_soon(client, server.at(Family::V6, HTTP));
    scene::unharmed(&mut mesh);
}
