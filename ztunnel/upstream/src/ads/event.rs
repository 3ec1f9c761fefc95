//! What the client tells the node.

use tokio::sync::oneshot;

use mesh::{Change, Fetched};

/// What the client tells the node, in order.
#[derive(Debug)]
pub enum Event {
    /// The mesh has changed.
    Changes(Batch),
    /// Everything that there was at the beginning has been told. Comes once.
    Synced,
}

/// Changes that came together. Drop it when they are in force, not before: that is when those
/// who asked for them ([`super::Demand::fetch`]) go on.
#[derive(Debug)]
pub struct Batch {
    /// The changes, to be applied in order. May be empty.
    pub changes: Vec<Change>,
    /// Whether this is the end of what the control plane sent in one piece. A large push comes in
    /// several batches; whoever builds a snapshot of the mesh should do so at its end.
    pub ends_push: bool,
    answers: Vec<Answer>,
}

/// Somebody who waits, and what is to be said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) to: oneshot::Sender<Fetched>,
    pub(super) fetched: Fetched,
}

impl Batch {
    pub(super) const fn new(changes: Vec<Change>, ends_push: bool, answers: Vec<Answer>) -> Self {
        Self {
            changes,
            ends_push,
            answers,
        }
    }

    /// A batch whose changes no caller waits for, as a push without questions makes it.
    #[must_use]
    pub const fn of(changes: Vec<Change>, ends_push: bool) -> Self {
        Self::new(changes, ends_push, Vec::new())
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for answer in self.answers.drain(..) {
            // Whoever no longer waits does not miss it.
            answer.to.send(answer.fetched).ok();
        }
    }
}
