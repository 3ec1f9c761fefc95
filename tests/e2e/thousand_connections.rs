//! A thousand open connections work at the same time.

use std::thread;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::{self, Kind, Stream, tune};

use crate::connections::{TIMEOUT, eventually};

const THREADS: usize = 10;
const EACH: usize = 100;
const CLOSED: &str = "istio_tcp_connections_closed_total";

on_paths!(a_thousand_open_connections_answer: tunnel, direct, joined, auto);
fn a_thousand_open_connections_answer(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    // Raised after the start of the proxies, so that they raise their own limit.
    tune::raise_file_limit().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let running = topology.serve(Kind::Http, 8080).unwrap();
    let mut open: Vec<Stream> = Vec::new();
    thread::scope(|scope| {
        let dialling: Vec<_> = (0..THREADS)
            .map(|thread| {
                let family = Family::BOTH[thread % 2];
                let to = server.at(family, 8080);
                let topology = &topology;
                scope.spawn(move || {
                    (0..EACH)
                        .map(|_| topology.dial(client, to).unwrap())
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
            let answer = traffic::get_over(stream, round, TIMEOUT).unwrap();
            assert_eq!(answer.marker, round);
        }
    }
    eventually("all dialled connections have been accepted", || {
        (running.accepted() == topology.dialled()).then_some(())
    });
    drop(open);
    for (node, reporter) in [("a", "source"), (data_path.server_node(), "destination")] {
        let proxy = mesh.proxy(node);
        eventually("every connection is counted as closed, once", || {
            let closed = proxy
                .metrics()
                .unwrap()
                .sum(CLOSED, &[("reporter", reporter)]);
            (closed == topology.dialled() as f64).then_some(())
        });
        assert!(proxy.alive());
    }
}
