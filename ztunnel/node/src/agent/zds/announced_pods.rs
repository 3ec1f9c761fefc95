//! Who is there, by what the node agent has said on this connection and on those before. Plain
//! data: no descriptor is looked at here and nothing waits.

use std::collections::{BTreeMap, BTreeSet};

use super::PodUid;

/// More pods than any node has. What the agent names beyond them is refused.
const MOST_PODS: usize = 10_000;

/// The pods that the node agent has named; `P` is what it said about each.
#[derive(Debug)]
pub struct AnnouncedPods<P> {
    pods: BTreeMap<PodUid, P>,
    /// Those that this connection has named, whether anything is known about them or not.
    named: BTreeSet<PodUid>,
    /// This connection has named everybody.
    complete: bool,
    most: usize,
}

/// What naming a pod has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Added<P> {
    /// It was not there before.
    New,
    /// It was there, and just so.
    Same,
    /// It was there, but other than it is now.
    Replaced(P),
}

/// There are more pods than any node has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {most} pods already, and no node has more")]
pub struct Full {
    /// How many there may be.
    pub most: usize,
}

impl<P> Default for AnnouncedPods<P> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            named: BTreeSet::new(),
            complete: false,
            most: MOST_PODS,
        }
    }
}

impl<P: PartialEq> AnnouncedPods<P> {
    /// A connection begins. Everybody stays until it has named those who are there.
    pub fn begin(&mut self) {
        self.named.clear();
        self.complete = false;
    }

    /// A pod is there.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&mut self, uid: PodUid, pod: P) -> Result<Added<P>, Full> {
        self.name(&uid)?;
        if self.pods.get(&uid) == Some(&pod) {
            return Ok(Added::Same);
        }
        let before = self.pods.insert(uid, pod);
        Ok(before.map_or(Added::New, Added::Replaced))
    }

    /// A pod is there, as it was. It may be one about which nothing is known: it was named to an
    /// earlier process, and its namespace cannot be had any more.
    ///
    /// # Errors
    /// When there are too many.
    pub fn keep(&mut self, uid: &PodUid) -> Result<(), Full> {
        self.name(uid)
    }

    /// A pod is not there any more.
    pub fn delete(&mut self, uid: &PodUid) -> Option<P> {
        self.named.remove(uid);
        self.pods.remove(uid)
    }

    /// This connection has named everybody. Returns those that it has not.
    pub fn complete(&mut self) -> Vec<(PodUid, P)> {
        self.complete = true;
        let named = &self.named;
        self.pods
            .extract_if(.., |uid, _| !named.contains(uid))
            .collect()
    }

    /// The pods that are there.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = (&PodUid, &P)> {
        self.pods.iter()
    }

    /// Those that are there by what the agent says, and about which nothing is known.
    pub fn unknown(&self) -> impl Iterator<Item = &PodUid> {
        self.named.iter().filter(|uid| !self.pods.contains_key(uid))
    }

    /// Whether this connection has named everybody.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether there can be no pod of this node that is not in [`Self::pods`].
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.complete && self.unknown().next().is_none()
    }

    fn name(&mut self, uid: &PodUid) -> Result<(), Full> {
        let full = self.named.len() >= self.most || self.pods.len() >= self.most;
        if full && !self.named.contains(uid) && !self.pods.contains_key(uid) {
            return Err(Full { most: self.most });
        }
        self.named.insert(uid.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
