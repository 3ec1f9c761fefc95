//! Asking for one resource, where not the whole mesh is subscribed.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::mesh::{NamespacedHostname, NetworkAddress};

/// Questions that wait for the client to look at them.
const QUEUE: usize = 256;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DemandKey {
    /// Whatever has this address: a workload, or a service by its virtual address.
    Address(NetworkAddress),
    /// A service.
    Service(NamespacedHostname),
}

impl fmt::Display for DemandKey {
    /// The name under which the control plane knows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => NetworkAddress {
                network: address.network.clone(),
                address: address.address.to_canonical(),
            }
            .fmt(f),
            Self::Service(key) => key.fmt(f),
        }
    }
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It is there, and the mesh that is in force knows it.
    Found,
    /// The control plane does not know it: it is outside of the mesh.
    Absent,
    /// Nothing can be said: no answer in time, or one that could not be used. Whoever asks must
    /// not take it for outside of the mesh.
    Unknown,
}

pub(super) struct Question {
    pub(super) key: String,
    pub(super) answer: oneshot::Sender<Fetched>,
}

/// Asks the control plane for single resources. Clones share everything.
#[derive(Clone)]
pub struct Demand {
    questions: mpsc::Sender<Question>,
    limit: Duration,
}

impl Demand {
    pub(super) fn new(limit: Duration) -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(QUEUE);
        (Self { questions, limit }, asked)
    }

    /// Asks for one resource, and returns when the changes that the answer brings are in force, at
    /// the latest after [`super::Config::demand_timeout`]. Many may ask for the same; the control
    /// plane is asked once.
    pub async fn fetch(&self, key: &DemandKey) -> Fetched {
        let ask = async {
            let (answer, answered) = oneshot::channel();
            let key = key.to_string();
            let question = Question { key, answer };
            self.questions.send(question).await.ok()?;
            answered.await.ok()
        };
        let answer = timeout(self.limit, ask).await;
        answer.ok().flatten().unwrap_or(Fetched::Unknown)
    }
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand").finish_non_exhaustive()
    }
}
