//! The composition root of the proxy role: builds every room from the settings, wires them
//! together, and then follows the settings file and the signals until it is told to stop.
//!
//! Order matters at both ends. At the start the kernel programs of an earlier process are taken
//! over before anything else could let traffic pass them by, where that process runs yet when it has
//! handed over ([`charge`]); at the end nothing is detached: a stopped proxy leaves its pods
//! captured, and so refused, until the next one takes over.

mod admin_listeners;
pub mod agent;
mod assembly;
pub mod bpf;
mod capture;
pub mod discovery;
pub mod dns;
pub mod doctor;
mod dump;
mod enrollment;
pub mod fastpath;
pub mod handover;
mod mesh_updates;
pub mod pods;
mod program_log;
pub mod proxy;
mod roots;
mod serving;
mod signals;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{Notify, watch};

use crate::bpf::Kernel;
use crate::fastpath::FastPath;
use crate::handover::Handover;
use crate::proxy::{
    ConnectionTable, ProxyState, RecheckQueue, WorkerError, Workers, WorkloadWaits,
};
use admin::{self, Readiness};
use mesh::{Lanes, View};
use settings::{self, ConfigError, Overrides, Settings, Watcher};
use telemetry::{FilterError, LogError, LogGuard, LogHandle, Telemetry, init_logging};
use tunnel::tls;
use upstream::ads;
use upstream::ca::istiod::IstiodError;
use upstream::ca::local::LocalCaError;

use admin_listeners::AdminListeners;
pub use admin_listeners::OnPortConflict;
use agent::Agent;
use capture::ForeignPrograms;
use discovery::own_pods::OwnPods;
use enrollment::Enrollment;
use fastpath::acceleration::Acceleration;
use handover::{Fixed, HandoverState};
pub use mesh_updates::pause_after;
use mesh_updates::{Mesh, MeshUpdate};
use signals::Signals;

/// How often pods that could not be enrolled are tried again.
const ENROLL_RETRY: Duration = Duration::from_secs(1);

/// How often the series of workloads that are gone are forgotten, while the control plane tells of
/// changes.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// How long after a change the direct lane is looked at again: what the proxy was just dialling, as
/// it was judged before, has been written down by then.
const SECOND_SWEEP: Duration = Duration::from_millis(200);

/// Why the node could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(
    missing_docs,
    reason = "each variant is the error of the room it names"
)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("log.filter: {0}")]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Kernel(#[from] bpf::Error),
    #[error(transparent)]
    Ca(#[from] LocalCaError),
    #[error(transparent)]
    Istiod(#[from] IstiodError),
    #[error(transparent)]
    Xds(#[from] ads::ConfigError),
    #[error(transparent)]
    Revocation(#[from] tls::RevocationError),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("the client of the {0} has ended: without it this node would go on with old news")]
    Ended(&'static str),
    #[error("cannot start the event loop: {0}")]
    Runtime(#[source] std::io::Error),
}

/// Runs one node until it is told to stop. `taken` says what to do where another process has the
/// ports of administration, metrics and readiness.
///
/// # Errors
/// When a room cannot be built, or this process cannot be in charge of the pods when it is its event;
/// what was pinned in the kernel stays as it was.
pub fn run(
    file: Option<PathBuf>,
    overrides: Overrides,
    taken: OnPortConflict,
) -> Result<(), Error> {
    let began = Instant::now();
    raise_file_limit();
    let settings = settings::load(file.as_deref(), &overrides)?;
    let (log, guard) = init_logging(&assembly::log(&settings)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let node = Node::build(Source { file, overrides }, settings, log, taken)?;
        tracing::info!(after = ?began.elapsed(), "started");
        node.serve().await
    })?;
    drop::<LogGuard>(guard);
    Ok(())
}

/// Every connection takes two descriptors and every pod some more: the soft limit of 1024 that
/// most systems set would be over with five hundred connections.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        eprintln!("warning: the limit on open files stays as it is: {error}");
    }
}

/// Where settings come from, to read them again.
struct Source {
    file: Option<PathBuf>,
    overrides: Overrides,
}

struct Node {
    source: Source,
    settings: Settings,
    fixed: Fixed,
    mesh: Mesh,
    shared: Arc<ProxyState>,
    workers: Workers,
    enrollment: Enrollment,
    agent: Option<Agent>,
    own: OwnPods,
    /// Who waits for what the control plane has told, until it is in force.
    held: Vec<ads::Batch>,
    /// When pods that could not be enrolled are tried again; none if there are none.
    retry: Option<Instant>,
    /// When the series of workloads that are gone are to be forgotten.
    forget: Instant,
    acceleration: Acceleration,
    /// When the connections of the direct lane are to be looked at once more.
    second_sweep: Option<Instant>,
    quit: Arc<Notify>,
    stop: watch::Sender<bool>,
    admin_listeners: AdminListeners,
    readiness: Readiness,
    /// Programs that capture where rules are to.
    foreign_programs: ForeignPrograms,
    pending: Option<admin::Pending>,
    /// Who is in charge; none where rules capture.
    handover: Option<Handover>,
    handover_state: HandoverState,
}

impl Node {
    fn build(
        source: Source,
        settings: Settings,
        log: LogHandle,
        taken: OnPortConflict,
    ) -> Result<Self, Error> {
        // First of all: a second proxy by mistake must fail before it touches the first one's maps.
        let ports = assembly::admin(&settings);
        let bound = admin_listeners::bind(&ports, taken)?;
        let programs = capture::programs(&settings)?;
        let kernel = programs.as_ref().map(|programs| programs.kernel.clone());
        let (handover, own) = programs
            .map(|programs| (programs.handover, programs.own))
            .unzip();
        let telemetry = Telemetry::new(log.dropped_lines());
        let readiness = Readiness::new();
        let told = || readiness.wait_for("the control plane");
        let mesh = Mesh::new(&settings, &telemetry, told)?;
        let shared = share(&settings, kernel, telemetry, &mesh)?;
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
            fixed: Fixed::of(&settings),
            settings,
            own: OwnPods::new(mesh.demand()),
            held: Vec::new(),
            mesh,
            workers: Workers::start(&shared)?,
            enrollment: Enrollment::new(shared.clone()),
            agent: None,
            retry: None,
            forget: Instant::now(),
            acceleration: Acceleration::new(shared.kernel.clone(), shared.telemetry.clone()),
            second_sweep: None,
            quit,
            stop,
            pending: Some(readiness.wait_for("enrolling pods")),
            handover_state: HandoverState::beside(
                readiness.wait_for("the process in charge, which is to hand over"),
            ),
            admin_listeners: AdminListeners::new(ports, bound, sources, stopping),
            readiness,
            foreign_programs: ForeignPrograms::default(),
            handover,
            shared,
        };
        if let Some((charge, heir)) = own.flatten() {
            node.become_active(charge, Some(heir))?;
        }
        Ok(node)
    }

    /// Follows settings and signals until one says stop, then drains.
    ///
    /// # Errors
    /// When a part that the node cannot do without has ended: a process that is started anew has it
    /// again.
    async fn serve(mut self) -> Result<(), Error> {
        for warning in &self.settings.warnings {
            tracing::warn!("{warning}");
        }
        let mut watcher = self.watch();
        // Read once more: what was written since the start would go unnoticed otherwise.
        self.reload();
        let mut signals = Signals::listen();
        let recheck = self.shared.clone();
        let ended = loop {
            self.move_on();
            let hold = self.agent.as_ref().and_then(Agent::hold);
            tokio::select! {
                () = changed(watcher.as_mut()) => {
                    self.reload();
                    if let Some(Err(error)) = watcher.as_mut().map(|w| w.retarget(&self.files())) {
                        tracing::error!(%error, "changes of the mesh file may go unnoticed");
                    }
                }
                event = self.handover_state.next_event(self.handover.as_ref()) => {
                    if let Err(error) = self.handle_handover(event).await {
                        break Err(error.into());
                    }
                }
                () = self.admin_listeners.due() => self.admin_listeners.try_bind(),
                () = until(self.retry) => self.enroll(),
                told = self.mesh.changed() => {
                    let Some(told) = told else { break Err(Error::Ended("control plane")) };
                    self.adopt_told(told);
                }
                request = serving::requested(self.agent.as_mut()) => {
                    let Some(request) = request else { break Err(Error::Ended("node agent")) };
                    self.handle_request(request);
                }
                pods = recheck.recheck.named() => self.recheck_pods(&pods),
                () = until(hold) => self.stop_waiting(),
                () = until(self.own.due()) => self.attend_to_own(),
                () = self.acceleration.tested() => self.reauthorize(),
                () = until(self.second_sweep) => {
                    self.second_sweep = None;
                    self.sweep();
                }
                () = signals.end() => break Ok(()),
                () = self.quit.notified() => break Ok(()),
            }
        };
        self.drain(signals).await;
        ended
    }

    /// Lets what is open end; a second signal ends it at once.
    async fn drain(mut self, mut signals: Signals) {
        tracing::info!("stopping: draining connections");
        // Before anything else: one that waits beside must not wait for the drain.
        self.step_down().await;
        self.stop.send_replace(true);
        // With its listeners: a connection that nobody would accept is refused instead.
        drop(self.agent);
        drop(self.enrollment);
        let deadline = self.settings.termination_deadline;
        self.workers.drain(deadline, signals.end()).await;
        self.admin_listeners.finished().await;
    }

    fn watch(&self) -> Option<Watcher> {
        let files = self.files();
        if files.is_empty() {
            return None;
        }
        Watcher::new(&files)
            .inspect_err(
                |error| tracing::error!(%error, "changes of the settings will not be noticed"),
            )
            .ok()
    }

    /// The files that the settings come from.
    fn files(&self) -> Vec<PathBuf> {
        [&self.source.file, &self.settings.mesh_file]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Reads the settings again. A bad file keeps the last good settings.
    fn reload(&mut self) {
        match settings::load(self.source.file.as_deref(), &self.source.overrides) {
            Ok(settings) => {
                let changed = assembly::fixed_keys_that_differ(&self.settings, &settings);
                for key in &changed {
                    tracing::warn!(key, "this setting changes only with a restart");
                }
                if changed
                    .iter()
                    .any(|key| assembly::IDENTIFYING.contains(key))
                {
                    tracing::error!(
                        "the new settings are another node's; the last good ones stay in force"
                    );
                } else if settings != self.settings {
                    self.adopt(settings);
                    tracing::info!("settings loaded anew");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the settings are bad; the last good ones stay in force");
            }
        }
        self.enroll();
    }

    /// Puts new settings in force.
    fn adopt(&mut self, settings: Settings) {
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        if self.shared.kernel.is_none() {
            capture::warn_of_exemptions(&settings);
        }
        self.mesh.adopt(&settings.local_mesh);
        self.settings = settings;
        self.reauthorize();
        self.forget_series();
        if self.handover_state.is_active()
            && let Some(kernel) = &self.shared.kernel
            && let Err(error) = kernel.set_exemptions(&assembly::exemptions(&self.settings))
        {
            tracing::error!(%error, "the exemptions from capture stay as they were");
        }
    }

    /// Puts in force what the control plane has told; those who wait for it are answered then, which
    /// may be later.
    fn adopt_told(&mut self, told: MeshUpdate) {
        let began = Instant::now();
        self.held.extend(told.waiting);
        if !told.changed && !self.reauthorization_waits() {
            // All of it is in force: nobody has to wait, and nothing to be judged.
            self.held.clear();
            self.mesh.in_force(began.elapsed());
            return;
        }
        self.reauthorize();
        // Pods that failed have their own time, however often something changes.
        if self.retry.is_none() {
            self.enroll();
        }
        if self.forget <= began {
            self.forget = began + FORGET_EVERY;
            self.forget_series();
        }
        if !self.reauthorization_waits() {
            self.mesh.in_force(began.elapsed());
        }
    }

    /// Drops the metrics of workloads that are gone.
    fn forget_series(&self) {
        let mesh = self.mesh.current();
        let telemetry = &self.shared.telemetry;
        telemetry.retain(|uid| mesh.workload_by_uid(uid).is_some());
    }

    /// Puts what is known now in force: no verdict of the kernel that contradicts it is left when
    /// this returns, and what is open against it is ended. Before it is known which pods there are,
    /// only those that are known are served by it; the rest is made up for then.
    fn reauthorize(&mut self) {
        self.ask_for_own();
        if !self.mesh.is_known() {
            return;
        }
        let in_charge = self.handover_state.is_active();
        let mut lanes = self.acceleration.lanes(&self.settings, in_charge);
        if self.shared.kernel.is_none() {
            // Only the programs know which pod a plaintext connection comes from.
            lanes.tunnel_everything();
        }
        let mesh = self.mesh.current();
        let view = View::new(mesh.clone(), self.enrollment.pods(), &lanes);
        if self.reauthorization_waits() {
            self.shared.fast_path.look_ahead(view);
            self.held.clear();
            return;
        }
        self.shared.fast_path.change(view);
        self.workers.reauthorize();
        self.sweep();
        self.second_sweep = Some(Instant::now() + SECOND_SWEEP);
        self.held.clear();
        self.mesh.in_force(Duration::ZERO);
    }

    pub(crate) fn reauthorization_waits(&self) -> bool {
        let hold = self.agent.as_ref().and_then(Agent::hold);
        !self.mesh.is_known() || hold.is_some() || self.own.holds()
    }

    fn sweep(&self) {
        let enrollment = &self.enrollment;
        self.shared.fast_path.sweep(|cookie| enrollment.pod(cookie));
    }
}

async fn changed(watcher: Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// What the workers share.
fn share(
    settings: &Settings,
    kernel: Option<Arc<Kernel>>,
    telemetry: Arc<Telemetry>,
    mesh: &Mesh,
) -> Result<Arc<ProxyState>, Error> {
    let (issuer, certificates) = (assembly::issuer(settings)?, assembly::tls(settings)?);
    let runtime = tokio::runtime::Handle::current();
    let view = View::new(mesh.current().clone(), [], &Lanes::default());
    let on_demand = discovery::own_pods::on_demand(mesh.demand());
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
