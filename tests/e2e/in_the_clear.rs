//! Nothing that a pod says to a pod of another node can be read on the link between the nodes.

use ztunnel_tests::net::{Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::TLS_1_3;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, watched, ways_to};

const MARKER: &str = "the-secret-of-this-test";

fn ask(client: &Host, to: std::net::SocketAddr) {
    let answer = client.enter(|| traffic::get(to, MARKER, PATIENCE)).unwrap();
    assert_eq!(answer.marker, MARKER);
}

#[test]
fn the_link_shows_the_payload_without_a_mesh_and_hides_it_with_one() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    // Without a mesh nothing leads to service addresses.
    for to in ways_to(server).into_iter().take(2) {
        let ((), seen) = watched(&world, MARKER, || ask(client, to));
        assert!(seen.hits >= 2, "the request and its answer: {seen:?}");
        assert!(seen.handshakes.is_empty());
    }
    let _mesh = Mesh::start(&world).unwrap();
    for to in ways_to(server) {
        let ((), seen) = watched(&world, MARKER, || ask(client, to));
        assert_eq!(seen.hits, 0, "{to}: {seen:?}");
        assert!(seen.packets > 0, "{to}: nothing crossed the link at all");
    }
}

#[test]
fn tunnels_speak_tls_1_3() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    let ((), seen) = watched(&world, MARKER, || {
        for to in ways_to(server) {
            ask(client, to);
        }
    });
    assert!(!seen.handshakes.is_empty(), "{seen:?}");
    for handshake in &seen.handshakes {
        assert_eq!(handshake.version, TLS_1_3, "{handshake:?}");
        assert_eq!(handshake.server.port(), 15008);
    }
}
