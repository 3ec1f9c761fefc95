//! The mesh as this node knows it: one snapshot of the settings and of the control plane's
//! resources.
//!
//! Changes of the control plane are collected and put in force together, because a change
//! re-examines every fast-path entry, and in a large cluster changes are constant. No resource is
//! in force before the control plane has sent all of them once: with half a mesh the proxy would
//! treat the other half as outside the mesh and send to it in plaintext.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use admin::Pending;
use mesh::local::LocalMesh;
use mesh::{Change, Snapshot};
use settings::Settings;
use telemetry::Telemetry;
use upstream::ads::{self, Batch, Client, Event, OnDemandFetcher};

use super::assembly;
use super::deadline::until;

/// The shortest time between two changes of the view.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The longest time that a change waits because the previous one was slow.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// The main loop spends at most one part in this many of its time on putting changes in force.
const LOAD_DIVISOR: u32 = 4;

/// The mesh as this node knows it.
#[derive(Debug)]
pub(super) struct Mesh {
    /// The control plane's resources, including those that are not in force yet.
    received: Snapshot,
    /// The snapshot that is in force or about to be; empty before enough is known.
    current: Arc<Snapshot>,
    /// The mesh of the settings.
    local: LocalMesh,
    control_plane: Option<ControlPlane>,
    /// Requests single resources; only with on-demand discovery.
    fetcher: Option<OnDemandFetcher>,
}

/// Changes of the control plane that are ready to be put in force.
#[derive(Debug)]
pub(super) struct MeshUpdate {
    /// Requests wait for these batches; drop a batch when it is in force.
    pub(super) waiting: Vec<Batch>,
    /// Whether the snapshot has changed. If not, there is nothing to put in force.
    pub(super) changed: bool,
}

/// The connection to the control plane, and its changes that are not in force.
#[derive(Debug)]
struct ControlPlane {
    events: mpsc::Receiver<Event>,
    client: JoinHandle<()>,
    /// Whether every resource has arrived once.
    synced: bool,
    pending: Option<Pending>,
    /// Dropping a batch answers the requests that wait for it.
    waiting: Vec<Batch>,
    changed: bool,
    /// Whether the last batch ended a push.
    push_complete: bool,
    /// The earliest time of the next change.
    next: Instant,
}

impl Mesh {
    /// Starts with the mesh of the settings, and subscribes to the control plane if they name one.
    /// `wait_for` keeps the node unready until every resource has arrived.
    ///
    /// # Errors
    /// When the settings of the control plane are invalid.
    pub(super) fn new(
        settings: &Settings,
        telemetry: &Telemetry,
        wait_for: impl FnOnce() -> Pending,
    ) -> Result<Self, ads::ConfigError> {
        let mut mesh = Self {
            received: Snapshot::default(),
            current: Arc::default(),
            local: LocalMesh::default(),
            control_plane: None,
            fetcher: None,
        };
        if let Some(config) = assembly::xds(settings) {
            let (client, events) = Client::new(config, telemetry.xds().clone())?;
            if let Some(fetcher) = client.fetcher() {
                mesh.received = Snapshot::default().partial();
                // Also before the first resource: an unknown address must not be treated as outside
                // the mesh.
                mesh.current = Arc::new(mesh.received.clone());
                mesh.fetcher = Some(fetcher);
            }
            let client = tokio::spawn(client.run());
            mesh.control_plane = Some(ControlPlane::new(events, client, wait_for()));
        }
        mesh.apply_local(&settings.local_mesh);
        Ok(mesh)
    }

    /// Requests single resources; none without on-demand discovery.
    pub(super) const fn fetcher(&self) -> Option<&OnDemandFetcher> {
        self.fetcher.as_ref()
    }

    /// The snapshot that is in force or about to be.
    pub(super) fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    /// Whether enough is known to authorize connections.
    pub(super) fn is_known(&self) -> bool {
        self.control_plane
            .as_ref()
            .is_none_or(|control_plane| control_plane.synced)
    }

    /// Applies the mesh of the settings. In the middle of a push it takes effect at the push's end.
    pub(super) fn apply_local(&mut self, local: &LocalMesh) {
        if *local == self.local {
            return;
        }
        self.local = local.clone();
        match &mut self.control_plane {
            Some(control_plane) if !control_plane.is_at_rest() => {
                control_plane.changed = true;
                tracing::info!(
                    "the mesh of the settings takes effect at the end of the control plane's push"
                );
            }
            _ => self.merge(),
        }
    }

    /// Merges both sources; the control plane's resource wins over one of the settings.
    fn merge(&mut self) {
        let mut mesh = self.received.clone();
        mesh.apply_all(local_only(&self.local, &self.received));
        self.current = Arc::new(mesh);
    }

    /// Waits until changes are ready to be put in force; [`Self::current`] has them then. None: the
    /// control plane's client has stopped, which it never does by itself. Safe to cancel.
    pub(super) async fn changed(&mut self) -> Option<MeshUpdate> {
        let Some(control_plane) = &mut self.control_plane else {
            return std::future::pending().await;
        };
        loop {
            let due = control_plane.due();
            let event = tokio::select! {
                biased;
                () = until(due) => break,
                event = control_plane.events.recv() => event,
            };
            match event {
                Some(Event::Changes(mut batch)) => {
                    let changes = std::mem::take(&mut batch.changes);
                    control_plane.changed |= self.received.apply_all(changes);
                    control_plane.push_complete = batch.ends_push;
                    control_plane.waiting.push(batch);
                }
                Some(Event::Synced) => {
                    tracing::info!(
                        workloads = self.received.workloads().len(),
                        services = self.received.services().len(),
                        policies = self.received.policies().len(),
                        "the control plane has sent the whole mesh"
                    );
                    control_plane.synced = true;
                    control_plane.changed = true;
                }
                None => return None,
            }
        }
        let changed = std::mem::take(&mut control_plane.changed);
        let waiting = std::mem::take(&mut control_plane.waiting);
        if changed {
            self.merge();
        }
        Some(MeshUpdate { waiting, changed })
    }

    /// A change is in force, and it took this long: the next change waits accordingly.
    pub(super) fn in_force(&mut self, took: Duration) {
        let Some(control_plane) = &mut self.control_plane else {
            return;
        };
        control_plane.next = Instant::now() + pause_after(took);
        if control_plane.synced
            && let Some(pending) = control_plane.pending.take()
        {
            pending.done();
        }
    }
}

/// How long the next change waits after one that took this long to put in force. Changes that
/// arrive meanwhile are put in force together.
#[must_use]
pub fn pause_after(took: Duration) -> Duration {
    (took * (LOAD_DIVISOR - 1)).clamp(MIN_PAUSE, MAX_PAUSE)
}

impl ControlPlane {
    fn new(events: mpsc::Receiver<Event>, client: JoinHandle<()>, pending: Pending) -> Self {
        Self {
            events,
            client,
            synced: false,
            pending: Some(pending),
            waiting: Vec::new(),
            changed: false,
            push_complete: true,
            next: Instant::now(),
        }
    }

    /// Whether no push is under way, so that the received resources are consistent.
    const fn is_at_rest(&self) -> bool {
        self.synced && self.push_complete
    }

    /// When to put changes in force: at the end of a push, and not too often.
    fn due(&self) -> Option<Instant> {
        let has_changes = self.changed || !self.waiting.is_empty();
        (self.is_at_rest() && has_changes).then_some(self.next)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.client.abort();
    }
}

/// The resources of the settings that the control plane does not have. Services come first: a
/// backend that comes before its service has to wait for it.
fn local_only(local: &LocalMesh, received: &Snapshot) -> impl Iterator<Item = Change> {
    let services = local.services.iter();
    let services = services.filter(|one| received.service(&one.key()).is_none());
    let workloads = local.workloads.iter();
    let workloads = workloads.filter(|one| received.workload_by_uid(&one.uid).is_none());
    let policies = local.policies.iter();
    let policies = policies.filter(|one| received.policy(&one.key()).is_none());
    let services = services.cloned().map(Box::new).map(Change::Service);
    let workloads = workloads.cloned().map(Box::new).map(Change::Workload);
    services
        .chain(workloads)
        .chain(policies.cloned().map(Box::new).map(Change::Policy))
}

#[cfg(test)]
mod tests;
