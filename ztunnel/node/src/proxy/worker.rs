//! Worker threads. Each worker runs its own single-threaded runtime, has its own listeners in every
//! pod, and owns the connections that it accepts, tunnels included. A connection never moves to
//! another thread, so it needs no lock and no wake-up across threads.

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

/// How long workers may take to reset open connections after the drain deadline.
const TIME_TO_CUT: Duration = Duration::from_secs(1);

/// A command of the node to its workers.
#[derive(Debug)]
enum Command {
    /// Serve a pod.
    Add(Arc<Pod>, Listeners),
    /// Stop serving the pod of the namespace with this cookie: drain its tunnels, and reset the
    /// connections that are still open after this time.
    Remove(u64, Duration),
    /// The view has changed: authorize the open connections again.
    Reauthorize,
    /// Accept no more connections; keep the open ones.
    Resign,
    /// Accept no more connections and ask tunnel peers to reconnect elsewhere.
    Drain,
}

/// A worker thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread or its runtime could not be created.
    #[error("cannot start worker {index}: {source}")]
    Start {
        /// The index of the worker.
        index: usize,
        /// The system's error.
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
    /// When the system cannot provide a thread or an event queue.
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

    /// Starts to serve a pod; `listeners` holds one set for each worker.
    pub fn add(&self, pod: &Arc<Pod>, listeners: Vec<Listeners>) {
        for ((commands, _), listeners) in self.threads.iter().zip(listeners) {
            tell(commands, Command::Add(pod.clone(), listeners));
        }
    }

    /// Stops serving the pod whose namespace has this cookie. Its listeners are closed at once; its
    /// open connections are reset after `deadline`.
    pub fn remove(&self, cookie: u64, deadline: Duration) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Remove(cookie, deadline));
        }
    }

    /// Makes every worker authorize its open connections by the view in force.
    pub fn reauthorize(&self) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Reauthorize);
        }
    }

    /// Accepts no more connections, because another process has listeners on the same addresses.
    /// Existing tunnels of peers stay usable until the drain.
    pub fn resign(&self) {
        for (commands, _) in &self.threads {
            tell(commands, Command::Resign);
        }
    }

    /// Accepts no more connections and waits for the open ones. They are reset after `deadline`, or
    /// earlier when `hurry` completes.
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
        // If a worker exceeds even this limit, the end of the process closes its connections.
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

/// The state of one worker thread.
pub(super) struct WorkerState {
    pub(super) proxy: Arc<ProxyState>,
    pub(super) pool: Rc<hbone::Pool<DialError>>,
    pub(super) hbone: Rc<hbone::Config>,
    /// The worker's part of the connection table.
    pub(super) shard: Shard,
    /// The authorized open connections.
    pub(super) live: Rc<AuthorizedConnections>,
    /// The resolver answers that the worker's DNS servers share.
    pub(super) names: Rc<dns::SharedState>,
    random: RefCell<rand::rngs::SmallRng>,
    open: Cell<usize>,
    closed: Notify,
}

impl WorkerState {
    /// Counts a connection as open until the returned value is dropped. The worker does not end
    /// before.
    fn open(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.clone())
    }

    async fn all_closed(&self) {
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// A random number for the choice of a backend.
    pub(super) fn random(&self) -> u64 {
        rand::Rng::next_u64(&mut *self.random.borrow_mut())
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Rc<WorkerState>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify_one();
    }
}

/// The state of one pod on one worker.
pub(super) struct PodContext {
    pub(super) worker: Rc<WorkerState>,
    pub(super) pod: Arc<Pod>,
    /// Becomes true when the pod leaves or the process drains.
    pub(super) drain: watch::Receiver<bool>,
    /// Limits on-demand discovery for the pod's outbound connections.
    pub(super) outbound_limit: RateLimiter,
    /// Limits on-demand discovery for the pod's inbound connections.
    pub(super) inbound_limit: RateLimiter,
    /// Becomes true when another process accepts the pod's connections.
    pub(super) resigned: watch::Receiver<bool>,
    /// The pod's open connections on this worker.
    connections: Rc<Connections>,
    /// The pod's baggage header, cached until its workload object changes.
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

    /// Runs one connection of this pod as a task. The worker does not end before the task.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        self.connections.spawn(self.worker.open(), connection);
    }

    /// Runs a task that serves the pod and is not a connection. The worker does not end before the
    /// task.
    pub(super) fn serve(&self, serving: impl Future<Output = ()> + 'static) {
        let open = self.worker.open();
        tokio::task::spawn_local(async move {
            serving.await;
            drop(open);
        });
    }

    /// Resets the open connections when `deadline` has passed.
    async fn cut_after(self: Rc<Self>, deadline: Duration) {
        tokio::time::sleep(deadline).await;
        let open = self.connections.count();
        if open > 0 {
            tracing::info!(pod = %self.pod.uid.0, open, "the pod has left: what it had open is cut");
            self.connections.cut();
        }
    }

    /// Records that rules inside the pod redirect incoming connections. Such rules can appear after
    /// the enrolment.
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

    /// How relays of this pod copy bytes. `splice(2)` is excluded where the kernel may join the
    /// pod's connections with the proxy's.
    pub(super) fn copy_mode(&self) -> CopyMode {
        let kernel = self.worker.proxy.kernel.as_ref();
        if kernel.is_some_and(|kernel| kernel.may_join()) {
            CopyMode::Copy
        } else {
            CopyMode::Adaptive
        }
    }

    /// The pod's workload in the current view; `None` if the workload has left the mesh.
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
    // The command channel is closed: the time to drain is over. The runtime drops the connections
    // that are still open.
    let over = async { while inbox.recv().await.is_some() {} };
    tokio::select! {
        () = local.all_closed() => {}
        () = over => {}
    }
}
