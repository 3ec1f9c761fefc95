//! Pods that may have got rules which redirect what comes in, after they were enrolled: somebody
//! failed to reach them on the direct lane, or the proxy has seen it. Where rules capture: pods that
//! another proxy's programs may have captured since, as a connection has come without its
//! destination. The node looks into them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use mesh::NetnsCookie;

/// A pod is looked into this often at most: a port that nobody listens on is no reason for more.
const PACE: Duration = Duration::from_millis(500);

/// Pods to be looked into.
#[derive(Debug, Default)]
pub struct RecheckQueue {
    /// When each was named last, and whether it has been looked into since.
    named: Mutex<HashMap<NetnsCookie, (Instant, bool)>>,
    told: Notify,
}

impl RecheckQueue {
    /// Names a pod. Cheap, from any thread.
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

    /// Waits until pods are named, and takes them.
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
