//! Large transfers in both directions at once arrive complete and in order.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::traffic::Stream;

use crate::connections::listen;

const TOTAL: usize = 64 << 20;
/// Not a multiple of any buffer size, so that chunks end at varying positions.
const CHUNK: usize = 100_003;

/// A pseudo-random byte stream, and a checksum that depends on the order (FNV-1a).
struct ByteStream {
    state: u64,
    sum: u64,
}

impl ByteStream {
    const fn new(seed: u64) -> Self {
        Self {
            state: seed,
            sum: 0xcbf2_9ce4_8422_2325,
        }
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for byte in chunk.iter_mut() {
            // The upper bits of an LCG (Knuth, MMIX).
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

fn send(mut to: &Stream, seed: u64) -> (usize, u64) {
    let mut stream = ByteStream::new(seed);
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

fn receive(mut from: &Stream) -> (usize, u64) {
    let mut stream = ByteStream::new(0);
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

on_paths!(sixty_four_mebibytes_arrive_in_both_directions_at_once: tunnel, direct, joined, auto);
fn sixty_four_mebibytes_arrive_in_both_directions_at_once(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for family in Family::BOTH {
        let to = topology.server().at(family, 8080);
        let (near, far) = topology.connect(to, &listener).unwrap();
        thread::scope(|scope| {
            let sent_by_client = scope.spawn(|| send(&near, 1));
            let received_by_server = scope.spawn(|| receive(&far));
            let sent_by_server = scope.spawn(|| send(&far, 2));
            let received_by_client = scope.spawn(|| receive(&near));
            assert_eq!(
                received_by_server.join().unwrap(),
                sent_by_client.join().unwrap(),
                "to the server"
            );
            assert_eq!(
                received_by_client.join().unwrap(),
                sent_by_server.join().unwrap(),
                "to the client"
            );
        });
    }
}
