//! A server may speak first: nothing on the way waits for the client's first byte.

use std::io::{Read as _, Write as _};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::{GREETING, Kind};

use crate::ends::ways_to;

on_lanes!(a_greeting_arrives_before_the_client_says_anything: tunnel, direct, joined, auto);
fn a_greeting_arrives_before_the_client_says_anything(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let _running = scene.serve(Kind::First, 8080).unwrap();
    for to in ways_to(scene.server()) {
        let mut stream = scene.dial(scene.client(), to).unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, GREETING, "{to}");
        stream.write_all(b"EHLO").unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"EHLO", "{to}");
    }
}
