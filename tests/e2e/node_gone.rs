//! The other node's proxy dies: its pods cannot be reached, in no way, until it is back.

use std::io::Read as _;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, dial, eventually, watched};

const MARKER: &str = "never-without-a-tunnel";

#[test]
fn requests_fail_while_the_other_proxy_is_gone_and_succeed_afterwards() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let running = server.serve(Kind::Http, 8080).unwrap();
    let ask = |family| client.enter(|| traffic::get(server.at(family, 8080), MARKER, PATIENCE));
    let mut open = Vec::new();
    for family in Family::BOTH {
        ask(family).unwrap();
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
            "an orderly end of a connection that broke: {outcome:?}"
        );
    }
    let accepted = running.accepted();
    let ((), seen) = watched(&world, MARKER, || {
        for family in Family::BOTH {
            let outcome = ask(family);
            assert!(outcome.is_err(), "{outcome:?}");
        }
    });
    assert_eq!(seen.hits, 0, "{seen:?}");
    assert_eq!(
        running.accepted(),
        accepted,
        "a connection arrived without a proxy"
    );

    mesh.proxy("b").start().unwrap();
    for family in Family::BOTH {
        let answer = eventually("an answer after the restart", || ask(family).ok());
        assert_eq!(answer.peer.ip(), client.address(family));
    }
}
