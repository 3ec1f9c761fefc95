//! A service's address leads to a backend, and its port to the backend's own.

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, dial};
use std::io::Read as _;

#[test]
fn the_port_of_a_service_leads_to_the_port_of_its_backend() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, 8080).unwrap();
    let _same = server.serve(Kind::Http, 9000).unwrap();
    let service = Mesh::service(server);
    for family in Family::BOTH {
        for (port, target) in [(80, 8080), (8080, 8080), (9000, 9000)] {
            let to = service.at(family, port);
            let answer = client
                .enter(|| traffic::get(to, "mapped", PATIENCE))
                .unwrap();
            assert_eq!(answer.local, server.at(family, target), "{to}");
            assert_eq!(answer.marker, "mapped");
        }
    }
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    // It listens on that port, but the service does not lead there.
    let running = server.serve(Kind::First, 4444).unwrap();
    for family in Family::BOTH {
        let to = Mesh::service(server).at(family, 4444);
        let outcome = dial(client, to).and_then(|mut stream| stream.read(&mut [0; 16]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    assert_eq!(running.accepted(), 0);
}
