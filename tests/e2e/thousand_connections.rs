//! A thousand connections at the same time, each of them alive.

use std::net::TcpStream;
use std::thread;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind, tune};

use crate::ends::{PATIENCE, dial, eventually};

const THREADS: usize = 10;
const EACH: usize = 100;
const CLOSED: &str = "istio_tcp_connections_closed_total";

#[test]
fn a_thousand_connections_are_open_and_answer() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    // Only now, so that the proxies have the limit that they find and set themselves.
    tune::raise_file_limit().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let running = server.serve(Kind::Http, 8080).unwrap();
    let mut open: Vec<TcpStream> = Vec::new();
    thread::scope(|scope| {
        let dialling: Vec<_> = (0..THREADS)
            .map(|thread| {
                let family = Family::BOTH[thread % 2];
                let to = server.at(family, 8080);
                scope.spawn(move || {
                    (0..EACH)
                        .map(|_| dial(client, to).unwrap())
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
    assert_eq!(running.accepted(), (THREADS * EACH) as u64);
    drop(open);
    for node in ["a", "b"] {
        let proxy = mesh.proxy(node);
        eventually("every connection is counted as closed", || {
            (proxy.metrics().unwrap().sum(CLOSED, &[]) >= 1000.0).then_some(())
        });
        assert!(proxy.alive());
    }
}
