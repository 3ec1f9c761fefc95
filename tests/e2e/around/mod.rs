//! Ways around the capture of `connect()`: each is captured like any other connection, or
//! refused; what is sent never shows on the link between the nodes.
//!
//! The witnesses are the server, which sees whose connection it is, and the packet socket on
//! the link, which would see the marker if the connection had not gone into a tunnel.

mod namespaces;
mod processes;
mod sockets;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::ends::{PATIENCE, watched, ways_to};

const MARKER: &str = "around-the-hook";

/// One request, to be sent whole, with the first packet if need be.
fn request() -> String {
    format!("GET / HTTP/1.1\r\nhost: x\r\nx-marker: {MARKER}\r\nconnection: close\r\n\r\n")
}

/// Sends the request, or what is left of it, and reads the whole answer.
fn ask_over(mut stream: &TcpStream, rest: &[u8]) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(rest)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What has to become of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// It is captured: it arrives in a tunnel, with the pod's address.
    Captured,
    /// It is captured or it fails: on kernels that differ, both are right.
    CapturedOrRefused,
}

/// Tries a way of connecting, in pod `a-0`, to everything that pod `b-0` is called by.
fn attempt(
    world: &World,
    promise: Promise,
    connect: impl Fn(SocketAddr) -> io::Result<String> + Send + Sync,
) {
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for to in ways_to(server) {
        let (outcome, seen) = watched(world, MARKER, || client.enter(|| connect(to)));
        assert_eq!(
            seen.hits, 0,
            "{to}: it crossed the link in the clear: {outcome:?}"
        );
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) if promise == Promise::CapturedOrRefused => {
                println!("{to}: refused: {error}");
                continue;
            }
            Err(error) => panic!("{to}: {error}"),
        };
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let source = match client.address(family) {
            std::net::IpAddr::V4(v4) => format!("\"peer\":\"{v4}:"),
            std::net::IpAddr::V6(v6) => format!("\"peer\":\"[{v6}]:"),
        };
        assert!(answer.contains(MARKER), "{to}: {answer}");
        assert!(answer.contains(&source), "{to}: {answer}");
        assert!(seen.packets > 0, "{to}");
    }
}

/// The test of the tests: without a mesh the link shows what these requests say.
#[test]
fn without_a_mesh_the_link_shows_the_marker() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let (answer, seen) = watched(&world, MARKER, || {
            client.enter(|| ask_over(&TcpStream::connect(to)?, request().as_bytes()))
        });
        assert!(answer.unwrap().contains(MARKER));
        assert_eq!(seen.hits, 2, "{seen:?}");
    }
}

fn mesh(world: &World) -> Mesh<'_> {
    Mesh::start(world).unwrap()
}
