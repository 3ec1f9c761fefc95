//! What tests, the demo and the benchmark build their world from.
//!
//! [`net`] makes simulated nodes and pods, [`lane`] puts the ends of a connection into them,
//! [`proxy`] runs real proxies in them, [`traffic`] has clients and servers that say what they
//! saw, [`sniff`] reads what crosses a link, and [`cleanup`] leaves nothing behind. Nothing in
//! here knows the proxy's code: it speaks to the binary as a user does.

pub mod bench;
pub mod cleanup;
pub mod control;
pub mod demo;
pub mod lane;
pub mod net;
pub mod process;
pub mod proxy;
pub mod sniff;
pub mod traffic;

use std::time::{Duration, Instant};

/// Asks again and again until `what` is true; whether it became so within `limit`.
pub fn eventually(limit: Duration, mut what: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if what() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
