//! One copy of every text. Names, namespaces and nodes repeat in thousands of workloads; whoever
//! builds a snapshot takes its texts from one interner, so that the snapshot holds each once.

use std::sync::Arc;

use foldhash::{HashSet, HashSetExt as _};

/// The texts seen so far.
#[derive(Debug)]
pub struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(HashSet::new())
    }

    /// The shared copy of a text.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        self.0.insert(shared.clone());
        shared
    }
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}
