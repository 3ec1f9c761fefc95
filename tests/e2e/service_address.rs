//! A service's address leads to a backend, and its port to the backend's own.

use std::io::Read as _;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

on_lanes!(the_port_of_a_service_leads_to_the_port_of_its_backend: tunnel, direct, joined, auto);
fn the_port_of_a_service_leads_to_the_port_of_its_backend(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let _servers = [8080, 9000].map(|port| scene.serve(Kind::Http, port).unwrap());
    let (server, service) = (scene.server(), Mesh::service(scene.server()));
    for family in Family::BOTH {
        for (port, target) in [(80, 8080), (8080, 8080), (9000, 9000)] {
            let to = service.at(family, port);
            let answer = scene.get(to, "mapped").unwrap();
            assert_eq!(answer.local, server.at(family, target), "{to}");
            assert_eq!(answer.marker, "mapped");
        }
    }
}

on_lanes!(a_port_that_the_service_does_not_have_is_refused: tunnel, direct, joined, auto);
fn a_port_that_the_service_does_not_have_is_refused(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let server = scene.server();
    // It listens on that port, but the service does not lead there.
    let running = scene.serve(Kind::First, 4444).unwrap();
    for family in Family::BOTH {
        // The second time too: no verdict has come of the first.
        for _ in 0..2 {
            let to = Mesh::service(server).at(family, 4444);
            let outcome = scene.knock(scene.client(), to);
            let outcome = outcome.and_then(|mut end| end.read(&mut [0; 16]));
            assert!(outcome.is_err(), "{to}: {outcome:?}");
        }
    }
    assert_eq!(running.accepted(), 0);
}
