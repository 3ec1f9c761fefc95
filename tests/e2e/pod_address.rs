//! A pod is reached at its own address: on another node through both proxies, on its own node
//! through none.

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, watched};

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
            let (answer, seen) = watched(&world, "by-pod-address", || {
                client.enter(|| traffic::get(to, "by-pod-address", PATIENCE))
            });
            let answer = answer.unwrap();
            assert_eq!(answer.marker, "by-pod-address");
            assert_eq!(answer.local, to);
            assert_eq!(seen.hits, 0, "{to}: {seen:?}");
            assert!(
                seen.packets > 0,
                "{to} was answered without crossing the link"
            );
        }
        assert_eq!(running.accepted(), 2);
    }
}

on_lanes!(a_pod_of_the_same_node_answers_at_its_address: direct, joined, auto);
fn a_pod_of_the_same_node_answers_at_its_address(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let _running = scene.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = scene.server().at(family, 8080);
        let answer = scene.get(to, "near").unwrap();
        assert_eq!(answer.marker, "near");
        assert_eq!(answer.local, to);
        // The very same port at both ends: there is nobody in between.
        assert_eq!(answer.peer, answer.client_local);
    }
}
