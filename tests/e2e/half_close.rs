//! An end that has said all it has to say can still listen.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;

use ztunnel_tests::net::World;
use ztunnel_tests::proxy::Mesh;

use crate::ends::{connect, listen, ways_to};

/// More than any buffer on the way holds.
const ANSWER: usize = 8 << 20;

/// `first` speaks and half-closes; `second` hears the end of it and only then speaks.
fn one_after_the_other(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"that is all").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    second.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"that is all");
    let answer = vec![7; ANSWER];
    thread::scope(|scope| {
        scope.spawn(|| {
            second.write_all(&answer).unwrap();
            second.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        first.read_to_end(&mut heard).unwrap();
        assert_eq!(heard.len(), ANSWER);
    });
}

#[test]
fn a_client_that_half_closed_gets_its_answer() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let listener = listen(world.pod("b", 0), 8080);
    for to in ways_to(world.pod("b", 0)) {
        let (client, server) = connect(world.pod("a", 0), to, &listener);
        one_after_the_other(client, server);
    }
}

#[test]
fn a_server_that_half_closed_hears_the_client_out() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let listener = listen(world.pod("b", 0), 8080);
    for to in ways_to(world.pod("b", 0)) {
        let (client, server) = connect(world.pod("a", 0), to, &listener);
        one_after_the_other(server, client);
    }
}
