//! A pod is reached at its own address: on another node in a tunnel, on its own node on the fast
//! path.

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::connections::{TIMEOUT, sniffed};

#[test]
fn a_pod_of_another_node_answers_at_its_address() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    for (client, server) in [
        (world.pod("a", 0), world.pod("b", 0)),
        (world.pod("b", 1), world.pod("a", 1)),
    ] {
        let running = server.serve(Kind::Http, 8080).unwrap();
        for family in Family::BOTH {
            let to = server.at(family, 8080);
            let (answer, seen) = sniffed(&world, "by-pod-address", || {
                client.enter(|| traffic::get(to, "by-pod-address", TIMEOUT))
            });
            let answer = answer.unwrap();
            assert_eq!(answer.marker, "by-pod-address");
            assert_eq!(answer.local, to);
            assert_eq!(seen.marker_packets, 0, "{to}: {seen:?}");
            assert!(
                seen.packets > 0,
                "{to} was answered without crossing the link"
            );
        }
        assert_eq!(running.accepted(), 2);
    }
}

on_paths!(a_pod_of_the_same_node_answers_at_its_address: direct, joined, auto);
fn a_pod_of_the_same_node_answers_at_its_address(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = topology.server().at(family, 8080);
        let answer = topology.get(to, "near").unwrap();
        assert_eq!(answer.marker, "near");
        assert_eq!(answer.local, to);
        // Both ends see the same port, so there is no proxy in between.
        assert_eq!(answer.peer, answer.client_local);
    }
}
