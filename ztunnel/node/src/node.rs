//! The running node: its parts, and how they are built from the settings.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::admin_listeners::{self, AdminListeners, OnPortConflict};
use super::agent::Agent;
use super::bpf::Kernel;
use super::capture::{self, ForeignPrograms};
use super::capture_watch::CaptureWatch;
use super::discovery::own_pods::{self, OwnPods};
use super::enrollment::Enrollment;
use super::fastpath::FastPath;
use super::fastpath::acceleration::Acceleration;
use super::handover::{FixedSettings, Handover, HandoverState};
use super::mesh_updates::Mesh;
use super::proxy::{ConnectionTable, ProxyState, RecheckQueue, Workers, WorkloadWaits};
use super::reload::SettingsSource;
use super::{Error, assembly, dump, roots};
use admin::Readiness;
use mesh::{PathSettings, View};
use settings::Settings;
use telemetry::{LogHandle, Telemetry};
use tunnel::tls;
use upstream::ads;

/// Every part of one node.
pub(super) struct Node {
    pub(super) source: SettingsSource,
    pub(super) settings: Settings,
    pub(super) fixed: FixedSettings,
    pub(super) mesh: Mesh,
    pub(super) shared: Arc<ProxyState>,
    pub(super) workers: Workers,
    pub(super) enrollment: Enrollment,
    pub(super) agent: Option<Agent>,
    pub(super) own_pods: OwnPods,
    /// Batches that are not in force yet. Dropping a batch answers the requests that wait for it.
    pub(super) waiting_batches: Vec<ads::Batch>,
    /// When to reconcile the pods next: to try one again, or to end one that has left.
    pub(super) enroll_due: Option<Instant>,
    /// When to drop the metrics of workloads that are gone.
    pub(super) next_metrics_cleanup: Instant,
    pub(super) acceleration: Acceleration,
    /// When to sweep the fast path's connections once more.
    pub(super) next_sweep: Option<Instant>,
    /// When to look again after the last change.
    pub(super) second_sweep: Option<Instant>,
    pub(super) capture_watch: CaptureWatch,
    pub(super) quit: Arc<Notify>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) admin_listeners: AdminListeners,
    pub(super) readiness: Readiness,
    pub(super) foreign_programs: ForeignPrograms,
    /// Keeps the node unready until the first enrollment.
    pub(super) first_enrollment: Option<admin::Pending>,
    /// The locks of this node's proxies; none where redirection rules capture.
    pub(super) handover: Option<Handover>,
    pub(super) handover_state: HandoverState,
}

impl Node {
    pub(super) fn build(
        source: SettingsSource,
        settings: Settings,
        log: LogHandle,
        on_port_conflict: OnPortConflict,
    ) -> Result<Self, Error> {
        // First: a second proxy started by mistake must fail before it touches the first one's
        // maps.
        let ports = assembly::admin(&settings);
        let bound = admin_listeners::bind(&ports, on_port_conflict)?;
        let programs = capture::programs(&settings)?;
        let kernel = programs.as_ref().map(|programs| programs.kernel.clone());
        let (handover, locks) = programs
            .map(|programs| (programs.handover, programs.locks))
            .unzip();
        let telemetry = Telemetry::new(log.dropped_lines());
        let readiness = Readiness::new();
        let wait_for_mesh = || readiness.wait_for("the control plane");
        let mesh = Mesh::new(&settings, &telemetry, wait_for_mesh)?;
        let shared = proxy_state(&settings, kernel, telemetry, &mesh)?;
        let quit = Arc::new(Notify::new());
        let (stop, stopping) = watch::channel(false);
        let sources = admin::Sources {
            telemetry: shared.telemetry.clone(),
            log: Some(log),
            readiness: readiness.clone(),
            dumps: dump::all(&shared, &settings),
            quit: Box::new({
                let quit = quit.clone();
                move || quit.notify_one()
            }),
        };
        let mut node = Self {
            source,
            fixed: FixedSettings::of(&settings),
            settings,
            own_pods: OwnPods::new(mesh.fetcher()),
            waiting_batches: Vec::new(),
            mesh,
            workers: Workers::start(&shared)?,
            enrollment: Enrollment::new(shared.clone()),
            agent: None,
            enroll_due: None,
            next_metrics_cleanup: Instant::now(),
            acceleration: Acceleration::new(shared.kernel.clone(), shared.telemetry.clone()),
            next_sweep: None,
            second_sweep: None,
            capture_watch: CaptureWatch::default(),
            quit,
            stop,
            first_enrollment: Some(readiness.wait_for("enrolling pods")),
            handover_state: HandoverState::standby(
                readiness.wait_for("the handover from the active process"),
            ),
            admin_listeners: AdminListeners::new(ports, bound, sources, stopping),
            readiness,
            foreign_programs: ForeignPrograms::default(),
            handover,
            shared,
        };
        if let Some((active_lock, standby_lock)) = locks.flatten() {
            node.become_active(active_lock, Some(standby_lock))?;
        }
        Ok(node)
    }
}

/// Builds the state that all workers share.
fn proxy_state(
    settings: &Settings,
    kernel: Option<Arc<Kernel>>,
    telemetry: Arc<Telemetry>,
    mesh: &Mesh,
) -> Result<Arc<ProxyState>, Error> {
    let (issuer, certificates) = (assembly::issuer(settings)?, assembly::tls(settings)?);
    let runtime = tokio::runtime::Handle::current();
    let view = View::new(mesh.current().clone(), [], &PathSettings::default());
    let on_demand = own_pods::on_demand(mesh.fetcher());
    let fast_path = Arc::new(FastPath::new(kernel.clone(), view, on_demand.clone()));
    let waits = telemetry.waits().clone();
    let shared = Arc::new(ProxyState {
        waits: WorkloadWaits::new(fast_path.clone(), settings.workload_wait, waits),
        fast_path,
        on_demand,
        resolver: assembly::resolver(runtime.clone()),
        certificates: tls::Store::new(issuer, certificates, runtime),
        telemetry,
        connection_table: ConnectionTable::default(),
        recheck: RecheckQueue::default(),
        config: assembly::path(settings),
        kernel,
    });
    roots::follow_files(settings, &shared.certificates);
    Ok(shared)
}
