//! Applies responses without a stream, as the client and the node do. For benchmarks and fuzz targets.

use tokio::sync::mpsc;

use super::client::EVENT_QUEUE;
use super::event::Event;
use super::push::State;
use super::resource::Type;
use api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use mesh::Snapshot;

/// The state of a client and the mesh built from its events.
pub struct OfflineClient {
    state: State,
    /// The mesh.
    pub mesh: Snapshot,
}

impl std::fmt::Debug for OfflineClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfflineClient")
            .field("mesh", &self.mesh)
            .finish_non_exhaustive()
    }
}

impl OfflineClient {
    /// A client without resources. `trust_domain` is that of workloads that set none.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self {
            state: State::new(trust_domain),
            mesh: Snapshot::default(),
        }
    }

    /// Applies a response. Returns the number of refused resources, or `None` for a response of a type
    /// that is not subscribed.
    pub async fn apply(&mut self, response: DeltaDiscoveryResponse) -> Option<usize> {
        let kind = Type::of(&response.type_url)?;
        let (sender, mut events) = mpsc::channel(EVENT_QUEUE);
        let state = &mut self.state;
        let mesh = &mut self.mesh;
        let decode = async move { state.apply(kind, response, &sender).await.ok() };
        let update_mesh = async {
            while let Some(event) = events.recv().await {
                if let Event::Changes(mut batch) = event {
                    mesh.apply_all(std::mem::take(&mut batch.changes));
                }
            }
        };
        let (outcome, ()) = futures::join!(decode, update_mesh);
        outcome.map(|outcome| outcome.refused)
    }
}
