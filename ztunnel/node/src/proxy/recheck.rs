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
const PACE: Duration = Duration::from_millis(500);

/// Pods to check.
#[derive(Debug, Default)]
pub struct RecheckQueue {
    /// When each pod was added last, and whether it has been checked since.
    named: Mutex<HashMap<NetnsCookie, (Instant, bool)>>,
    told: Notify,
}

impl RecheckQueue {
    /// Adds a pod. Cheap, callable from any thread.
    pub(crate) fn name(&self, pod: NetnsCookie) {
        self.name_at(pod, Instant::now());
    }

    fn name_at(&self, pod: NetnsCookie, now: Instant) {
        let Ok(mut named) = self.named.lock() else {
            return;
        };
        named.retain(|_, (since, seen)| !*seen || now.duration_since(*since) < PACE);
        if named.contains_key(&pod) {
            return;
        }
        named.insert(pod, (now, false));
        self.told.notify_one();
    }

    /// Waits until there are pods to check, and takes them.
    pub async fn named(&self) -> Vec<NetnsCookie> {
        self.told.notified().await;
        let Ok(mut named) = self.named.lock() else {
            return Vec::new();
        };
        let mut pods = Vec::new();
        for (pod, (_, seen)) in named.iter_mut().filter(|(_, (_, seen))| !*seen) {
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
    async fn a_pod_is_named_once_for_a_while() {
        let (recheck, now) = (RecheckQueue::default(), Instant::now());
        recheck.name_at(NetnsCookie(1), now);
        recheck.name_at(NetnsCookie(1), now);
        recheck.name_at(NetnsCookie(2), now);
        let mut named = recheck.named().await;
        named.sort_unstable_by_key(|pod| pod.0);
        assert_eq!(named, [NetnsCookie(1), NetnsCookie(2)]);
        recheck.name_at(NetnsCookie(1), now + PACE / 2);
        assert!(recheck.named().now_or_never().is_none());
        recheck.name_at(NetnsCookie(1), now + PACE);
        assert_eq!(recheck.named().await, [NetnsCookie(1)]);
    }
}
