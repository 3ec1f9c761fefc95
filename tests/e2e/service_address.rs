//! A service address maps to a backend, and a service port to its target port.

use std::io::Read as _;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

on_paths!(a_service_port_maps_to_the_target_port_of_the_backend: tunnel, direct, joined, auto);
fn a_service_port_maps_to_the_target_port_of_the_backend(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let _servers = [8080, 9000].map(|port| topology.serve(Kind::Http, port).unwrap());
    let (server, service) = (topology.server(), Mesh::service(topology.server()));
    for family in Family::BOTH {
        for (port, target) in [(80, 8080), (8080, 8080), (9000, 9000)] {
            let to = service.at(family, port);
            let answer = topology.get(to, "mapped").unwrap();
            assert_eq!(answer.local, server.at(family, target), "{to}");
            assert_eq!(answer.marker, "mapped");
        }
    }
}

on_paths!(a_port_that_is_not_in_the_service_is_refused: tunnel, direct, joined, auto);
fn a_port_that_is_not_in_the_service_is_refused(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let server = topology.server();
    // The server listens on this port, but the service does not have it.
    let running = topology.serve(Kind::First, 4444).unwrap();
    for family in Family::BOTH {
        // The second time, too: the refusal creates no fast-path entry.
        for _ in 0..2 {
            let to = Mesh::service(server).at(family, 4444);
            let outcome = topology.dial_once(topology.client(), to);
            let outcome = outcome.and_then(|mut end| end.read(&mut [0; 16]));
            assert!(outcome.is_err(), "{to}: {outcome:?}");
        }
    }
    assert_eq!(running.accepted(), 0);
}
