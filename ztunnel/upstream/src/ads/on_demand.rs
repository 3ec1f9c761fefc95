//! Fetches single resources for on-demand discovery.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use mesh::{FetchOutcome, ResourceKey};

/// The length of the queue of fetch requests.
const QUEUE: usize = 256;

/// A request for one resource.
pub(super) struct FetchRequest {
    pub(super) key: String,
    pub(super) answer: oneshot::Sender<FetchOutcome>,
}

/// A handle that fetches single resources from the control plane. Clones share one queue.
#[derive(Clone)]
pub struct OnDemandFetcher {
    fetches: mpsc::Sender<FetchRequest>,
    limit: Duration,
}

impl OnDemandFetcher {
    pub(super) fn new(limit: Duration) -> (Self, mpsc::Receiver<FetchRequest>) {
        let (fetches, receiver) = mpsc::channel(QUEUE);
        (Self { fetches, limit }, receiver)
    }

    /// Fetches one resource. Returns when the snapshot with the changes of the answer is published,
    /// or after [`super::Config::demand_timeout`]. Concurrent requests for one key are sent once.
    pub async fn fetch(&self, key: &ResourceKey) -> FetchOutcome {
        let request = async {
            let (answer, answered) = oneshot::channel();
            let key = key.to_string();
            let fetch = FetchRequest { key, answer };
            self.fetches.send(fetch).await.ok()?;
            answered.await.ok()
        };
        let answer = timeout(self.limit, request).await;
        answer.ok().flatten().unwrap_or(FetchOutcome::Unknown)
    }
}

impl fmt::Debug for OnDemandFetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemandFetcher").finish_non_exhaustive()
    }
}
