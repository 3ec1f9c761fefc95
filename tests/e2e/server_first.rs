//! A server may send first: no part of the path waits for the client's first byte.

use std::io::{Read as _, Write as _};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::{GREETING, Kind};

use crate::connections::addresses_of;

on_paths!(the_servers_greeting_arrives_before_the_client_sends_data: tunnel, direct, joined, auto);
fn the_servers_greeting_arrives_before_the_client_sends_data(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::First, 8080).unwrap();
    for to in addresses_of(topology.server()) {
        let mut stream = topology.dial(topology.client(), to).unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING, "{to}");
        stream.write_all(b"EHLO").unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"EHLO", "{to}");
    }
}
