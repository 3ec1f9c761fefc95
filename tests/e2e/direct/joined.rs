//! Where acceleration is on, the two ends of a direct connection are joined in the kernel: what
//! one writes is in the other's queue, whole and in order, and no packet carries it.

use std::thread;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::{self, Kind};

use crate::proof::{MARKER, PATIENCE, PORT, unharmed};

const BYTES: usize = 16 << 20;

#[test]
fn what_is_exchanged_is_right_and_not_sent_over_tcp() {
    let scene = Scene::set(Lane::Joined).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _echo = scene.serve(Kind::Echo, PORT).unwrap();
    let service = Mesh::service(scene.server());
    for family in Family::BOTH {
        for to in [scene.server().at(family, PORT), service.at(family, 80)] {
            let end = scene.dial(scene.client(), to).unwrap();
            traffic::exchange(&end, BYTES).unwrap();
            let over_tcp = end.received_over_tcp().unwrap();
            assert!(over_tcp < 1 << 20, "{to}: {over_tcp} bytes over TCP");
        }
    }
    unharmed(&mut mesh);
}

#[test]
fn what_is_said_later_never_becomes_a_packet() {
    let scene = Scene::set(Lane::Joined).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _http = scene.serve(Kind::Http, PORT).unwrap();
    let node = &scene.world().node("a").host;
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        let mut end = scene.dial(scene.client(), to).unwrap();
        // What comes before both ends know each other may go over TCP.
        traffic::get_over(&mut end, "first", PATIENCE).unwrap();
        let sniffer = Sniffer::on_link(node, &World::link_to_pod(2), MARKER.as_bytes()).unwrap();
        for _ in 0..100 {
            let answer = traffic::get_over(&mut end, MARKER, PATIENCE).unwrap();
            assert_eq!(answer.marker, MARKER);
        }
        thread::sleep(SETTLE);
        let seen = sniffer.finish().unwrap();
        assert_eq!(seen.hits, 0, "{family:?}: {seen:?}");
    }
    unharmed(&mut mesh);
}
