//! The handover of the node's pods from one proxy process to the next.
//!
//! A process that finds an active one becomes standby. First it loads the mesh, so that little is
//! left to do; then it requests the handover. From there it continues as after a restart: it adopts
//! the kernel's state, opens listeners of its own next to the other's in every pod, and reauthorizes
//! everything. The previous process writes nothing to the kernel once it hands over, but accepts and
//! carries connections until the new one serves all pods; only then it closes its listeners. If the
//! new process dies before that, the previous one becomes active again. If it dies later, pods are
//! refused until the next proxy starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

mod holder;
mod locks;

use crate::bpf::{self, Kernel};
use crate::deadline::until;
use crate::fastpath::FastPathEvents;
use crate::node::Node;
use crate::{assembly, program_log};
use admin::Pending;
use holder::Holder;
pub(crate) use locks::{ActiveLock, Handover, HandoverRequests, StandbyLock, StandbyPorts};
use settings::{NodeAgent, Settings};

/// How often the handover is requested: the active process may not have been watching before.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often a long wait is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often to check whether the previous processes have ended.
const PREVIOUS_PROXIES_INTERVAL: Duration = Duration::from_secs(1);
/// The kernel releases the locks of a killed process one after the other. For this long a released
/// standby lock and a held active lock may belong to a process that is just being killed.
const RELEASE_TIME: Duration = Duration::from_millis(500);
/// How often the active lock is tried meanwhile.
const RELEASE_POLL: Duration = Duration::from_millis(10);

/// Acquires both locks.
type AcquireTask = JoinHandle<Result<(ActiveLock, StandbyLock), bpf::Error>>;
/// Waits for the end of a handover; see [`HandoverEvent::Finished`].
type FinishTask = JoinHandle<Result<(StandbyLock, Option<ActiveLock>), bpf::Error>>;

/// The role of this process on its node.
#[derive(Debug)]
pub(crate) enum HandoverState {
    /// Another process is active.
    Standby {
        /// Keeps the node unready until this process is active.
        pending: Pending,
        /// Requests the handover, once the mesh is known.
        acquiring: Option<AcquireTask>,
    },
    /// This process is active.
    Active(Active),
    /// This process was active, and the new one does not serve all pods yet.
    HandingOver(FinishTask),
    /// This process was active; it only drains open connections.
    Retired,
    /// Redirection rules capture the pods: no process owns anything in the kernel.
    Unmanaged,
}

/// What the active process owns.
#[derive(Debug)]
pub(crate) struct Active {
    /// None once another process has it, because the directory of the locks was removed.
    active_lock: Option<ActiveLock>,
    /// Held until this process serves all pods: that keeps the previous process at its listeners.
    standby_lock: Option<StandbyLock>,
    /// None where the system has no inotify watch left.
    requests: Option<HandoverRequests>,
    /// When to check whether the previous processes have ended.
    check_previous_at: Option<Instant>,
    tasks: [JoinHandle<()>; 2],
}

/// Settings that [`Node::become_active`] needs and that change only with a restart: a process that
/// becomes active again keeps its sockets and pins.
#[derive(Debug)]
pub(crate) struct FixedSettings {
    kernel: bpf::Config,
    /// The node agent.
    pub(crate) agent: Option<NodeAgent>,
}

impl FixedSettings {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            kernel: assembly::kernel(settings),
            agent: settings.node_agent.clone(),
        }
    }
}

/// The lock of the active process, after a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockState {
    /// This process has it.
    Held,
    /// Its directory was removed. This process has it again.
    Restored,
    /// Its directory was removed, and another process has it now.
    Lost,
}

/// A step of a handover.
#[derive(Debug)]
pub(crate) enum HandoverEvent {
    /// This process has both locks and becomes active.
    Acquired(Result<(ActiveLock, StandbyLock), bpf::Error>),
    /// A standby process requests the handover.
    Requested,
    /// The new process serves all pods. Or it is dead, and this process has the active lock again.
    /// The standby lock keeps every other process from becoming standby meanwhile.
    Finished(Result<(StandbyLock, Option<ActiveLock>), bpf::Error>),
    /// It is time to check whether the previous processes have ended.
    CheckPreviousProxies,
}

impl HandoverState {
    /// The state of every process until [`Node::become_active`].
    pub(crate) const fn standby(pending: Pending) -> Self {
        Self::Standby {
            pending,
            acquiring: None,
        }
    }

    /// Whether this process, and no other one, manages the pods and the pins.
    pub(crate) const fn is_active(&self) -> bool {
        matches!(self, Self::Active(_) | Self::Unmanaged)
    }

    /// Waits for the next step. Safe to cancel.
    pub(crate) async fn next_event(&mut self, handover: Option<&Handover>) -> HandoverEvent {
        let Some(handover) = handover else {
            return std::future::pending().await;
        };
        match self {
            Self::Standby {
                acquiring: Some(acquiring),
                ..
            } => HandoverEvent::Acquired(joined(acquiring.await)),
            Self::HandingOver(finishing) => HandoverEvent::Finished(joined(finishing.await)),
            Self::Active(active) => {
                let check_previous_at = active.check_previous_at;
                // The standby lock may still be this process's own.
                let may_hand_over = active.standby_lock.is_none();
                tokio::select! {
                    () = requested(active.requests.as_mut(), handover), if may_hand_over => {
                        HandoverEvent::Requested
                    }
                    () = until(check_previous_at) => HandoverEvent::CheckPreviousProxies,
                }
            }
            Self::Standby {
                acquiring: None, ..
            } => HandoverEvent::Acquired(wait_until_none_is_active(handover).await),
            Self::Retired | Self::Unmanaged => std::future::pending().await,
        }
    }
}

/// Waits until a standby process requests the handover. Safe to cancel.
async fn requested(requests: Option<&mut HandoverRequests>, handover: &Handover) {
    if let Some(requests) = requests {
        return requests.next().await;
    }
    while !handover.has_standby() {
        tokio::time::sleep(REQUEST_INTERVAL).await;
    }
}

/// Waits until the active process has ended, even if the mesh is not known yet. Safe to cancel.
async fn wait_until_none_is_active(
    handover: &Handover,
) -> Result<(ActiveLock, StandbyLock), bpf::Error> {
    loop {
        tokio::time::sleep(REQUEST_INTERVAL).await;
        if let Some(locks) = handover.try_acquire()? {
            return Ok(locks);
        }
    }
}

fn joined<T>(
    outcome: Result<Result<T, bpf::Error>, tokio::task::JoinError>,
) -> Result<T, bpf::Error> {
    outcome.unwrap_or_else(|error| {
        Err(bpf::Error::Handover {
            problem: error.to_string(),
        })
    })
}

impl Node {
    /// Enables enrollment, and connects to the node agent, which announces its pods again.
    fn start_serving(&mut self) {
        self.enrollment.become_active();
        self.connect_to_agent();
    }

    /// Enrolls and reauthorizes after the role has changed.
    fn finish_transition(&mut self, previous: HandoverState) {
        self.enroll();
        // Also when no pod was enrolled: this process may have served its pods before.
        self.reauthorize();
        if let HandoverState::Standby { pending, .. } = previous {
            pending.done();
        }
    }

    /// Takes the next step of a handover if its precondition holds by now.
    pub(crate) fn advance_handover(&mut self) {
        match &mut self.handover_state {
            // Rules send connections to every listener: open none before they can be authorized.
            HandoverState::Standby { .. } if self.handover.is_none() && self.mesh.is_known() => {
                self.start_serving();
                let previous =
                    std::mem::replace(&mut self.handover_state, HandoverState::Unmanaged);
                self.finish_transition(previous);
            }
            HandoverState::Standby {
                acquiring: acquiring @ None,
                ..
            } if self.mesh.is_known() => {
                let ports = self.admin_listeners.standby_ports();
                if let Some(handover) = &self.handover {
                    tracing::info!(
                        active = %handover.active_process(),
                        "another process serves this node's pods: asking it to hand over"
                    );
                    let locks = acquire_locks(handover.clone(), ports);
                    *acquiring = Some(tokio::spawn(locks));
                }
            }
            HandoverState::Active(active)
                if active.standby_lock.is_some() && self.readiness.pending().is_empty() =>
            {
                active.standby_lock = None;
                tracing::info!("this process is active and serves this node's pods");
            }
            _ => {}
        }
    }

    /// Handles one step of a handover.
    ///
    /// # Errors
    /// When this process cannot become active although it has the locks.
    pub(crate) async fn handle_handover(&mut self, event: HandoverEvent) -> Result<(), bpf::Error> {
        match event {
            HandoverEvent::Acquired(locks) => {
                let (active_lock, standby_lock) = locks?;
                self.become_active(active_lock, Some(standby_lock))
            }
            HandoverEvent::Requested => {
                tracing::info!("another process takes over this node's pods");
                if self.deactivate().await
                    && let (Some(kernel), Some(handover)) = (&self.shared.kernel, &self.handover)
                {
                    let finish = finish_handover(kernel.clone(), handover.clone());
                    self.handover_state = HandoverState::HandingOver(tokio::spawn(finish));
                }
                Ok(())
            }
            HandoverEvent::Finished(locks) => match locks? {
                (standby_lock, Some(active_lock)) => {
                    tracing::warn!(
                        "the process that was to take over has ended: this process is active again"
                    );
                    self.become_active(active_lock, None)?;
                    drop(standby_lock);
                    Ok(())
                }
                (standby_lock, None) => {
                    self.stop_accepting(standby_lock);
                    Ok(())
                }
            },
            HandoverEvent::CheckPreviousProxies => {
                self.forget_ended_proxies();
                Ok(())
            }
        }
    }

    /// This process owns the pins from now on, as the previous one left them. The standby lock keeps
    /// a previous process at its listeners until this one serves all pods.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is detached.
    pub(crate) fn become_active(
        &mut self,
        active_lock: ActiveLock,
        standby_lock: Option<StandbyLock>,
    ) -> Result<(), bpf::Error> {
        let (Some(kernel), Some(handover)) = (self.shared.kernel.clone(), &self.handover) else {
            return Ok(());
        };
        kernel.become_active(&bpf::Config {
            exemptions: assembly::exemptions(&self.settings),
            ..self.fixed.kernel.clone()
        })?;
        let requests = handover
            .watch_requests()
            .inspect_err(|error| {
                tracing::warn!(%error, "looking for a standby process every second instead");
            })
            .ok();
        self.shared.fast_path.become_active();
        self.start_serving();
        let program_log = tokio::spawn(program_log::follow(kernel.clone()));
        let tasks = [program_log, self.follow_fast_path_events(kernel)];
        let previous = std::mem::replace(
            &mut self.handover_state,
            HandoverState::Active(Active {
                active_lock: Some(active_lock),
                standby_lock,
                requests,
                check_previous_at: Some(Instant::now() + PREVIOUS_PROXIES_INTERVAL),
                tasks,
            }),
        );
        self.finish_transition(previous);
        Ok(())
    }

    /// Makes the locks of the active process again if another process has removed their directories.
    ///
    /// # Errors
    /// When that is not possible, or another proxy has become active meanwhile.
    pub(crate) fn restore_locks(&mut self) -> Result<LockState, bpf::Error> {
        let (HandoverState::Active(active), Some(handover)) =
            (&mut self.handover_state, &self.handover)
        else {
            return Ok(LockState::Held);
        };
        let Some(lock) = active.active_lock.take() else {
            return Ok(LockState::Lost);
        };
        if handover.is_intact(&lock) {
            active.active_lock = Some(lock);
            return Ok(LockState::Held);
        }
        active.active_lock = handover.recreate(lock)?;
        active.requests = handover.watch_requests().ok();
        Ok(match active.active_lock {
            Some(_) => LockState::Restored,
            None => LockState::Lost,
        })
    }

    /// Stops writing to the kernel and reading its events, and releases the active lock. Events from
    /// now on wait in the kernel for the next process. Returns whether this process was active.
    pub(crate) async fn deactivate(&mut self) -> bool {
        if !matches!(self.handover_state, HandoverState::Active(_)) {
            return false;
        }
        self.shared.fast_path.retire();
        self.enrollment.deactivate();
        if let Some(agent) = &mut self.agent {
            agent.retire();
        }
        let HandoverState::Active(active) =
            std::mem::replace(&mut self.handover_state, HandoverState::Retired)
        else {
            return false;
        };
        for task in active.tasks {
            task.abort();
            // The task ends with the error that it was aborted.
            drop(task.await);
        }
        drop(active.active_lock);
        true
    }

    /// Closes the listeners: the new process serves all pods.
    fn stop_accepting(&mut self, standby_lock: StandbyLock) {
        self.handover_state = HandoverState::Retired;
        self.enrollment.close_listeners();
        self.workers.resign();
        let handover = self.handover.as_ref();
        if handover.is_some_and(Handover::standby_wants_ports) {
            // Only one process of a network namespace can have the ports.
            self.stop.send_replace(true);
        }
        drop(standby_lock);
        tracing::info!(
            "another process serves this node's pods: this process accepts no connections and drains \
             the open ones"
        );
    }

    fn forget_ended_proxies(&mut self) {
        let HandoverState::Active(active) = &mut self.handover_state else {
            return;
        };
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        let left = kernel.forget_ended_proxies().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot check whether the previous proxies have ended");
            true
        });
        active.check_previous_at = left.then(|| Instant::now() + PREVIOUS_PROXIES_INTERVAL);
    }

    /// Starts the task that reports the fast path's connections from the kernel's events.
    fn follow_fast_path_events(&self, kernel: Arc<Kernel>) -> JoinHandle<()> {
        let reporter = FastPathEvents::new(self.shared.clone(), kernel.clone());
        tokio::spawn(async move {
            let ended = match kernel.events() {
                Ok(events) => reporter.follow(events).await,
                Err(error) => {
                    tracing::error!(%error, "cannot read the kernel's events: fast-path connections are not reported");
                    return;
                }
            };
            tracing::error!(
                ?ended,
                "the kernel's events have ended: fast-path connections are no longer reported"
            );
        })
    }
}

/// Waits until the new process serves all pods or is dead. In the latter case it takes the active
/// lock back, unless a newer process is there to take it.
async fn finish_handover(
    kernel: Arc<Kernel>,
    handover: Handover,
) -> Result<(StandbyLock, Option<ActiveLock>), bpf::Error> {
    let standby_lock = handover.standby_released().await?;
    let began = Instant::now();
    loop {
        if kernel.is_next_active()?
            && let Some(active_lock) = handover.try_acquire_active()?
        {
            return Ok((standby_lock, Some(active_lock)));
        }
        if began.elapsed() >= RELEASE_TIME {
            return Ok((standby_lock, None));
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
}

/// Becomes the standby process, then requests the handover until the active process hands over or
/// ends.
async fn acquire_locks(
    handover: Handover,
    ports: StandbyPorts,
) -> Result<(ActiveLock, StandbyLock), bpf::Error> {
    let began = Instant::now();
    let mut last_logged = began;
    let mut log_wait = |problem: &str, holder: fn(&Handover) -> Holder| {
        if last_logged.elapsed() >= LOG_INTERVAL {
            last_logged = Instant::now();
            let holder = holder(&handover);
            tracing::warn!(waited = ?began.elapsed(), %holder, "{problem}");
        }
    };
    let become_standby = handover.become_standby(ports);
    tokio::pin!(become_standby);
    let standby_lock = loop {
        tokio::select! {
            lock = &mut become_standby => break lock?,
            () = tokio::time::sleep(REQUEST_INTERVAL) => {
                log_wait(
                    "waiting for a third process, which is taking over this node's pods",
                    Handover::standby_process,
                );
            }
        }
    };
    let acquire_active = handover.acquire_active();
    tokio::pin!(acquire_active);
    let active_lock = loop {
        handover.request_handover(&standby_lock)?;
        tokio::select! {
            lock = &mut acquire_active => break lock?,
            () = tokio::time::sleep(REQUEST_INTERVAL) => {
                log_wait(
                    "the active process of this node does not hand over; check whether it is stuck \
                     (waiting until it hands over or ends)",
                    Handover::active_process,
                );
            }
        }
    };
    Ok((active_lock, standby_lock))
}
