//! Whether the proxy can do its job yet: a list of what it still waits for.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tasks that must be finished before the node may send traffic here. Clones share the
/// list.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

/// A task that is not finished. Dropping it does not finish it: what failed never becomes
/// ready by accident.
#[derive(Debug)]
#[must_use = "the proxy is not ready before every task is done"]
pub struct Pending {
    task: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// A list without tasks, which means ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task; its name is shown to whoever asks why the proxy is not ready.
    pub fn wait_for(&self, task: &'static str) -> Pending {
        self.tasks().insert(task);
        Pending {
            task,
            readiness: self.clone(),
        }
    }

    /// What is not finished, in alphabetical order; empty means ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.tasks().iter().copied().collect()
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// The task is finished.
    pub fn done(self) {
        self.readiness.tasks().remove(self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_task_is_done_and_not_when_one_was_dropped() {
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
