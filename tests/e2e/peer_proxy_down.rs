//! While the proxy of the other node is down, its pods cannot be reached, not even in plaintext.

use std::io::Read as _;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::connections::{TIMEOUT, dial, eventually, sniffed};

const MARKER: &str = "only-in-a-tunnel";

#[test]
fn requests_fail_while_the_peer_proxy_is_down_and_succeed_afterwards() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let running = server.serve(Kind::Http, 8080).unwrap();
    let send_request =
        |family| client.enter(|| traffic::get(server.at(family, 8080), MARKER, TIMEOUT));
    let mut open = Vec::new();
    for family in Family::BOTH {
        send_request(family).unwrap();
        open.push(dial(client, server.at(family, 8080)).unwrap());
    }
    // Both connections have arrived.
    eventually("four connections", || {
        (running.accepted() == 4).then_some(())
    });

    mesh.proxy("b").kill().unwrap();
    for stream in &mut open {
        let outcome = stream.read(&mut [0]);
        assert!(
            outcome.is_err(),
            "expected a reset, not an orderly end: {outcome:?}"
        );
    }
    let accepted = running.accepted();
    let ((), seen) = sniffed(&world, MARKER, || {
        for family in Family::BOTH {
            let outcome = send_request(family);
            assert!(outcome.is_err(), "{outcome:?}");
        }
    });
    assert_eq!(seen.marker_packets, 0, "{seen:?}");
    assert_eq!(
        running.accepted(),
        accepted,
        "a connection arrived without a proxy"
    );

    mesh.proxy("b").start().unwrap();
    for family in Family::BOTH {
        let answer = eventually("an answer after the restart", || send_request(family).ok());
        assert_eq!(answer.peer.ip(), client.address(family));
    }
}
