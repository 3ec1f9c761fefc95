//! What this node knows of the mesh: what the settings say of it and what the control plane tells,
//! put together in one snapshot.
//!
//! Changes of the control plane are gathered and put in force together: looking through the
//! kernel's verdicts takes its time, and in a large cluster something changes all the time. Until
//! the control plane has told everything once, nothing of what it told is in force: half a mesh
//! would take the other half for somebody outside of it, and send to it in the clear.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashSet;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::admin::Pending;
use crate::config::Settings;
use crate::mesh::local::LocalMesh;
use crate::mesh::{Change, Snapshot};
use crate::telemetry::Telemetry;
use crate::xds::{self, Batch, Client, Event};

use super::assembly;

/// The least and the most time between two changes of the view.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// The share of its time that the main loop spends with putting changes in force, at most: one
/// part in so many.
const SHARE: u32 = 4;

/// What this node knows of the mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    /// With every change that was told.
    told: Snapshot,
    /// What is in force, or is to be.
    current: Arc<Snapshot>,
    /// What the settings say.
    local: LocalMesh,
    control_plane: Option<ControlPlane>,
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
    ) -> Result<Self, xds::ConfigError> {
        let mut mesh = Self {
            told: Snapshot::default(),
            current: Arc::default(),
            local: LocalMesh::default(),
            control_plane: None,
        };
        mesh.adopt(&settings.local_mesh);
        if let Some(config) = assembly::xds(settings) {
            let (client, events) = Client::new(config, telemetry.xds().clone())?;
            mesh.control_plane = Some(ControlPlane {
                events,
                client: tokio::spawn(client.run()),
                synced: false,
                pending: Some(wait_for()),
                waiting: Vec::new(),
                changed: false,
                whole: true,
                next: Instant::now(),
            });
        }
        Ok(mesh)
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

    /// Takes over what the settings say now.
    pub(super) fn adopt(&mut self, local: &LocalMesh) {
        let kept: HashSet<Key> = keys(local).collect();
        let gone = keys(&self.local).filter(|key| !kept.contains(key));
        self.told.apply_all(gone.map(Key::removal));
        self.told.apply_all(put(local));
        self.local = local.clone();
        self.current = Arc::new(self.told.clone());
    }

    /// Waits until something that was told is to be put in force: [`Self::current`] is another one
    /// then. What is returned is to be dropped when it is in force.
    pub(super) async fn changed(&mut self) -> Vec<Batch> {
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
                // The client never ends by itself.
                None => return std::future::pending().await,
            }
        }
        control_plane.changed = false;
        self.current = Arc::new(self.told.clone());
        std::mem::take(&mut control_plane.waiting)
    }

    /// Says how long it took to put a change in force; the next one waits accordingly.
    pub(super) fn in_force(&mut self, took: Duration) {
        let Some(control_plane) = &mut self.control_plane else {
            return;
        };
        let pause = (took * (SHARE - 1)).clamp(PAUSE.0, PAUSE.1);
        control_plane.next = Instant::now() + pause;
        if control_plane.synced
            && let Some(pending) = control_plane.pending.take()
        {
            pending.done();
        }
    }
}

impl ControlPlane {
    /// When something is to be put in force: at the end of a push, and not too often.
    fn due(&self) -> Option<Instant> {
        let something = self.changed || !self.waiting.is_empty();
        (self.synced && self.whole && something).then_some(self.next)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.client.abort();
    }
}

/// The name of one thing that the settings describe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Workload(crate::mesh::Uid),
    Service(crate::mesh::NamespacedHostname),
    Policy(Arc<str>),
}

impl Key {
    fn removal(self) -> Change {
        match self {
            Self::Workload(uid) => Change::RemoveWorkload(uid),
            Self::Service(key) => Change::RemoveService(key),
            Self::Policy(key) => Change::RemovePolicy(key),
        }
    }
}

fn keys(local: &LocalMesh) -> impl Iterator<Item = Key> {
    let workloads = local
        .workloads
        .iter()
        .map(|one| Key::Workload(one.uid.clone()));
    let services = local.services.iter().map(|one| Key::Service(one.key()));
    let policies = local
        .policies
        .iter()
        .map(|one| Key::Policy(one.key().into()));
    workloads.chain(services).chain(policies)
}

fn put(local: &LocalMesh) -> impl Iterator<Item = Change> {
    let workloads = local
        .workloads
        .iter()
        .cloned()
        .map(Box::new)
        .map(Change::Workload);
    let services = local
        .services
        .iter()
        .cloned()
        .map(Box::new)
        .map(Change::Service);
    let policies = local
        .policies
        .iter()
        .cloned()
        .map(Box::new)
        .map(Change::Policy);
    services.chain(workloads).chain(policies)
}
