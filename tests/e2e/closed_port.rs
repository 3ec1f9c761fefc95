//! A connection to a port without a listener is reset at once; the client does not run into a
//! timeout.

use std::io::Read as _;
use std::time::{Duration, Instant};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

const SOON: Duration = Duration::from_secs(1);

on_paths!(a_closed_port_resets_the_client_within_a_second: tunnel, direct, joined, auto);
fn a_closed_port_resets_the_client_within_a_second(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        // The path works.
        topology.get(server.at(family, 8080), "x").unwrap();
        let service = Mesh::service(server);
        for to in [server.at(family, 9999), service.at(family, 9000)] {
            // The fastest of three attempts, because the machine may be busy.
            let fastest = (0..3)
                .map(|_| {
                    let started = Instant::now();
                    let outcome = topology
                        .dial_once(client, to)
                        .and_then(|mut end| end.read(&mut [0]));
                    assert!(outcome.is_err(), "{to}: {outcome:?}");
                    started.elapsed()
                })
                .min();
            assert!(fastest < Some(SOON), "{to}: {fastest:?}");
        }
    }
}
