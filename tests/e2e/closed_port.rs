//! A port on which nobody listens: the client learns it at once, not by a timeout.

use std::io::Read as _;
use std::time::{Duration, Instant};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

const SOON: Duration = Duration::from_secs(1);

on_lanes!(the_client_learns_within_a_second_that_nobody_listens: tunnel, direct, joined, auto);
fn the_client_learns_within_a_second_that_nobody_listens(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        // The lane itself works.
        scene.get(server.at(family, 8080), "x").unwrap();
        let service = Mesh::service(server);
        for to in [server.at(family, 9999), service.at(family, 9000)] {
            // The fastest of three: the machine may be busy with something else.
            let fastest = (0..3)
                .map(|_| {
                    let started = Instant::now();
                    let outcome = scene
                        .knock(client, to)
                        .and_then(|mut end| end.read(&mut [0]));
                    assert!(outcome.is_err(), "{to}: {outcome:?}");
                    started.elapsed()
                })
                .min();
            assert!(fastest < Some(SOON), "{to}: {fastest:?}");
        }
    }
}
