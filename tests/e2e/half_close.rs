//! A half-closed connection transfers data in the other direction.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::Stream;

use crate::connections::{addresses_of, listen};

/// More than all buffers on the path hold.
const ANSWER: usize = 8 << 20;

/// `first` sends and half-closes; `second` reads to the end and then sends its answer.
fn transfer_after_half_close(mut first: Stream, mut second: Stream) {
    first.write_all(b"the request").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    second.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"the request");
    let answer = vec![7; ANSWER];
    thread::scope(|scope| {
        scope.spawn(|| {
            second.write_all(&answer).unwrap();
            second.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        first.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), ANSWER);
    });
}

on_paths!(a_client_that_has_half_closed_receives_the_answer: tunnel, direct, joined, auto);
fn a_client_that_has_half_closed_receives_the_answer(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for to in addresses_of(topology.server()) {
        let (client, server) = topology.connect(to, &listener).unwrap();
        transfer_after_half_close(client, server);
    }
}

on_paths!(a_server_that_has_half_closed_receives_the_rest_of_the_request: tunnel, direct, joined, auto);
fn a_server_that_has_half_closed_receives_the_rest_of_the_request(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for to in addresses_of(topology.server()) {
        let (client, server) = topology.connect(to, &listener).unwrap();
        transfer_after_half_close(server, client);
    }
}
