//! Pods that could not be enrolled: when each is tried again, and what has been logged about it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{DesiredPod, EnrollError, PodKey};

/// The time between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// The longest time between two attempts for a pod whose sandbox is gone. The node agent announces
/// the pod's new sandbox, so these attempts are only a safeguard.
const MAX_RETRY: Duration = Duration::from_secs(32);

/// The desired pods that are not enrolled.
#[derive(Debug, Default)]
pub(super) struct FailedPods(HashMap<PodKey, FailedPod>);

#[derive(Debug)]
struct FailedPod {
    /// The pod as it was when the attempt failed.
    desired: DesiredPod,
    error: EnrollError,
    /// The number of attempts that failed in a row.
    attempts: u32,
    retry_at: Instant,
}

impl FailedPods {
    /// Whether an attempt to enroll the pod should wait. A pod that has changed since it failed, for
    /// example because it has a new network namespace, does not wait.
    pub(super) fn should_wait(&self, desired: &DesiredPod, now: Instant) -> bool {
        let failed = self.0.get(&desired.key);
        failed.is_some_and(|failed| failed.desired == *desired && now < failed.retry_at)
    }

    /// Records the outcome of an attempt. A failure is logged when it is the pod's first one or
    /// another one than before.
    pub(super) fn record(
        &mut self,
        desired: &DesiredPod,
        outcome: Result<(), EnrollError>,
        now: Instant,
    ) {
        let previous = self.0.remove(&desired.key);
        let Err(error) = outcome else {
            return;
        };
        let previous = previous.filter(|previous| previous.desired == *desired);
        let attempts = previous.as_ref().map_or(0, |previous| previous.attempts) + 1;
        let repeats = previous.is_some_and(|before| before.error.to_string() == error.to_string());
        let retry = retry_interval(&desired.key, &error, attempts);
        let (pod, netns) = (&desired.key, &desired.netns);
        if repeats {
            tracing::debug!(%error, %pod, attempts, ?retry, "still cannot enroll the pod");
        } else if error.is_sandbox_down() {
            tracing::warn!(%error, %pod, %netns, "cannot enroll the pod yet");
        } else {
            tracing::error!(%error, %pod, %netns, "cannot enroll the pod; trying again");
        }
        let failed = FailedPod {
            desired: desired.clone(),
            error,
            attempts,
            retry_at: now + retry,
        };
        self.0.insert(desired.key.clone(), failed);
    }

    /// Forgets the pods that are no longer desired.
    pub(super) fn retain_desired(&mut self, desired: &[DesiredPod]) {
        if !self.0.is_empty() {
            let desired: HashSet<&PodKey> = desired.iter().map(|pod| &pod.key).collect();
            self.0.retain(|key, _| desired.contains(key));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pods that failed because the programs of another proxy capture them, and whether that
    /// proxy serves them.
    pub(super) fn captured(&self) -> impl Iterator<Item = (&DesiredPod, bool)> {
        self.0.values().filter_map(|failed| match failed.error {
            EnrollError::Captured { served } => Some((&failed.desired, served)),
            _ => None,
        })
    }

    /// The time of the next attempt; none if no pod has failed.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().map(|failed| failed.retry_at).min()
    }
}

/// The time until the next attempt after this many failed ones. The node agent announces the new
/// sandbox of a pod; for a pod of the settings only another attempt finds it.
fn retry_interval(pod: &PodKey, error: &EnrollError, attempts: u32) -> Duration {
    if error.is_sandbox_down() && matches!(pod, PodKey::Announced(_)) {
        let doubled = RETRY.saturating_mul(1_u32.checked_shl(attempts - 1).unwrap_or(u32::MAX));
        doubled.min(MAX_RETRY)
    } else {
        RETRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::zds::PodUid;
    use crate::pods::{self, NetnsSource};
    use mesh::Uid;

    fn pod(name: &str, netns: &str) -> DesiredPod {
        DesiredPod {
            key: PodKey::Announced(PodUid(name.into())),
            uid: Uid(name.into()),
            account: None,
            announced: None,
            netns: NetnsSource::Path(netns.into()),
        }
    }

    const fn sandbox_down() -> Result<(), EnrollError> {
        Err(EnrollError::Pod(pods::Error::LoopbackDown))
    }

    /// The seconds until the next attempt.
    fn wait(failed: &FailedPods, now: Instant) -> u64 {
        let next = failed.next_retry().unwrap();
        next.duration_since(now).as_secs()
    }

    #[test]
    fn a_pod_whose_sandbox_is_gone_is_tried_less_and_less_often() {
        let (mut failed, now) = (FailedPods::default(), Instant::now());
        let gone = pod("a", "/run/netns/a");
        let intervals = (0..8).map(|_| {
            failed.record(&gone, sandbox_down(), now);
            wait(&failed, now)
        });
        let intervals: Vec<u64> = intervals.collect();
        assert_eq!(intervals, [1, 2, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn any_other_failure_and_a_pod_of_the_settings_are_retried_every_second() {
        let (mut failed, now) = (FailedPods::default(), Instant::now());
        let listed = DesiredPod {
            key: PodKey::Listed(Uid("b".into())),
            ..pod("b", "b")
        };
        for _ in 0..40 {
            failed.record(&pod("a", "a"), Err(EnrollError::NoRules), now);
            failed.record(&listed, sandbox_down(), now);
            assert_eq!(wait(&failed, now), 1);
        }
    }

    #[test]
    fn a_failed_pod_waits_unless_it_has_changed() {
        let (mut failed, now) = (FailedPods::default(), Instant::now());
        let gone = pod("a", "/run/netns/a");
        assert!(!failed.should_wait(&gone, now));
        failed.record(&gone, sandbox_down(), now);
        assert!(failed.should_wait(&gone, now));
        assert!(!failed.should_wait(&pod("b", "/run/netns/a"), now));
        assert!(!failed.should_wait(&pod("a", "/run/netns/new"), now));
        assert!(!failed.should_wait(&gone, now + RETRY));
    }

    #[test]
    fn an_enrolled_pod_and_one_that_is_no_longer_desired_are_forgotten() {
        let (mut failed, now) = (FailedPods::default(), Instant::now());
        let (first, second) = (pod("a", "a"), pod("b", "b"));
        for pod in [&first, &second] {
            failed.record(pod, Err(EnrollError::Captured { served: true }), now);
        }
        failed.record(&first, Ok(()), now);
        assert!(failed.captured().eq([(&second, true)]));
        failed.retain_desired(std::slice::from_ref(&first));
        assert!(failed.is_empty() && failed.next_retry().is_none());
    }
}
