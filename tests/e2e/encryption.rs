//! Traffic between pods of different nodes is encrypted on the link between the nodes.

use ztunnel_tests::net::{Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::TLS_1_3;
use ztunnel_tests::traffic::{self, Kind};

use crate::connections::{TIMEOUT, addresses_of, sniffed};

const MARKER: &str = "the-secret-of-this-test";

fn send_request(client: &Host, to: std::net::SocketAddr) {
    let answer = client.enter(|| traffic::get(to, MARKER, TIMEOUT)).unwrap();
    assert_eq!(answer.marker, MARKER);
}

#[test]
fn the_payload_crosses_the_link_in_plaintext_only_without_a_mesh() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    // Without a mesh there is no route to service addresses.
    for to in addresses_of(server).into_iter().take(2) {
        let ((), seen) = sniffed(&world, MARKER, || send_request(client, to));
        assert!(
            seen.marker_packets >= 2,
            "expected the request and its answer: {seen:?}"
        );
        assert!(seen.handshakes.is_empty());
    }
    let _mesh = Mesh::start(&world).unwrap();
    for to in addresses_of(server) {
        let ((), seen) = sniffed(&world, MARKER, || send_request(client, to));
        assert_eq!(seen.marker_packets, 0, "{to}: {seen:?}");
        assert!(seen.packets > 0, "{to}: no packet crossed the link");
    }
}

#[test]
fn tunnels_use_tls_1_3() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    let ((), seen) = sniffed(&world, MARKER, || {
        for to in addresses_of(server) {
            send_request(client, to);
        }
    });
    assert!(!seen.handshakes.is_empty(), "{seen:?}");
    for handshake in &seen.handshakes {
        assert_eq!(handshake.version, TLS_1_3, "{handshake:?}");
        assert_eq!(handshake.server.port(), 15008);
    }
}
