//! Waiting for a workload that the control plane has not pushed yet.
//!
//! The node agent announces a pod before the pod starts. The control plane pushes the pod's
//! workload shortly after the pod has its address. The first connection of an application can come
//! in between. So connections and DNS queries that need the workload of an enrolled pod wait until
//! the view contains it: outbound and inbound connections of the pod, its DNS queries, and
//! connections of other pods of this node to it. Every wait is bounded: in time by a setting, in
//! number for each pod. It ends at once when the client closes the connection, the pod leaves or
//! the proxy stops.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::fastpath::FastPath;
use mesh::NetnsCookie;
use mesh::View;
use telemetry::{WaitKind, WaitMetrics, WaitOutcome};

/// The maximum number of waiting connections of one pod, outbound and inbound together.
const MAX_CONNECTIONS: usize = 1024;
/// The maximum number of waiting DNS queries of one pod.
const MAX_QUERIES: usize = 256;

/// The two kinds of waiting places of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Connections,
    Queries,
}

impl Class {
    const fn of(kind: WaitKind) -> Self {
        match kind {
            WaitKind::Outbound | WaitKind::Inbound => Self::Connections,
            WaitKind::Dns => Self::Queries,
        }
    }

    const fn limit(self) -> usize {
        match self {
            Self::Connections => MAX_CONNECTIONS,
            Self::Queries => MAX_QUERIES,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Queries => "DNS queries",
        })
    }
}

/// A wait that ended without the workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WaitError {
    /// The workload was not pushed in time.
    #[error(
        "workload {uid} is not in the mesh: the control plane has not pushed it within {waited:?} \
         (newPods.workloadWait); check that this proxy is connected to the control plane, that the \
         control plane knows a workload of this name whose service account is the pod's, and that \
         clusterId is the one that the control plane uses"
    )]
    Expired {
        /// The workload.
        uid: Arc<str>,
        /// How long the wait may take.
        waited: Duration,
    },
    /// The maximum number of waiting connections or queries is reached.
    #[error(
        "workload {uid} is not in the mesh yet, and {limit} {class} of the pod wait for it already: \
         refused at once"
    )]
    TooMany {
        /// The workload.
        uid: Arc<str>,
        /// The maximum number.
        limit: usize,
        /// The kind, as text.
        class: String,
    },
    /// The client closed the connection.
    #[error("the client closed the connection while it waited for workload {uid} to be pushed")]
    ClientGone {
        /// The workload.
        uid: Arc<str>,
    },
    /// The pod or the proxy is shutting down.
    #[error(
        "the pod has left or the proxy is stopping, while the connection waited for workload {uid} \
         to be pushed"
    )]
    Leaving {
        /// The workload.
        uid: Arc<str>,
    },
}

impl WaitError {
    /// The reason as one of a closed set of strings, for logs.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "unknown_workload",
            Self::TooMany { .. } => "too_many_waiting",
            Self::ClientGone { .. } => "client_gone",
            Self::Leaving { .. } => "leaving",
        }
    }

    const fn outcome(&self) -> WaitOutcome {
        match self {
            Self::Expired { .. } => WaitOutcome::Expired,
            Self::TooMany { .. } => WaitOutcome::TooMany,
            Self::ClientGone { .. } => WaitOutcome::ClientGone,
            Self::Leaving { .. } => WaitOutcome::Leaving,
        }
    }
}

/// The parameters of one wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaited<'a> {
    /// The pod whose connection or query waits; its places are used.
    pub(super) pod: NetnsCookie,
    /// The workload to wait for.
    pub(super) uid: &'a Arc<str>,
    /// The end of the wait.
    pub(super) deadline: WaitDeadline,
}

/// The end of the waits of a connection or query. A connection that waits several times has one
/// deadline.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitDeadline {
    /// The kind of connection or query.
    pub(super) kind: WaitKind,
    /// The end of all its waits.
    pub(super) at: Instant,
}

impl WaitDeadline {
    /// This deadline, or the end of a time from now if that is earlier.
    pub(super) fn at_most(self, limit: Duration) -> Self {
        Self {
            at: self.at.min(Instant::now() + limit),
            ..self
        }
    }
}

/// Why a wait is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupted {
    ClientGone,
    Leaving,
}

/// The waits of all pods.
#[derive(Debug)]
pub struct WorkloadWaits {
    fast_path: Arc<FastPath>,
    limit: Duration,
    metrics: WaitMetrics,
    /// The number of waiting connections and queries of each pod that has any. Only a wait takes
    /// this lock.
    waiting: Mutex<HashMap<NetnsCookie, [usize; 2]>>,
}

impl WorkloadWaits {
    /// Creates the waits. `limit` bounds each wait; with zero there is no waiting.
    #[must_use]
    pub fn new(fast_path: Arc<FastPath>, limit: Duration, metrics: WaitMetrics) -> Self {
        Self {
            fast_path,
            limit,
            metrics,
            waiting: Mutex::default(),
        }
    }

    /// The deadline of the waits of a connection or query that arrived at `since`.
    pub(super) fn deadline(&self, kind: WaitKind, since: std::time::Instant) -> WaitDeadline {
        WaitDeadline {
            kind,
            at: Instant::from_std(since) + self.limit,
        }
    }

    /// Waits until `is_known` accepts the view in force.
    ///
    /// # Errors
    /// When the deadline passes, the pod has no free place, or the wait is interrupted.
    pub(super) async fn wait(
        &self,
        awaited: Awaited<'_>,
        is_known: impl Fn(&View) -> bool,
        interrupted: impl Future<Output = Interrupted>,
    ) -> Result<(), WaitError> {
        // Subscribed before the first check, so that no change is missed in between.
        let mut changes = self.fast_path.changes();
        if is_known(&self.fast_path.view()) {
            return Ok(());
        }
        let uid = || awaited.uid.clone();
        let expired = || WaitError::Expired {
            uid: uid(),
            waited: self.limit,
        };
        let waiting = async {
            if self.limit.is_zero() {
                return Err(expired());
            }
            let class = Class::of(awaited.deadline.kind);
            let Some(_place) = self.take(awaited.pod, class) else {
                return Err(WaitError::TooMany {
                    uid: uid(),
                    limit: class.limit(),
                    class: class.to_string(),
                });
            };
            let until_known = async {
                // The sender is not dropped before `self`.
                while changes.changed().await.is_ok() && !is_known(&self.fast_path.view()) {}
            };
            tokio::select! {
                biased;
                () = until_known => Ok(()),
                why = interrupted => Err(match why {
                    Interrupted::ClientGone => WaitError::ClientGone { uid: uid() },
                    Interrupted::Leaving => WaitError::Leaving { uid: uid() },
                }),
                () = tokio::time::sleep_until(awaited.deadline.at) => Err(expired()),
            }
        };
        let waited = waiting.await;
        let outcome = waited
            .as_ref()
            .map_or_else(WaitError::outcome, |()| WaitOutcome::Known);
        self.metrics.ended(awaited.deadline.kind, outcome);
        waited
    }

    /// The number of waiting connections of a pod.
    #[cfg(test)]
    pub(super) fn waiting(&self, pod: NetnsCookie) -> usize {
        let waiting = self.lock();
        waiting
            .get(&pod)
            .map_or(0, |taken| taken[Class::Connections as usize])
    }

    fn take(&self, pod: NetnsCookie, class: Class) -> Option<Place<'_>> {
        let mut waiting = self.lock();
        let taken = &mut waiting.entry(pod).or_default()[class as usize];
        if *taken >= class.limit() {
            return None;
        }
        *taken += 1;
        Some(Place {
            waits: self,
            pod,
            class,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NetnsCookie, [usize; 2]>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waiting place, in use until it is dropped.
struct Place<'a> {
    waits: &'a WorkloadWaits,
    pod: NetnsCookie,
    class: Class,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waits.lock();
        let Some(taken) = waiting.get_mut(&self.pod) else {
            return;
        };
        taken[self.class as usize] = taken[self.class as usize].saturating_sub(1);
        if taken.iter().all(|count| *count == 0) {
            waiting.remove(&self.pod);
        }
    }
}

#[cfg(test)]
mod tests;
