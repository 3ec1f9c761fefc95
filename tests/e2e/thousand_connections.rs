//! A thousand connections at the same time, each of them alive.

use std::thread;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::{self, End, Kind, tune};

use crate::ends::{PATIENCE, eventually};

const THREADS: usize = 10;
const EACH: usize = 100;
const CLOSED: &str = "istio_tcp_connections_closed_total";

on_lanes!(a_thousand_connections_are_open_and_answer: tunnel, direct, joined, auto);
fn a_thousand_connections_are_open_and_answer(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    // Only now, so that the proxies have the limit that they find and set themselves.
    tune::raise_file_limit().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let running = scene.serve(Kind::Http, 8080).unwrap();
    let mut open: Vec<End> = Vec::new();
    thread::scope(|scope| {
        let dialling: Vec<_> = (0..THREADS)
            .map(|thread| {
                let family = Family::BOTH[thread % 2];
                let to = server.at(family, 8080);
                let scene = &scene;
                scope.spawn(move || {
                    (0..EACH)
                        .map(|_| scene.dial(client, to).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for streams in dialling {
            open.extend(streams.join().unwrap());
        }
    });
    assert_eq!(open.len(), THREADS * EACH);
    for round in ["first", "second"] {
        for stream in &mut open {
            let answer = traffic::get_over(stream, round, PATIENCE).unwrap();
            assert_eq!(answer.marker, round);
        }
    }
    eventually("nothing but what was dialled has arrived", || {
        (running.accepted() == scene.knocks()).then_some(())
    });
    drop(open);
    for (node, reporter) in [("a", "source"), (lane.server_node(), "destination")] {
        let proxy = mesh.proxy(node);
        eventually("every connection is counted as closed, once", || {
            let closed = proxy
                .metrics()
                .unwrap()
                .sum(CLOSED, &[("reporter", reporter)]);
            (closed == scene.knocks() as f64).then_some(())
        });
        assert!(proxy.alive());
    }
}
