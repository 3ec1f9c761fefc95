//! Checks again and again that what captures the pods is still in place, and restores what is missing.
//! Whatever can remove it (root on the node, a process with CAP_NET_ADMIN in a pod, another program that
//! manages routing rules) would otherwise take pods out of the mesh without a word.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bpf::{Kernel, Missing};
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
    /// What cannot be restored, by group.
    problems: BTreeMap<u64, Vec<String>>,
    lost: Option<Lost>,
}

/// Something is missing and cannot be restored.
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
            problems: BTreeMap::new(),
            lost: None,
        }
    }
}

impl CaptureWatch {
    /// The time of the next check.
    pub(super) const fn next(&self) -> Option<Instant> {
        Some(self.next)
    }

    /// The group that is to be checked now.
    fn next_group(&mut self) -> u64 {
        self.next = Instant::now() + STEP;
        self.group = (self.group + 1) % GROUPS;
        self.group
    }

    /// Records what a group lacks, and keeps the node unready while any does.
    fn record(&mut self, group: u64, problems: Vec<String>, readiness: &Readiness) {
        self.problems.insert(group, problems);
        let first = self.problems.values().flatten().next();
        match (first, self.lost.take()) {
            (None, None) => {}
            (None, Some(lost)) => {
                tracing::info!(after = ?lost.since.elapsed(), "the capture of the pods is complete again");
                lost.pending.done();
            }
            (Some(problem), known) => {
                // Once in each interval, and at once for the first one.
                let is_due = group == 0 || known.is_none();
                let lost = known.unwrap_or_else(|| Lost {
                    since: Instant::now(),
                    pending: readiness.wait_for(TASK),
                });
                if is_due {
                    tracing::error!(
                        since = ?lost.since.elapsed(), problems = self.count(),
                        "something that captures the pods was removed and cannot be restored: {problem}"
                    );
                }
                self.lost = Some(lost);
            }
        }
    }

    fn count(&self) -> usize {
        self.problems.values().map(Vec::len).sum()
    }
}

impl Node {
    /// Checks a part of what captures the pods, if this process owns it.
    pub(super) fn check_capture(&mut self) {
        let group = self.capture_watch.next_group();
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        if !self.handover_state.is_active() {
            return;
        }
        let metrics = self.shared.telemetry.capture();
        let mut problems = Vec::new();
        if group == 0 {
            problems.extend(restore_programs(kernel, metrics));
        }
        let is_of_group = |number| number % GROUPS == group;
        problems.extend(
            self.enrollment
                .restore_capture(kernel, metrics, is_of_group),
        );
        self.capture_watch.record(group, problems, &self.readiness);
        metrics.set_lost(self.capture_watch.count());
    }
}

/// Restores the programs that all pods need. Returns what is still missing.
fn restore_programs(kernel: &Kernel, metrics: &CaptureMetrics) -> Option<String> {
    match kernel.restore() {
        Ok(installed) => {
            for one in installed {
                metrics.restored(kind(one.missing));
                tracing::error!(
                    program = one.program, missing = ?one.missing,
                    "another process has removed what captures the pods of this node: restored"
                );
            }
            None
        }
        Err(error) => Some(error.to_string()),
    }
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
        watch.record(0, vec![], &readiness);
        assert!(readiness.pending().is_empty());
        for group in [1, 2, 1] {
            watch.record(group, vec!["the pin is gone".to_owned()], &readiness);
            assert_eq!(readiness.pending(), [TASK]);
        }
        assert_eq!(watch.count(), 2);
        watch.record(1, vec![], &readiness);
        assert_eq!(readiness.pending(), [TASK]);
        watch.record(2, vec![], &readiness);
        assert!(readiness.pending().is_empty());
    }
}
