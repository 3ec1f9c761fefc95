//! The harness of the end-to-end tests, the demo and the benchmark.
//!
//! [`net`] creates simulated nodes and pods, [`data_path`] places clients and servers in them,
//! [`control`] is a control plane and a node agent, [`proxy`] runs real proxies, [`traffic`] contains
//! clients and servers, [`sniff`] captures the packets of a link, and [`cleanup`] removes everything
//! afterwards. The harness uses the proxy only through its binary, as a user does.

pub mod bench;
pub mod cleanup;
pub mod cluster;
pub mod control;
pub mod data_path;
pub mod demo;
pub mod net;
pub mod process;
pub mod proxy;
pub mod sniff;
pub mod traffic;

use std::time::{Duration, Instant};

/// Polls until `condition` holds. Returns whether it held within `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
