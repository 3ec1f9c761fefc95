//! The cost of the DNS hooks for namespaces outside the mesh.

use std::net::UdpSocket;
use std::time::Duration;

use super::super::world::{at, in_namespace};
use super::Proxy;

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock writes the one value.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
    assert_eq!(result, 0);
    Duration::new(
        used.tv_sec.try_into().unwrap(),
        used.tv_nsec.try_into().unwrap(),
    )
}

/// A measurement without a bound: `--nocapture` prints it. A socket sends a datagram to itself in a
/// namespace that is not enrolled.
#[test]
#[ignore = "needs root"]
fn cost_of_a_datagram_outside_the_mesh() {
    let round = || {
        in_namespace(|| {
            let socket = UdpSocket::bind(at("127.0.0.1:9999")).unwrap();
            let mut bytes = [0; 64];
            let begin = cpu_time();
            for _ in 0..200_000 {
                socket.send_to(&bytes[..32], at("127.0.0.1:9999")).unwrap();
                socket.recv_from(&mut bytes).unwrap();
            }
            (cpu_time() - begin) / 200_000
        })
    };
    let mut without = Vec::new();
    let mut with = Vec::new();
    for _ in 0..7 {
        without.push(round());
        with.push(in_namespace(move || {
            let _proxy = Proxy::new();
            round()
        }));
    }
    for (name, times) in [("without", &mut without), ("with", &mut with)] {
        times.sort();
        eprintln!("{name}: best {:?}, median {:?}", times[0], times[3]);
    }
}
