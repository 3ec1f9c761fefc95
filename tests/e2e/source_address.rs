//! The server sees the client's own address, also in a tunnel.

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::Kind;

use crate::connections::addresses_of;

on_paths!(the_server_sees_the_client_pods_address: tunnel, direct, joined, auto);
fn the_server_sees_the_client_pods_address(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::Http, 8080).unwrap();
    for client in topology.clients() {
        for to in addresses_of(topology.server()) {
            let answer = topology.get_from(client, to, "who").unwrap();
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
