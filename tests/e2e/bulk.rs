//! Many bytes arrive, all of them, in order, and none besides; both ways at once.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::traffic::End;

use crate::ends::listen;

const TOTAL: usize = 64 << 20;
/// Of no buffer's size, so that chunks end anywhere.
const CHUNK: usize = 100_003;

/// A stream of bytes that never repeats, and a sum over it that knows the order (FNV-1a).
struct Stream {
    state: u64,
    sum: u64,
}

impl Stream {
    const fn new(seed: u64) -> Self {
        Self {
            state: seed,
            sum: 0xcbf2_9ce4_8422_2325,
        }
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for byte in chunk.iter_mut() {
            // An LCG's upper bits (Knuth, MMIX).
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = self.state.to_be_bytes()[0];
        }
        self.add(chunk);
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn send(mut to: &End, seed: u64) -> (usize, u64) {
    let mut stream = Stream::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = TOTAL;
    while left > 0 {
        let part = &mut chunk[..left.min(CHUNK)];
        stream.fill(part);
        to.write_all(part).unwrap();
        left -= part.len();
    }
    to.shutdown(Shutdown::Write).unwrap();
    (TOTAL, stream.sum)
}

fn receive(mut from: &End) -> (usize, u64) {
    let mut stream = Stream::new(0);
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match from.read(&mut chunk).unwrap() {
            0 => return (total, stream.sum),
            count => {
                stream.add(&chunk[..count]);
                total += count;
            }
        }
    }
}

on_lanes!(sixty_four_mebibytes_arrive_each_way_at_once: tunnel, direct, joined, auto);
fn sixty_four_mebibytes_arrive_each_way_at_once(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for family in Family::BOTH {
        let to = scene.server().at(family, 8080);
        let (near, far) = scene.connect(to, &listener).unwrap();
        thread::scope(|scope| {
            let there = scope.spawn(|| send(&near, 1));
            let arrived = scope.spawn(|| receive(&far));
            let back = scope.spawn(|| send(&far, 2));
            let returned = scope.spawn(|| receive(&near));
            assert_eq!(
                arrived.join().unwrap(),
                there.join().unwrap(),
                "to the server"
            );
            assert_eq!(
                returned.join().unwrap(),
                back.join().unwrap(),
                "to the client"
            );
        });
    }
}
