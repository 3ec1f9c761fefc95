//! The pods that the node agent has announced, on this connection and on previous ones. Plain data:
//! this module reads no descriptor and waits for nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::PodUid;

/// More pods than any node has. Pods beyond this number are refused.
const MAX_PODS: usize = 10_000;

/// The announced pods; `P` is the data of one pod.
#[derive(Debug)]
pub struct AnnouncedPods<P> {
    pods: BTreeMap<PodUid, P>,
    /// The pods that this connection has announced, with data or without.
    announced: BTreeSet<PodUid>,
    /// The snapshot of this connection is complete.
    complete: bool,
    most: usize,
}

/// The effect of announcing a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Added<P> {
    /// The pod is new.
    New,
    /// The pod was announced before with the same data.
    Same,
    /// The pod was announced before with this other data.
    Replaced(P),
}

/// The limit of pods is reached.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node agent has announced {most} pods already, and a node may have no more")]
pub struct Full {
    /// The limit.
    pub most: usize,
}

impl<P> Default for AnnouncedPods<P> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            announced: BTreeSet::new(),
            complete: false,
            most: MAX_PODS,
        }
    }
}

impl<P: PartialEq> AnnouncedPods<P> {
    /// A new connection begins its snapshot. All pods stay until the snapshot is complete.
    pub fn begin_snapshot(&mut self) {
        self.announced.clear();
        self.complete = false;
    }

    /// Announces a pod with its data.
    ///
    /// # Errors
    /// When the limit of pods is reached.
    pub fn add(&mut self, uid: PodUid, pod: P) -> Result<Added<P>, Full> {
        self.announce(&uid)?;
        if self.pods.get(&uid) == Some(&pod) {
            return Ok(Added::Same);
        }
        let previous = self.pods.insert(uid, pod);
        Ok(previous.map_or(Added::New, Added::Replaced))
    }

    /// Announces a pod as unchanged. Its data may be unknown here: the agent sent it to a previous
    /// process and does not send it again.
    ///
    /// # Errors
    /// When the limit of pods is reached.
    pub fn keep(&mut self, uid: &PodUid) -> Result<(), Full> {
        self.announce(uid)
    }

    /// Removes a pod that has left.
    pub fn delete(&mut self, uid: &PodUid) -> Option<P> {
        self.announced.remove(uid);
        self.pods.remove(uid)
    }

    /// The snapshot is complete. Removes and returns the pods that it does not contain.
    pub fn complete(&mut self) -> Vec<(PodUid, P)> {
        self.complete = true;
        let announced = &self.announced;
        self.pods
            .extract_if(.., |uid, _| !announced.contains(uid))
            .collect()
    }

    /// The announced pods with known data.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = (&PodUid, &P)> {
        self.pods.iter()
    }

    /// The announced pods whose data is unknown.
    pub fn unknown(&self) -> impl Iterator<Item = &PodUid> {
        self.announced
            .iter()
            .filter(|uid| !self.pods.contains_key(uid))
    }

    /// Whether the snapshot of this connection is complete.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether [`Self::pods`] contains every pod of this node.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.complete && self.unknown().next().is_none()
    }

    fn announce(&mut self, uid: &PodUid) -> Result<(), Full> {
        let full = self.announced.len() >= self.most || self.pods.len() >= self.most;
        if full && !self.announced.contains(uid) && !self.pods.contains_key(uid) {
            return Err(Full { most: self.most });
        }
        self.announced.insert(uid.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
