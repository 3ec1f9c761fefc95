//! A server may speak first: nothing on the way waits for the client's first byte.

use std::io::{Read as _, Write as _};

use ztunnel_tests::net::World;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{GREETING, Kind};

use crate::ends::{dial, ways_to};

#[test]
fn a_greeting_arrives_before_the_client_says_anything() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let server = world.pod("b", 0);
    let _running = server.serve(Kind::First, 8080).unwrap();
    for to in ways_to(server) {
        let mut stream = dial(world.pod("a", 0), to).unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING, "{to}");
        stream.write_all(b"EHLO").unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"EHLO", "{to}");
    }
}
