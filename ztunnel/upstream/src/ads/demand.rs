//! Asking for one resource, where not the whole mesh is subscribed.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use mesh::{DemandKey, Fetched};

/// Questions that wait for the client to look at them.
const QUEUE: usize = 256;

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
