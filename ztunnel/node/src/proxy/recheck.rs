//! Pods to check again after the enrolment, because redirection rules or programs of another proxy
//! may have appeared in them. Triggers: a fast-path connection to the pod failed, the proxy found a
//! redirected connection, or, where rules capture, a connection arrived without its original
//! destination. The node checks the pods.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use mesh::NetnsCookie;

/// The minimum interval between two checks of a pod: connections to a closed port must not cause
/// more.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// Pods to check.
#[derive(Debug, Default)]
pub struct RecheckQueue {
    /// When each pod was added last, and whether it has been checked since.
    queue: Mutex<HashMap<NetnsCookie, (Instant, bool)>>,
    added: Notify,
}

impl RecheckQueue {
    /// Adds a pod. Cheap, callable from any thread.
    pub(crate) fn add(&self, pod: NetnsCookie) {
        self.add_at(pod, Instant::now());
    }

    fn add_at(&self, pod: NetnsCookie, now: Instant) {
        let Ok(mut queue) = self.queue.lock() else {
            return;
        };
        queue.retain(|_, (since, seen)| !*seen || now.duration_since(*since) < MIN_INTERVAL);
        if queue.contains_key(&pod) {
            return;
        }
        queue.insert(pod, (now, false));
        self.added.notify_one();
    }

    /// Waits until there are pods to check, and takes them.
    pub async fn take(&self) -> Vec<NetnsCookie> {
        self.added.notified().await;
        let Ok(mut queue) = self.queue.lock() else {
            return Vec::new();
        };
        let mut pods = Vec::new();
        for (pod, (_, seen)) in queue.iter_mut().filter(|(_, (_, seen))| !*seen) {
            *seen = true;
            pods.push(*pod);
        }
        pods
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_pod_is_added_once_in_an_interval() {
        let (recheck, now) = (RecheckQueue::default(), Instant::now());
        recheck.add_at(NetnsCookie(1), now);
        recheck.add_at(NetnsCookie(1), now);
        recheck.add_at(NetnsCookie(2), now);
        let mut named = recheck.take().await;
        named.sort_unstable_by_key(|pod| pod.0);
        assert_eq!(named, [NetnsCookie(1), NetnsCookie(2)]);
        recheck.add_at(NetnsCookie(1), now + MIN_INTERVAL / 2);
        assert!(recheck.take().now_or_never().is_none());
        recheck.add_at(NetnsCookie(1), now + MIN_INTERVAL);
        assert_eq!(recheck.take().await, [NetnsCookie(1)]);
    }
}
