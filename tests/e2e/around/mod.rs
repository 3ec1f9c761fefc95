//! Ways around the capture of `connect()`: each is captured like any other connection, or
//! refused; what is sent never shows on the link between the nodes. On one node each is judged
//! like any other, and goes past the proxy like any other.
//!
//! The witnesses are the server, which sees whose connection it is, the packet socket on the
//! link, which would see the marker if the connection had not gone into a tunnel, and the
//! kernel's table of sockets.

mod namespaces;
mod processes;
mod sockets;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, World, remote_end};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::ends::{PATIENCE, watched, ways_to};

const MARKER: &str = "around-the-hook";

/// One request, to be sent whole, with the first packet if need be.
fn request() -> String {
    format!("GET / HTTP/1.1\r\nhost: x\r\nx-marker: {MARKER}\r\nconnection: close\r\n\r\n")
}

/// What an attempt came to.
#[derive(Debug)]
struct Heard {
    answer: String,
    /// Whom the kernel had the connection with.
    remote: Option<SocketAddr>,
}

/// Sends the request, or what is left of it, and reads the whole answer.
fn ask_over(mut stream: &TcpStream, rest: &[u8]) -> io::Result<Heard> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let remote = remote_end(stream)?;
    stream.write_all(rest)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Heard { answer, remote })
}

/// What has to become of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// It takes the lane that any other connection takes, with the pod's address.
    OnLane,
    /// The proxy has it, whatever the lane.
    Carried,
    /// It takes its lane, or the proxy has it, or it fails: on kernels that differ, all are right.
    OnLaneOrRefused,
}

/// Tries a way of connecting, in the client's pod, to everything that the server is called by.
/// On the direct lane an ordinary connection has been there first, so that the verdict is known.
fn attempt(
    lane: Lane,
    promise: Promise,
    connect: impl Fn(SocketAddr) -> io::Result<Heard> + Send + Sync,
) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    attempt_in(&scene, promise, connect);
}

fn attempt_in(
    scene: &Scene,
    promise: Promise,
    connect: impl Fn(SocketAddr) -> io::Result<Heard> + Send + Sync,
) {
    let client = scene.client();
    let _running = scene.serve(Kind::Http, 8080).unwrap();
    for to in ways_to(scene.server()) {
        scene.get(to, "first").unwrap();
        let (outcome, seen) = watched(scene.world(), MARKER, || client.enter(|| connect(to)));
        assert_eq!(
            seen.hits, 0,
            "{to}: it crossed the link in the clear: {outcome:?}"
        );
        let Heard { answer, remote } = match outcome {
            Ok(heard) => heard,
            Err(error) if promise == Promise::OnLaneOrRefused => {
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
        let direct = remote.is_some_and(|remote| !remote.ip().is_loopback());
        let expected = match promise {
            Promise::OnLane => scene.lane().bypasses_the_proxy(),
            Promise::Carried => false,
            Promise::OnLaneOrRefused => direct,
        };
        assert_eq!(direct, expected, "{to}: {remote:?}");
        assert!(seen.packets > 0 || scene.lane() != Lane::Tunnel, "{to}");
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
        assert!(answer.unwrap().answer.contains(MARKER));
        assert!(seen.hits >= 2, "{seen:?}");
    }
}

fn mesh(world: &World) -> Mesh<'_> {
    Mesh::start(world).unwrap()
}
