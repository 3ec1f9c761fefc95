//! A port on which nobody listens: the client learns it at once, not by a timeout.

use std::io::Read as _;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, dial};

const SOON: Duration = Duration::from_secs(1);

#[test]
fn the_client_learns_within_a_second_that_nobody_listens() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        // The tunnel itself works.
        client
            .enter(|| traffic::get(server.at(family, 8080), "x", PATIENCE))
            .unwrap();
        let service = Mesh::service(server);
        for to in [server.at(family, 9999), service.at(family, 9000)] {
            // The fastest of three: the machine may be busy with something else.
            let fastest = (0..3)
                .map(|_| {
                    let started = Instant::now();
                    let outcome = dial(client, to).and_then(|mut stream| stream.read(&mut [0]));
                    assert!(outcome.is_err(), "{to}: {outcome:?}");
                    started.elapsed()
                })
                .min();
            assert!(fastest < Some(SOON), "{to}: {fastest:?}");
        }
    }
}
