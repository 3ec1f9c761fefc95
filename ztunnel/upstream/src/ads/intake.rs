//! Applies responses without a stream, as the client and the node do. For benchmarks and fuzzing.

use tokio::sync::mpsc;

use super::client::EVENTS;
use super::event::Event;
use super::push::State;
use super::resource::Type;
use api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use mesh::Snapshot;

/// The state of a client and its mesh.
pub struct Intake {
    state: State,
    /// The mesh.
    pub mesh: Snapshot,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("mesh", &self.mesh)
            .finish_non_exhaustive()
    }
}

impl Intake {
    /// Empty. `trust_domain` is that of workloads that set none.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self {
            state: State::new(trust_domain),
            mesh: Snapshot::default(),
        }
    }

    /// Applies a response. Returns the number of refused resources, or `None` for a response of a type
    /// that is not subscribed.
    pub async fn take(&mut self, response: DeltaDiscoveryResponse) -> Option<usize> {
        let kind = Type::of(&response.type_url)?;
        let (outlet, mut inlet) = mpsc::channel(EVENTS);
        let state = &mut self.state;
        let mesh = &mut self.mesh;
        let taken = async move { state.take(kind, response, &outlet).await.ok() };
        let applied = async {
            while let Some(event) = inlet.recv().await {
                if let Event::Changes(mut batch) = event {
                    mesh.apply_all(std::mem::take(&mut batch.changes));
                }
            }
        };
        let (outcome, ()) = futures::join!(taken, applied);
        outcome.map(|outcome| outcome.refused)
    }
}
