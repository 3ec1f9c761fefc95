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

    /// Lets go of texts that nobody else holds any more. Whoever keeps an interner for long calls
    /// it now and then: names of pods come and go.
    pub fn forget_unused(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
        self.0.shrink_to_fit();
    }
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_held_once_and_only_while_it_is_used() {
        let mut texts = Interner::new();
        let kept = texts.get("kept");
        assert!(Arc::ptr_eq(&kept, &texts.get("kept")));
        drop(texts.get("gone"));
        texts.forget_unused();
        assert_eq!(texts.0.len(), 1);
        assert!(Arc::ptr_eq(&kept, &texts.get("kept")));
    }
}
