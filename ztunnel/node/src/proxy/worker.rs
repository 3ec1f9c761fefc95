//! Worker threads. Each worker runs its own single-threaded runtime, has its own listeners in every
//! pod, and owns the connections that it accepts, tunnels included. A connection never moves to
//! another thread, so it needs no lock and no wake-up across threads.

use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use super::accept;
use super::pod_context::PodContext;
use super::state::ProxyState;
use super::worker_state::WorkerState;
use crate::pods::{Listeners, Pod};
use mesh::NetnsCookie;

/// How long workers may take to reset open connections after the drain deadline.
const RESET_TIMEOUT: Duration = Duration::from_secs(1);

/// A command of the node to its workers.
#[derive(Debug)]
enum Command {
    /// Serve a pod.
    Add(Arc<Pod>, Listeners),
    /// Stop serving the pod of this namespace: drain its tunnels, and reset the connections that are
    /// still open after this time.
    Remove(NetnsCookie, Duration),
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
    pub fn start(proxy: &Arc<ProxyState>) -> Result<Self, WorkerError> {
        let mut threads = Vec::new();
        for index in 0..proxy.config.workers {
            let start = |source| WorkerError::Start { index, source };
            let (commands, inbox) = mpsc::unbounded_channel();
            let (started, starting) = std::sync::mpsc::sync_channel(1);
            let proxy = proxy.clone();
            let run = move || {
                let built = Builder::new_current_thread()
                    .enable_all()
                    .build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => {
                        drop(started.send(Ok(())));
                        runtime.block_on(serve(proxy, inbox));
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
            send(commands, Command::Add(pod.clone(), listeners));
        }
    }

    /// Stops serving the pod of this namespace. Its listeners are closed at once; its open
    /// connections are reset after `deadline`.
    pub fn remove(&self, pod: NetnsCookie, deadline: Duration) {
        for (commands, _) in &self.threads {
            send(commands, Command::Remove(pod, deadline));
        }
    }

    /// Makes every worker authorize its open connections by the view in force.
    pub fn reauthorize(&self) {
        for (commands, _) in &self.threads {
            send(commands, Command::Reauthorize);
        }
    }

    /// Accepts no more connections, because another process has listeners on the same addresses.
    /// Existing tunnels of peers stay usable until the drain.
    pub fn resign(&self) {
        for (commands, _) in &self.threads {
            send(commands, Command::Resign);
        }
    }

    /// Accepts no more connections and waits for the open ones. They are reset after `deadline`, or
    /// earlier when `hurry` completes.
    pub async fn drain(self, deadline: Duration, hurry: impl Future<Output = ()>) {
        let (commands, threads): (Vec<_>, Vec<_>) = self.threads.into_iter().unzip();
        for commands in &commands {
            send(commands, Command::Drain);
        }
        tokio::select! {
            () = all_ended(&threads) => return,
            () = tokio::time::sleep(deadline) => {
                tracing::warn!(
                    ?deadline,
                    "the drain deadline has passed: the open connections are reset"
                );
            }
            () = hurry => tracing::warn!("a second signal has ended the drain: the open connections are reset"),
        }
        drop(commands);
        // If a worker exceeds even this limit, the end of the process closes its connections.
        drop(tokio::time::timeout(RESET_TIMEOUT, all_ended(&threads)).await);
    }
}

async fn all_ended(threads: &[JoinHandle<()>]) {
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn send(worker: &mpsc::UnboundedSender<Command>, command: Command) {
    if worker.send(command).is_err() {
        tracing::error!("a worker thread has ended early: its connections are lost");
    }
}

/// A pod that a worker serves.
struct WorkerPod {
    context: Rc<PodContext>,
    /// Set to true when the pod leaves.
    drain: watch::Sender<bool>,
}

async fn serve(proxy: Arc<ProxyState>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    let worker = WorkerState::new(&proxy);
    let mut pods: HashMap<NetnsCookie, WorkerPod> = HashMap::new();
    let (resign, resigned) = watch::channel(false);
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Add(pod, listeners) => {
                let (drain, draining) = watch::channel(false);
                let (proxy, worker) = (proxy.clone(), worker.clone());
                let context = PodContext::new(proxy, worker, pod, draining, resigned.clone());
                match accept::start(&context, listeners) {
                    Ok(()) => drop(pods.insert(context.cookie(), WorkerPod { context, drain })),
                    Err(error) => {
                        tracing::error!(%error, pod = %context.pod.uid.0, "cannot serve the pod");
                    }
                }
            }
            Command::Remove(pod, deadline) => {
                if let Some(served) = pods.remove(&pod) {
                    served.drain.send_replace(true);
                    tokio::task::spawn_local(served.context.reset_after(deadline));
                }
                worker.tunnels.evict(pod);
                worker.names.forget(pod.0);
            }
            Command::Reauthorize => {
                worker.authorized.reauthorize(&proxy.fast_path.view_owned());
            }
            Command::Resign => drop(resign.send_replace(true)),
            Command::Drain => {
                for (_, served) in pods.drain() {
                    served.drain.send_replace(true);
                }
                break;
            }
        }
    }
    // The command channel is closed after the drain deadline. The runtime then drops the
    // connections that are still open.
    let deadline = async { while inbox.recv().await.is_some() {} };
    tokio::select! {
        () = worker.all_closed() => {}
        () = deadline => {}
    }
}
