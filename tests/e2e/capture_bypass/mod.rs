//! Attempts to bypass the capture of `connect()`. Each attempt is captured like any other
//! connection, or refused, and its data is never readable on the link between the nodes. On one
//! node it is authorized and takes the fast path like any other.
//!
//! The evidence: the client address that the server sees, a sniffer on the link that would find the
//! marker in plaintext, and the kernel's socket table.

mod namespaces;
mod processes;
mod sockets;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, FarEnd, World, far_end};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::connections::{TIMEOUT, addresses_of, sniffed};

const MARKER: &str = "bypass-attempt";

/// A complete request, which can be sent with the first packet.
fn request() -> String {
    format!("GET / HTTP/1.1\r\nhost: x\r\nx-marker: {MARKER}\r\nconnection: close\r\n\r\n")
}

/// The response to an attempt.
#[derive(Debug)]
struct Response {
    answer: String,
    far_end: Option<FarEnd>,
}

/// Sends the request, or the rest of it, and reads the whole answer.
fn request_over(mut stream: &TcpStream, rest: &[u8]) -> io::Result<Response> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(rest)?;
    // A socket with TCP_FASTOPEN_CONNECT has sent nothing before.
    let far_end = far_end(stream)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Response { answer, far_end })
}

/// The expected path of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expectation {
    /// The path of any other connection, with the pod's address.
    OnPath,
    /// Through the proxy, on any data path.
    ThroughProxy,
    /// As `OnPath`, through the proxy, or refused, depending on the kernel.
    OnPathOrRefused,
}

/// Tries a way of connecting in the client's pod, to all addresses of the server. On the fast path,
/// an ordinary connection creates the entry first.
fn attempt(
    data_path: DataPath,
    promise: Expectation,
    connect: impl Fn(SocketAddr) -> io::Result<Response> + Send + Sync,
) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    attempt_in(&topology, promise, connect);
}

fn attempt_in(
    topology: &Topology,
    promise: Expectation,
    connect: impl Fn(SocketAddr) -> io::Result<Response> + Send + Sync,
) {
    let client = topology.client();
    let _running = topology.serve(Kind::Http, 8080).unwrap();
    for to in addresses_of(topology.server()) {
        topology.get(to, "first").unwrap();
        let (outcome, seen) = sniffed(topology.world(), MARKER, || client.enter(|| connect(to)));
        assert_eq!(
            seen.marker_packets, 0,
            "{to}: the marker crossed the link in plaintext: {outcome:?}"
        );
        let Response { answer, far_end } = match outcome {
            Ok(response) => response,
            Err(error) if promise == Expectation::OnPathOrRefused => {
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
        let direct = matches!(far_end, Some(FarEnd::Elsewhere(_)));
        let expected = match promise {
            Expectation::OnPath => topology.data_path().bypasses_the_proxy(),
            Expectation::ThroughProxy => false,
            Expectation::OnPathOrRefused => direct,
        };
        assert_eq!(direct, expected, "{to}: {far_end:?}");
        assert!(
            seen.packets > 0 || topology.data_path() != DataPath::Tunnel,
            "{to}"
        );
    }
}

/// Verifies the test itself: without a mesh the link carries these requests in plaintext.
#[test]
fn without_a_mesh_the_link_carries_the_marker() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let (answer, seen) = sniffed(&world, MARKER, || {
            client.enter(|| request_over(&TcpStream::connect(to)?, request().as_bytes()))
        });
        assert!(answer.unwrap().answer.contains(MARKER));
        assert!(seen.marker_packets >= 2, "{seen:?}");
    }
}

fn mesh(world: &World) -> Mesh<'_> {
    Mesh::start(world).unwrap()
}
