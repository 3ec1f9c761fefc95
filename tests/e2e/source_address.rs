//! The server sees the client's own address, in a tunnel too.

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::Kind;

use crate::ends::ways_to;

on_lanes!(the_server_sees_the_address_of_the_pod_that_called: tunnel, direct, joined, auto);
fn the_server_sees_the_address_of_the_pod_that_called(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let _running = scene.serve(Kind::Http, 8080).unwrap();
    for client in scene.clients() {
        for to in ways_to(scene.server()) {
            let answer = scene.get_from(client, to, "who").unwrap();
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            assert_eq!(
                answer.peer.ip(),
                client.address(family),
                "{} to {to}",
                client.name
            );
        }
    }
}
