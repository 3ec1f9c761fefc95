//! Pods that have left, and whose listeners are open for a little longer.
//!
//! The node agent withdraws a pod before the control plane has told its clients. A client that does
//! not know yet still dials the pod's tunnel port, and a connection that a rule has redirected can
//! still be under way. Without the listeners these connections would be refused.

use std::time::{Duration, Instant};

use super::enrolled::Enrolled;
use mesh::NetnsCookie;

/// How long the listeners of a pod that has left stay open. Istio's control plane collects changes
/// for 100 ms, and then pushes them to every client. A pod that comes back has istio-cni's rules for
/// part of a second before it is announced, and they need the listeners.
const LINGER: Duration = Duration::from_secs(5);

/// The pods that have left and are served for a little longer.
#[derive(Debug, Default)]
pub(super) struct LeavingPods {
    /// Each with the time of its end; the earliest first.
    pods: Vec<(Instant, Enrolled)>,
}

impl LeavingPods {
    /// Serves a pod that leaves now for a little longer.
    pub(super) fn add(&mut self, pod: Enrolled, now: Instant) {
        self.pods.push((now + LINGER, pod));
    }

    /// Takes out the pod with this namespace.
    pub(super) fn take(&mut self, cookie: NetnsCookie) -> Option<Enrolled> {
        let mut pods = self.pods.iter();
        let index = pods.position(|(_, pod)| pod.cookie() == cookie)?;
        Some(self.pods.remove(index).1)
    }

    /// Takes out the pods whose time has come.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<Enrolled> {
        let ended = self.pods.partition_point(|(end, _)| *end <= now);
        self.pods.drain(..ended).map(|(_, pod)| pod).collect()
    }

    /// The time at which the next pod ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.pods.first().map(|(end, _)| *end)
    }

    /// All of them, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Enrolled> {
        self.pods.iter_mut().map(|(_, pod)| pod)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Enrolled> {
        self.pods.iter().map(|(_, pod)| pod)
    }
}
