//! The limits of a server, and the permits that enforce them.

use std::cell::Cell;
use std::time::Duration;

/// The maximum length of a query in a datagram.
pub(super) const MAX_DATAGRAM_QUERY: usize = 4096;
/// The maximum number of pending resolver queries of one pod on one worker.
pub(super) const MAX_POD_QUERIES: usize = 256;
/// The maximum number of pending resolver queries of one worker: each has a socket.
pub(super) const MAX_WORKER_QUERIES: usize = 2048;
/// The maximum number of connections of one pod to one worker's server.
pub(super) const MAX_POD_CONNECTIONS: usize = 64;
/// The maximum number of connections to one worker's servers: each may hold two messages of 64 KiB.
pub(super) const MAX_WORKER_CONNECTIONS: usize = 1024;
/// A connection that sends no query for this long, or does not read its answer, is closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay after a socket error.
pub(super) const ERROR_DELAY: Duration = Duration::from_millis(50);
/// A socket that has left its reuseport group and receives nothing for this long has no more
/// datagrams: those in delivery at that time have arrived.
pub(super) const DRAIN_IDLE: Duration = Duration::from_millis(10);
/// The maximum time that such a socket is still read.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of uses of a resource, and its limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage<'a> {
    pub(super) count: &'a Cell<usize>,
    pub(super) limit: usize,
}

/// One use of a limited resource, counted for its pod and its worker until it is dropped.
pub(super) struct Permit<'a> {
    counts: [&'a Cell<usize>; 2],
}

impl<'a> Permit<'a> {
    /// Takes a permit. A pod may hold no more permits than its worker has left: so pods with many
    /// permits get similar shares, and a pod without any gets one.
    pub(super) fn take(pod: Usage<'a>, worker: Usage<'a>) -> Option<Self> {
        let left = worker.limit.saturating_sub(worker.count.get());
        (pod.count.get() < pod.limit.min(left)).then(|| {
            let counts = [pod.count, worker.count];
            for count in counts {
                count.set(count.get() + 1);
            }
            Self { counts }
        })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        for count in self.counts {
            count.set(count.get() - 1);
        }
    }
}
