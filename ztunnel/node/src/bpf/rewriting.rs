//! Takes over from the version before, whose programs capture by rewriting the destination of a connection.

use std::sync::atomic::Ordering;

use super::{Error, Kernel, attach_cgroup};

impl Kernel {
    /// Whether the programs of the version before capture. The proxy serves the pods by its own
    /// listeners then, and finds original destinations by [`Self::original_destination`].
    #[must_use]
    pub fn rewriting_captures(&self) -> bool {
        self.rewriting_captures.load(Ordering::Relaxed)
    }

    /// Replaces the programs of the version before, if they still capture. Call it when this process
    /// serves all pods: in the others nothing brings marked connections to a listener, and they are
    /// refused.
    ///
    /// # Errors
    /// When a program cannot be attached.
    pub fn replace_rewriting(&self) -> Result<(), Error> {
        if !self.rewriting_captures() {
            return Ok(());
        }
        attach_cgroup(&self.object(), self.hooks())?;
        self.rewriting_captures.store(false, Ordering::Relaxed);
        self.update_namespaces()
    }
}
