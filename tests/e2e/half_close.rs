//! An end that has said all it has to say can still listen.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::End;

use crate::ends::{listen, ways_to};

/// More than any buffer on the way holds.
const ANSWER: usize = 8 << 20;

/// `first` speaks and half-closes; `second` hears the end of it and only then speaks.
fn one_after_the_other(mut first: End, mut second: End) {
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

on_lanes!(a_client_that_half_closed_gets_its_answer: tunnel, direct, joined, auto);
fn a_client_that_half_closed_gets_its_answer(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for to in ways_to(scene.server()) {
        let (client, server) = scene.connect(to, &listener).unwrap();
        one_after_the_other(client, server);
    }
}

on_lanes!(a_server_that_half_closed_hears_the_client_out: tunnel, direct, joined, auto);
fn a_server_that_half_closed_hears_the_client_out(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for to in ways_to(scene.server()) {
        let (client, server) = scene.connect(to, &listener).unwrap();
        one_after_the_other(server, client);
    }
}
