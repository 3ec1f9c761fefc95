//! Checks again and again that what captures the pods is still in place, and restores what is missing.
//! Whatever can remove it (root on the node, a process with CAP_NET_ADMIN in a pod, another program that
//! manages routing rules) would otherwise take pods out of the mesh without a word.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bpf::{Kernel, Missing};
use super::handover::LockState;
use super::node::Node;
use admin::{Pending, Readiness};
use telemetry::{CaptureMetrics, RestoredKind};

/// The time between two checks.
const STEP: Duration = Duration::from_secs(1);
/// The pods are checked in so many groups, one after the other: with hundreds of pods, all at once would
/// stop the main thread for too long. So each part is checked once in ten seconds, which is the longest
/// time without capture if something is removed.
const GROUPS: u64 = 10;
/// What the readiness page says while something cannot be restored.
const TASK: &str = "the capture of the pods: something was removed and cannot be restored";

/// When to check next, and what the last checks have found.
#[derive(Debug)]
pub(super) struct CaptureWatch {
    next: Instant,
    /// The group that is checked next.
    group: u64,
    /// How many pods of a group lack something that cannot be restored. They do not keep the node unready:
    /// a pod with CAP_NET_ADMIN could, on purpose.
    pods: BTreeMap<u64, usize>,
    /// What the node itself lacks.
    lost: Option<Lost>,
}

/// Something that all pods need is missing and cannot be restored.
#[derive(Debug)]
struct Lost {
    since: Instant,
    pending: Pending,
}

impl Default for CaptureWatch {
    fn default() -> Self {
        Self {
            next: Instant::now() + STEP,
            group: 0,
            pods: BTreeMap::new(),
            lost: None,
        }
    }
}

impl CaptureWatch {
    /// The time of the next check.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// The group that is to be checked now.
    fn next_group(&mut self) -> u64 {
        self.next = Instant::now() + STEP;
        self.group = (self.group + 1) % GROUPS;
        self.group
    }

    /// Records what all pods lack, and keeps the node unready while there is something.
    fn record(&mut self, restored: Result<(), String>, readiness: &Readiness) {
        match (restored, self.lost.take()) {
            (Ok(()), None) => {}
            (Ok(()), Some(lost)) => {
                tracing::info!(after = ?lost.since.elapsed(), "the capture of the pods is complete again");
                lost.pending.done();
            }
            (Err(problem), known) => {
                let lost = known.unwrap_or_else(|| Lost {
                    since: Instant::now(),
                    pending: readiness.wait_for(TASK),
                });
                tracing::error!(
                    since = ?lost.since.elapsed(),
                    "something that captures the pods was removed and cannot be restored: {problem}"
                );
                self.lost = Some(lost);
            }
        }
    }

    /// How many pods lack something, and the node itself.
    fn count(&self) -> usize {
        self.pods.values().sum::<usize>() + usize::from(self.lost.is_some())
    }
}

impl Node {
    /// Checks a part of what captures the pods, if this process owns it.
    pub(super) fn check_capture(&mut self) {
        let group = self.capture_watch.next_group();
        let Some(kernel) = self.shared.kernel.clone() else {
            return;
        };
        if !self.handover_state.is_active() {
            return;
        }
        if group == 0 {
            let restored = self.restore_node(&kernel);
            self.capture_watch.record(restored, &self.readiness);
        }
        let metrics = self.shared.telemetry.capture();
        if self.capture_watch.lost.is_none() {
            let is_of_group = |number| number % GROUPS == group;
            let lost = self
                .enrollment
                .restore_capture(&kernel, metrics, is_of_group);
            self.capture_watch.pods.insert(group, lost);
        }
        metrics.set_lost(self.capture_watch.count());
    }

    /// Restores the locks, and the programs that all pods need.
    ///
    /// # Errors
    /// What is still missing.
    fn restore_node(&mut self, kernel: &Kernel) -> Result<(), String> {
        let locks = self.restore_locks();
        let metrics = self.shared.telemetry.capture();
        match locks.map_err(|error| error.to_string())? {
            LockState::Held => {}
            LockState::Restored => {
                metrics.restored(RestoredKind::Pin);
                tracing::error!(
                    "another process has removed the locks of this node's proxies: restored"
                );
            }
            LockState::Lost => {
                // The other proxy has attached its own programs.
                kernel.release_links();
                return Err(
                    "the directory of the pins was removed, and another proxy captures the \
                            pods now; restart this one"
                        .to_owned(),
                );
            }
        }
        restore_programs(kernel, metrics)
    }
}

/// Restores the programs that all pods need, and the pins.
fn restore_programs(kernel: &Kernel, metrics: &CaptureMetrics) -> Result<(), String> {
    let installed = kernel.restore().map_err(|error| error.to_string())?;
    for one in installed {
        metrics.restored(kind(one.missing));
        tracing::error!(
            name = one.name, missing = ?one.missing,
            "another process has removed what captures the pods of this node: restored"
        );
    }
    Ok(())
}

/// The metric's label for what was missing.
pub(super) const fn kind(missing: Missing) -> RestoredKind {
    match missing {
        Missing::Program => RestoredKind::Program,
        Missing::Pin => RestoredKind::Pin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_unready_while_something_is_missing() {
        let (readiness, mut watch) = (Readiness::new(), CaptureWatch::default());
        watch.record(Ok(()), &readiness);
        assert!(readiness.pending().is_empty());
        for _ in 0..2 {
            watch.record(Err("a pin cannot be created".to_owned()), &readiness);
            assert_eq!(readiness.pending(), [TASK]);
        }
        watch.pods.insert(3, 2);
        assert_eq!(watch.count(), 3);
        watch.record(Ok(()), &readiness);
        assert!(readiness.pending().is_empty());
        assert_eq!(watch.count(), 2);
    }
}
