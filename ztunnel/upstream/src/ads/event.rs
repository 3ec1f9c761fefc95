//! The events that the client sends to the node.

use tokio::sync::oneshot;

use mesh::{Change, FetchOutcome};

/// An event of the client.
#[derive(Debug)]
pub enum Event {
    /// The mesh has changed.
    Changes(Batch),
    /// The initial state of the mesh is complete. Sent once.
    Synced,
}

/// Changes that arrived together. Drop the batch when a snapshot with its changes is published, not
/// earlier: the drop completes the fetch requests ([`super::OnDemandFetcher::fetch`]) that the batch answers.
#[derive(Debug)]
pub struct Batch {
    /// The changes, to be applied in order. May be empty.
    pub changes: Vec<Change>,
    /// Whether this batch ends a push. A large push arrives in several batches; publish a snapshot
    /// after the last one.
    pub ends_push: bool,
    answers: Vec<Answer>,
}

/// The answer to a fetch request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) requester: oneshot::Sender<FetchOutcome>,
    pub(super) outcome: FetchOutcome,
}

impl Batch {
    pub(super) const fn new(changes: Vec<Change>, ends_push: bool, answers: Vec<Answer>) -> Self {
        Self {
            changes,
            ends_push,
            answers,
        }
    }

    /// A batch that answers no fetch request.
    #[must_use]
    pub const fn of(changes: Vec<Change>, ends_push: bool) -> Self {
        Self::new(changes, ends_push, Vec::new())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for answer in self.answers.drain(..) {
            // The requester may have timed out.
            answer.requester.send(answer.outcome).ok();
        }
    }
}
