//! Readiness: the list of tasks that the proxy still waits for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tasks that must be finished before the proxy is ready. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

/// An unfinished task. Dropping it does not finish it, so that a failed task never makes the proxy
/// ready.
#[derive(Debug)]
#[must_use = "the proxy is not ready before every task is done"]
pub struct Pending {
    task: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// An empty list, which means ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task; the readiness server shows its name until it is finished.
    pub fn wait_for(&self, task: &'static str) -> Pending {
        self.tasks().insert(task);
        Pending {
            task,
            readiness: self.clone(),
        }
    }

    /// The unfinished tasks in alphabetical order; none means ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.tasks().iter().copied().collect()
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Marks the task as finished.
    pub fn done(self) {
        self.readiness.tasks().remove(self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_after_every_task_is_done_and_not_after_one_was_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.pending().is_empty());
        let (pods, mesh) = (readiness.wait_for("pods"), readiness.wait_for("mesh"));
        assert_eq!(readiness.pending(), ["mesh", "pods"]);
        pods.done();
        drop(mesh);
        assert_eq!(readiness.pending(), ["mesh"]);
        readiness.wait_for("mesh").done();
        assert!(readiness.pending().is_empty());
    }
}
