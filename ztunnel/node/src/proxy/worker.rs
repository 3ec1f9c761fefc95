//! Worker threads: each runs its own single-threaded runtime, has its own listeners in every
//! pod, and keeps everything of the connections it accepts, tunnels included. A connection is
//! never handed to another thread, so nothing on its way needs a lock or a remote wake-up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, watch};

use super::authorized::AuthorizedConnections;
use super::connection_table::Shard;
use super::connections::Connections;
use super::open_tunnel::{self, DialError};
use super::relay::CopyMode;
use super::{ProxyState, accept};
use crate::discovery::RateLimiter;
use crate::dns;
use crate::pods::{Listeners, Pod};
use mesh::NetnsCookie;
use mesh::Workload;
use tunnel::hbone;

/// How long workers may take to reset what is open when the time to drain is over.
const TIME_TO_CUT: Duration = Duration::from_secs(1);

/// What the node tells its workers.
#[derive(Debug)]
enum Command {
    /// Serve a pod.
    Add(Arc<Pod>, Listeners),
    /// Stop serving the pod of the namespace with this cookie: its tunnels are drained, and what
    /// is still open after this time is cut.
    Remove(u64, Duration),
    /// The view has changed: judge what is open once more.
    Reauthorize,
    /// Accept nothing more; whoever is connected stays.
    Resign,
    /// Accept nothing more and tell tunnel peers to go elsewhere.
    Drain,
}

/// A worker thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread or its runtime could not be made.
    #[error("cannot start worker {index}: {source}")]
    Start {
        /// Which worker.
        index: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The worker threads of this process.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<(mpsc::UnboundedSender<Command>, JoinHandle<()>)>,
}

impl Workers {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(shared: &Arc<ProxyState>) -> Result<Self, WorkerError> {
        let mut threads = Vec::new();
        for index in 0..shared.config.workers {
            let start = |source| WorkerError::Start { index, source };
            let (commands, inbox) = mpsc::unbounded_channel();
            let (started, starting) = std::sync::mpsc::sync_channel(1);
            let shared = shared.clone();
            let run = move || {
                let built = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => {
                        drop(started.send(Ok(())));
                        runtime.block_on(serve(shared, inbox));
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            };
            let name = format!("worker-{index}");
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(run)
                .map_err(start)?;
            starting
                .recv()
                .unwrap_or_else(|_ended| Err(std::io::Error::other("the thread ended early")))
                .map_err(start)?;
            threads.push((commands, thread));
        }
        Ok(Self { threads })
    }

    /// Begins to serve a pod; `listeners` holds one set for each worker.
    pub fn add(&self, pod: &Arc<Pod>, listeners: Vec<Listeners>) {
        for ((commands, _), listeners) in self.threads.iter().zip(listeners) {
            tell(commands, Command::Add(pod.clone(), listeners));
        }
    }

    /// Stops serving the pod whose namespace has this cookie. Its listeners are closed at once;
    /// what it has open may end by itself, and is reset after `deadline`.
    pub fn remove(&self, cookie: u64, deadline: Duration) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Remove(cookie, deadline));
        }
    }

    /// Has every worker judge its open connections by the view in force.
    pub fn reauthorize(&self) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Reauthorize);
        }
    }

    /// Accepts nothing more: another process has listeners in the same places. Tunnels that peers
    /// have here may be used until the drain.
    pub fn resign(&self) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Resign);
        }
    }

    /// Accepts nothing more and lets what is open end by itself; what has not after `deadline`, or
    /// when `hurry` is over, is reset.
    pub async fn drain(self, deadline: Duration, hurry: impl Future<Output = ()>) {
        let (commands, threads): (Vec<_>, Vec<_>) = self.threads.into_iter().unzip();
        for commands in &commands {
            tell(commands, Command::Drain);
        }
        tokio::select! {
            () = all_ended(&threads) => return,
            () = tokio::time::sleep(deadline) => {
                tracing::warn!(
                    ?deadline,
                    "connections were still open when the time to drain was over"
                );
            }
            () = hurry => tracing::warn!("told again to end: what is open is cut"),
        }
        drop(commands);
        // Should a worker not even manage that, the end of the process cuts its connections.
        drop(tokio::time::timeout(TIME_TO_CUT, all_ended(&threads)).await);
    }
}

async fn all_ended(threads: &[JoinHandle<()>]) {
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tell(worker: &mpsc::UnboundedSender<Command>, command: Command) {
    if worker.send(command).is_err() {
        tracing::error!("a worker thread has ended early");
    }
}

/// What belongs to one worker thread.
pub(super) struct WorkerState {
    pub(super) proxy: Arc<ProxyState>,
    pub(super) pool: Rc<hbone::Pool<DialError>>,
    pub(super) hbone: Rc<hbone::Config>,
    /// What is carried, to be shown.
    pub(super) shard: Shard,
    /// What was let in and is open.
    pub(super) live: Rc<AuthorizedConnections>,
    /// What resolvers have answered to the pods.
    pub(super) names: Rc<dns::Common>,
    random: RefCell<rand::rngs::SmallRng>,
    open: Cell<usize>,
    closed: Notify,
}

impl WorkerState {
    /// Counts a connection as open until what is returned is dropped; the worker ends no earlier.
    fn open(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.clone())
    }

    async fn all_closed(&self) {
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// A random number, to choose a backend with.
    pub(super) fn random(&self) -> u64 {
        rand::Rng::next_u64(&mut *self.random.borrow_mut())
    }
}

/// Counts a connection as open while it lives.
struct Open(Rc<WorkerState>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify_one();
    }
}

/// One pod as one worker sees it.
pub(super) struct PodContext {
    pub(super) worker: Rc<WorkerState>,
    pub(super) pod: Arc<Pod>,
    /// Turns true when the pod leaves or the process drains.
    pub(super) drain: watch::Receiver<bool>,
    /// How often what it dials may be asked for.
    pub(super) outbound_limit: RateLimiter,
    /// How often what concerns its callers may be asked for.
    pub(super) inbound_limit: RateLimiter,
    /// Turns true when another process accepts what comes.
    pub(super) resigned: watch::Receiver<bool>,
    /// What it has open here.
    connections: Rc<Connections>,
    /// The pod's baggage header, kept as long as its workload stays the same object.
    baggage: RefCell<Option<(Arc<Workload>, Option<HeaderValue>)>>,
}

impl PodContext {
    fn new(
        local: &Rc<WorkerState>,
        pod: Arc<Pod>,
        drain: watch::Receiver<bool>,
        resigned: watch::Receiver<bool>,
    ) -> Rc<Self> {
        let workers = local.proxy.config.workers;
        Rc::new(Self {
            worker: local.clone(),
            pod,
            drain,
            outbound_limit: RateLimiter::new(workers),
            inbound_limit: RateLimiter::new(workers),
            resigned,
            connections: Rc::default(),
            baggage: RefCell::default(),
        })
    }

    /// Runs one connection of this pod as a task of its worker, which ends no earlier than it.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        self.connections.spawn(self.worker.open(), connection);
    }

    /// Runs what serves without being a connection as a task of its worker, which ends no earlier
    /// than it.
    pub(super) fn serve(&self, serving: impl Future<Output = ()> + 'static) {
        let open = self.worker.open();
        tokio::task::spawn_local(async move {
            serving.await;
            drop(open);
        });
    }

    /// Cuts what is still open when the time is over.
    async fn cut_after(self: Rc<Self>, deadline: Duration) {
        tokio::time::sleep(deadline).await;
        let open = self.connections.count();
        if open > 0 {
            tracing::info!(pod = %self.pod.uid.0, open, "the pod has left: what it had open is cut");
            self.connections.cut();
        }
    }

    /// Has it taken into account that rules inside the pod redirect what comes in. They may have
    /// come after it was enrolled.
    pub(super) fn redirected(&self) {
        if !self.pod.redirected.swap(true, Ordering::Relaxed) {
            tracing::info!(pod = %self.pod.uid.0, "rules inside the pod redirect what comes in: no direct lane leads to it");
            let cookie = self.pod.netns.cookie();
            self.worker.proxy.recheck.name(NetnsCookie(cookie));
        }
    }

    /// The baggage header for tunnels of this pod.
    pub(super) fn baggage(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut kept = self.baggage.borrow_mut();
        match &*kept {
            Some((of, header)) if Arc::ptr_eq(of, workload) => header.clone(),
            _ => {
                let header = open_tunnel::baggage(workload);
                *kept = Some((workload.clone(), header.clone()));
                header
            }
        }
    }

    /// How a relay of this pod's may move bytes: not by `splice(2)` where its connections with the
    /// proxy may be joined.
    pub(super) fn copy_mode(&self) -> CopyMode {
        let kernel = self.worker.proxy.kernel.as_ref();
        if kernel.is_some_and(|kernel| kernel.may_join()) {
            CopyMode::Copy
        } else {
            CopyMode::Adaptive
        }
    }

    /// What the mesh says about this pod now; nothing if it has left the mesh.
    pub(super) fn workload(&self) -> Option<Arc<Workload>> {
        let view = self.worker.proxy.fast_path.view();
        self.pod.workload(&view.mesh).cloned()
    }
}

async fn serve(shared: Arc<ProxyState>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    let hbone = Rc::new(shared.config.hbone.clone());
    let local = Rc::new(WorkerState {
        pool: hbone::Pool::new(hbone.clone()),
        hbone,
        shard: shared.connection_table.shard(),
        live: AuthorizedConnections::new(shared.fast_path.view_owned()),
        names: Rc::default(),
        proxy: shared,
        random: RefCell::new(rand::make_rng()),
        open: Cell::new(0),
        closed: Notify::new(),
    });
    let mut pods: HashMap<u64, (watch::Sender<bool>, Rc<PodContext>)> = HashMap::new();
    let (resign, resigned) = watch::channel(false);
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Add(pod, listeners) => {
                let (stop, drain) = watch::channel(false);
                let cookie = pod.netns.cookie();
                let context = PodContext::new(&local, pod, drain, resigned.clone());
                match accept::start(&context, listeners) {
                    Ok(()) => drop(pods.insert(cookie, (stop, context))),
                    Err(error) => {
                        tracing::error!(%error, pod = %context.pod.uid.0, "cannot serve the pod")
                    }
                }
            }
            Command::Remove(cookie, deadline) => {
                if let Some((stop, context)) = pods.remove(&cookie) {
                    stop.send_replace(true);
                    tokio::task::spawn_local(context.cut_after(deadline));
                }
                local.pool.evict(|key| key.netns == cookie);
                local.names.forget(cookie);
            }
            Command::Reauthorize => local.live.reauthorize(&local.proxy.fast_path.view_owned()),
            Command::Resign => drop(resign.send_replace(true)),
            Command::Drain => {
                for (_, (stop, _here)) in pods.drain() {
                    stop.send_replace(true);
                }
                break;
            }
        }
    }
    // Nobody has anything more to say: the time to drain is over. What is still open is dropped
    // with the runtime.
    let over = async { while inbox.recv().await.is_some() {} };
    tokio::select! {
        () = local.all_closed() => {}
        () = over => {}
    }
}
