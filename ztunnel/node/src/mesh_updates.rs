//! What this node knows of the mesh: what the settings say of it and what the control plane tells,
//! put together in one snapshot.
//!
//! Changes of the control plane are gathered and put in force together: looking through the
//! kernel's verdicts takes its time, and in a large cluster something changes all the time. Until
//! the control plane has told everything once, nothing of what it told is in force: half a mesh
//! would take the other half for somebody outside of it, and send to it in the clear.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use admin::Pending;
use mesh::local::LocalMesh;
use mesh::{Change, Snapshot};
use settings::Settings;
use telemetry::Telemetry;
use upstream::ads::{self, Batch, Client, Demand, Event};

use super::assembly;

/// The least and the most time between two changes of the view.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// The share of its time that the main loop spends with putting changes in force, at most: one
/// part in so many.
const SHARE: u32 = 4;

/// What this node knows of the mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    /// What the control plane has told, also what is not in force yet.
    told: Snapshot,
    /// All that is in force, or is to be; empty before enough is known.
    current: Arc<Snapshot>,
    /// What the settings say.
    local: LocalMesh,
    control_plane: Option<ControlPlane>,
    /// Asks for single things, where the control plane does not tell everything.
    demand: Option<Demand>,
}

/// What the control plane has told.
#[derive(Debug)]
pub(super) struct MeshUpdate {
    /// Those who asked for it; to be dropped when it is in force.
    pub(super) waiting: Vec<Batch>,
    /// Whether anything is different now. If not, there is nothing to put in force.
    pub(super) changed: bool,
}

/// The connection to the control plane, and what it has told that is not in force.
#[derive(Debug)]
struct ControlPlane {
    events: mpsc::Receiver<Event>,
    client: JoinHandle<()>,
    /// Whether it has told everything once.
    synced: bool,
    pending: Option<Pending>,
    /// Those who wait for these changes are answered when they are dropped.
    waiting: Vec<Batch>,
    changed: bool,
    /// Whether the last batch ended a push.
    whole: bool,
    /// Not before then.
    next: Instant,
}

impl Mesh {
    /// What the settings say; the control plane, if they name one, is asked from now on. `wait_for`
    /// keeps the node unready until it has told everything.
    ///
    /// # Errors
    /// When the control plane's settings cannot work.
    pub(super) fn new(
        settings: &Settings,
        telemetry: &Telemetry,
        wait_for: impl FnOnce() -> Pending,
    ) -> Result<Self, ads::ConfigError> {
        let mut mesh = Self {
            told: Snapshot::default(),
            current: Arc::default(),
            local: LocalMesh::default(),
            control_plane: None,
            demand: None,
        };
        if let Some(config) = assembly::xds(settings) {
            let (client, events) = Client::new(config, telemetry.xds().clone())?;
            if let Some(demand) = client.demand() {
                mesh.told = Snapshot::default().known_in_part();
                // Before anything is told, too: to know nothing is no reason to take it for outside.
                mesh.current = Arc::new(mesh.told.clone());
                mesh.demand = Some(demand);
            }
            let client = tokio::spawn(client.run());
            mesh.control_plane = Some(ControlPlane::new(events, client, wait_for()));
        }
        mesh.adopt(&settings.local_mesh);
        Ok(mesh)
    }

    /// Asks for single things, where the control plane does not tell everything.
    pub(super) const fn demand(&self) -> Option<&Demand> {
        self.demand.as_ref()
    }

    /// The snapshot that is in force, or is to be.
    pub(super) fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    /// Whether enough is known to judge connections by it.
    pub(super) fn is_known(&self) -> bool {
        self.control_plane
            .as_ref()
            .is_none_or(|control_plane| control_plane.synced)
    }

    /// Takes over what the settings say now. In the middle of a push it counts at the push's end.
    pub(super) fn adopt(&mut self, local: &LocalMesh) {
        if *local == self.local {
            return;
        }
        self.local = local.clone();
        match &mut self.control_plane {
            Some(control_plane) if !control_plane.is_at_rest() => {
                control_plane.changed = true;
                tracing::info!(
                    "what the settings say of the mesh counts when the control plane has told its part"
                );
            }
            _ => self.put_together(),
        }
    }

    /// What the control plane tells goes before what the settings say of the same thing.
    fn put_together(&mut self) {
        let mut mesh = self.told.clone();
        mesh.apply_all(besides(&self.local, &self.told));
        self.current = Arc::new(mesh);
    }

    /// Waits until something that was told is to be put in force: [`Self::current`] is another one
    /// then.
    /// None: the client of the control plane has ended, which it never does by itself.
    pub(super) async fn changed(&mut self) -> Option<MeshUpdate> {
        let Some(control_plane) = &mut self.control_plane else {
            return std::future::pending().await;
        };
        loop {
            let due = control_plane.due();
            let event = tokio::select! {
                biased;
                () = super::until(due) => break,
                event = control_plane.events.recv() => event,
            };
            match event {
                Some(Event::Changes(mut batch)) => {
                    let changes = std::mem::take(&mut batch.changes);
                    control_plane.changed |= self.told.apply_all(changes);
                    control_plane.whole = batch.ends_push;
                    control_plane.waiting.push(batch);
                }
                Some(Event::Synced) => {
                    tracing::info!(
                        workloads = self.told.workloads().len(),
                        services = self.told.services().len(),
                        policies = self.told.policies().len(),
                        "the control plane has told what the mesh is"
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
            self.put_together();
        }
        Some(MeshUpdate { waiting, changed })
    }

    /// Says how long it took to put a change in force; the next one waits accordingly.
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

/// How long nothing new is put in force after something was, which took so long: what comes
/// meanwhile is put in force together.
#[must_use]
pub fn pause_after(took: Duration) -> Duration {
    (took * (SHARE - 1)).clamp(PAUSE.0, PAUSE.1)
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
            whole: true,
            next: Instant::now(),
        }
    }

    /// Whether what was told is a whole, so that it may be put in force.
    const fn is_at_rest(&self) -> bool {
        self.synced && self.whole
    }

    /// When something is to be put in force: at the end of a push, and not too often.
    fn due(&self) -> Option<Instant> {
        let something = self.changed || !self.waiting.is_empty();
        (self.is_at_rest() && something).then_some(self.next)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.client.abort();
    }
}

/// What the settings describe and the control plane does not. Services first: backends that come
/// before their service are put aside for it.
fn besides(local: &LocalMesh, told: &Snapshot) -> impl Iterator<Item = Change> {
    let services = local.services.iter();
    let services = services.filter(|one| told.service(&one.key()).is_none());
    let workloads = local.workloads.iter();
    let workloads = workloads.filter(|one| told.workload_by_uid(&one.uid).is_none());
    let policies = local.policies.iter();
    let policies = policies.filter(|one| told.policy(&one.key()).is_none());
    let services = services.cloned().map(Box::new).map(Change::Service);
    let workloads = workloads.cloned().map(Box::new).map(Change::Workload);
    services
        .chain(workloads)
        .chain(policies.cloned().map(Box::new).map(Change::Policy))
}

#[cfg(test)]
mod tests;
