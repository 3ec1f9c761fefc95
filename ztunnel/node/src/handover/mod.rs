//! Who is in charge of the node's pods: this process, one before it, or one that comes after.
//!
//! A process that finds another one in charge waits beside it. It learns what the mesh is first, so
//! that little is left to do, then asks the other to hand over, and goes on as after a restart: it
//! adopts what is in the kernel, opens listeners of its own beside the other's in every pod, judges
//! everything again. The other one writes nothing from the moment at which it hands over, but
//! accepts and carries on until its heir serves all pods; only then it closes its listeners. Should
//! the heir die before that, it takes charge again. Later on a dead heir is a dead proxy: pods are
//! refused until the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

mod locks;

use crate::agent::Agent;
use crate::bpf::{self, Kernel};
use crate::fastpath::FastPathEvents;
use crate::{Node, assembly, program_log, until};
use admin::Pending;
pub(crate) use locks::{ActiveLock, Handover, HandoverRequests, StandbyLock, StandbyPorts};
use settings::{NodeAgent, Settings};

/// How often the process in charge is asked: it may not have been watching before.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often somebody who waits says so.
const COMPLAIN: Duration = Duration::from_secs(10);
/// How often to look whether the processes before this one have ended.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// A process that is killed lets go of its locks one after the other: for so long it may look as if
/// it had done with one of them and kept the other on purpose.
const ALL_LOCKS: Duration = Duration::from_millis(500);
/// How often it is looked meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

type Inheriting = JoinHandle<Result<(ActiveLock, StandbyLock), bpf::Error>>;

/// What this process is on its node.
#[derive(Debug)]
pub(crate) enum HandoverState {
    /// Another process is in charge.
    Standby {
        /// The node is not ready before this process is.
        pending: Pending,
        /// The other one was asked to hand over.
        asking: Option<Inheriting>,
    },
    /// This one is.
    Active(Active),
    /// It was, and its heir does not serve all pods yet.
    HandingOver(JoinHandle<Result<(StandbyLock, Option<ActiveLock>), bpf::Error>>),
    /// It was: what is open may end.
    Retired,
    /// Rules capture the pods: nothing in the kernel is anybody's.
    Free,
}

/// What a process in charge has.
#[derive(Debug)]
pub(crate) struct Active {
    charge: ActiveLock,
    /// Until all pods are served: the process before stays that long.
    standby: Option<StandbyLock>,
    /// None where the system has no watch left.
    asked: Option<HandoverRequests>,
    /// When to look whether the processes before this one have ended.
    look_after: Option<Instant>,
    tasks: [JoinHandle<()>; 2],
}

/// What taking charge depends on and a change of the settings does not change: sockets that are
/// open, and a process that takes charge again, stay as they were.
#[derive(Debug)]
pub(crate) struct Fixed {
    kernel: bpf::Config,
    agent: Option<NodeAgent>,
}

impl Fixed {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            kernel: assembly::kernel(settings),
            agent: settings.node_agent.clone(),
        }
    }
}

/// What has come to pass.
#[derive(Debug)]
pub(crate) enum HandoverEvent {
    /// This process is to take charge.
    Take(Result<(ActiveLock, StandbyLock), bpf::Error>),
    /// Another one wants to.
    HandoverRequests,
    /// The heir serves all pods; or it is dead, and the charge is this process's again. Nobody else
    /// becomes heir meanwhile.
    Served(Result<(StandbyLock, Option<ActiveLock>), bpf::Error>),
    /// Processes before this one may have ended.
    LookAfter,
}

impl HandoverState {
    /// Another process is in charge until [`Node::become_active`].
    pub(crate) const fn beside(pending: Pending) -> Self {
        Self::Standby {
            pending,
            asking: None,
        }
    }

    /// Whether no other process has a say about the pods, and what is pinned is this one's.
    pub(crate) const fn is_active(&self) -> bool {
        matches!(self, Self::Active(_) | Self::Free)
    }

    /// Waits until something changes. Safe to cancel.
    pub(crate) async fn next_event(&mut self, handover: Option<&Handover>) -> HandoverEvent {
        let Some(handover) = handover else {
            return std::future::pending().await;
        };
        match self {
            Self::Standby {
                asking: Some(asking),
                ..
            } => HandoverEvent::Take(ended(asking.await)),
            Self::HandingOver(served) => HandoverEvent::Served(ended(served.await)),
            Self::Active(own) => {
                let look_after = own.look_after;
                tokio::select! {
                    // Its own lock is not somebody else's.
                    () = asked(own.asked.as_mut(), handover), if own.standby.is_none() => HandoverEvent::HandoverRequests,
                    () = until(look_after) => HandoverEvent::LookAfter,
                }
            }
            Self::Standby { asking: None, .. } => {
                HandoverEvent::Take(wait_until_none_is_active(handover).await)
            }
            Self::Retired | Self::Free => std::future::pending().await,
        }
    }
}

/// Waits until another process wants to take over. Safe to cancel.
async fn asked(watch: Option<&mut HandoverRequests>, handover: &Handover) {
    if let Some(watch) = watch {
        return watch.asked().await;
    }
    while !handover.has_standby() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits until whoever was in charge has ended, whatever is known here. Safe to cancel.
async fn wait_until_none_is_active(
    handover: &Handover,
) -> Result<(ActiveLock, StandbyLock), bpf::Error> {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if let Some(own) = handover.take()? {
            return Ok(own);
        }
    }
}

fn ended<T>(
    outcome: Result<Result<T, bpf::Error>, tokio::task::JoinError>,
) -> Result<T, bpf::Error> {
    outcome.unwrap_or_else(|error| {
        Err(bpf::Error::Handover {
            problem: error.to_string(),
        })
    })
}

impl Node {
    /// Has the node agent name its pods to this process, and enrolls.
    fn serve_pods(&mut self) {
        self.enrollment.become_active();
        let named = || self.readiness.wait_for("the node agent's pods");
        self.agent = Agent::of(self.fixed.agent.as_ref(), named);
    }

    /// Enrolls and judges in the new post.
    fn settle(&mut self, before: HandoverState) {
        self.enroll();
        // Pods that an earlier life of this process has served are judged anew as well.
        self.reauthorize();
        if let HandoverState::Standby { pending, .. } = before {
            pending.done();
        }
    }

    /// Moves on where something was waited for that is there by now.
    pub(crate) fn move_on(&mut self) {
        match &mut self.handover_state {
            // Rules send connections to whoever listens: not before they can be judged.
            HandoverState::Standby { .. } if self.handover.is_none() && self.mesh.is_known() => {
                self.serve_pods();
                let before = std::mem::replace(&mut self.handover_state, HandoverState::Free);
                self.settle(before);
            }
            // What has to be known is known.
            HandoverState::Standby {
                asking: asking @ None,
                ..
            } if self.mesh.is_known() => {
                tracing::info!(
                    "another process is in charge of this node's pods: asking it to hand over"
                );
                let ports = self.admin_listeners.standby_ports();
                if let Some(handover) = &self.handover {
                    let wait_for_active_lock = wait_for_active_lock(handover.clone(), ports);
                    *asking = Some(tokio::spawn(wait_for_active_lock));
                }
            }
            HandoverState::Active(own)
                if own.standby.is_some() && self.readiness.pending().is_empty() =>
            {
                own.standby = None;
                tracing::info!("in charge of this node's pods, and serving them");
            }
            _ => {}
        }
    }

    /// Does what the succession asks for.
    ///
    /// # Errors
    /// When this process cannot be in charge although it is its turn.
    pub(crate) async fn handle_handover(&mut self, event: HandoverEvent) -> Result<(), bpf::Error> {
        match event {
            HandoverEvent::Take(taken) => {
                let (charge, standby) = taken?;
                self.become_active(charge, Some(standby))
            }
            HandoverEvent::HandoverRequests => {
                tracing::info!("another process takes over this node's pods");
                if self.step_down().await
                    && let (Some(kernel), Some(handover)) = (&self.shared.kernel, &self.handover)
                {
                    let served = served(kernel.clone(), handover.clone());
                    self.handover_state = HandoverState::HandingOver(tokio::spawn(served));
                }
                Ok(())
            }
            HandoverEvent::Served(served) => match served? {
                (standby, Some(charge)) => {
                    tracing::warn!("the process that was to take over has ended: in charge again");
                    self.become_active(charge, None)?;
                    drop(standby);
                    Ok(())
                }
                (standby, None) => {
                    self.leave(standby);
                    Ok(())
                }
            },
            HandoverEvent::LookAfter => {
                self.forget_ended_proxies();
                Ok(())
            }
        }
    }

    /// From now on what is pinned is this process's, as it was left. `standby` is there where a process
    /// before this one is to stay until all pods are served.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is detached.
    pub(crate) fn become_active(
        &mut self,
        charge: ActiveLock,
        standby: Option<StandbyLock>,
    ) -> Result<(), bpf::Error> {
        let (Some(kernel), Some(handover)) = (self.shared.kernel.clone(), &self.handover) else {
            return Ok(());
        };
        kernel.become_active(&bpf::Config {
            exemptions: assembly::exemptions(&self.settings),
            ..self.fixed.kernel.clone()
        })?;
        let asked = handover
            .watch()
            .inspect_err(
                |error| tracing::warn!(%error, "an heir is looked for every second instead"),
            )
            .ok();
        self.shared.fast_path.become_active();
        self.serve_pods();
        let program_log = tokio::spawn(program_log::follow(kernel.clone()));
        let tasks = [program_log, self.follow_fast_path_events(kernel)];
        let before = std::mem::replace(
            &mut self.handover_state,
            HandoverState::Active(Active {
                charge,
                standby,
                asked,
                look_after: Some(Instant::now() + LOOK_AFTER),
                tasks,
            }),
        );
        self.settle(before);
        Ok(())
    }

    /// Writes nothing any more, and reads nothing that is another's to read. Says whether this
    /// process was in charge. What happens from now on waits in the kernel for the next one.
    pub(crate) async fn step_down(&mut self) -> bool {
        if !matches!(self.handover_state, HandoverState::Active(_)) {
            return false;
        }
        self.shared.fast_path.retire();
        self.enrollment.retire();
        if let Some(agent) = &mut self.agent {
            agent.retire();
        }
        let HandoverState::Active(own) =
            std::mem::replace(&mut self.handover_state, HandoverState::Retired)
        else {
            return false;
        };
        for task in own.tasks {
            task.abort();
            // Aborted is what it is to be.
            drop(task.await);
        }
        drop(own.charge);
        true
    }

    /// Whoever came after serves all pods.
    fn leave(&mut self, standby: StandbyLock) {
        self.handover_state = HandoverState::Retired;
        self.enrollment.resign();
        self.workers.resign();
        let handover = self.handover.as_ref();
        if handover.is_some_and(Handover::wants_ports) {
            // In this namespace one process can have the ports.
            self.stop.send_replace(true);
        }
        drop(standby);
        tracing::info!(
            "another process serves this node's pods: nothing more is accepted, what is open may end"
        );
    }

    fn forget_ended_proxies(&mut self) {
        let HandoverState::Active(own) = &mut self.handover_state else {
            return;
        };
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        let left = kernel.forget_ended_proxies().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot see whether the processes before this one have ended");
            true
        });
        own.look_after = left.then(|| Instant::now() + LOOK_AFTER);
    }

    /// Has the kernel's events about the direct lane written down.
    fn follow_fast_path_events(&self, kernel: Arc<Kernel>) -> JoinHandle<()> {
        let accounts = FastPathEvents::new(self.shared.clone(), kernel.clone());
        tokio::spawn(async move {
            let ended = match kernel.events() {
                Ok(events) => accounts.follow(events).await,
                Err(error) => {
                    tracing::error!(%error, "connections of the direct lane are not reported");
                    return;
                }
            };
            tracing::error!(
                ?ended,
                "connections of the direct lane are no longer reported"
            );
        })
    }
}

/// After handing over: waits until whoever came after serves all pods, or is dead, and then takes the
/// charge back unless a younger process is there to do so.
async fn served(
    kernel: Arc<Kernel>,
    handover: Handover,
) -> Result<(StandbyLock, Option<ActiveLock>), bpf::Error> {
    let standby = handover.served().await?;
    let began = Instant::now();
    loop {
        if kernel.is_next_active()?
            && let Some(charge) = handover.take_over()?
        {
            return Ok((standby, Some(charge)));
        }
        if began.elapsed() >= ALL_LOCKS {
            return Ok((standby, None));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits for its turn, then asks until the process in charge hands over, or ends.
async fn wait_for_active_lock(
    handover: Handover,
    ports: StandbyPorts,
) -> Result<(ActiveLock, StandbyLock), bpf::Error> {
    let began = Instant::now();
    let mut said = began;
    let mut complain = |what: &str| {
        if said.elapsed() >= COMPLAIN {
            said = Instant::now();
            tracing::warn!(waited = ?began.elapsed(), "{what}");
        }
    };
    let become_standby = handover.become_standby(ports);
    tokio::pin!(become_standby);
    let standby = loop {
        tokio::select! {
            standby = &mut become_standby => break standby?,
            () = tokio::time::sleep(ASK_AGAIN) => {
                complain("waiting for a third process, which is about to take over");
            }
        }
    };
    let wait_for_active_lock = handover.wait_for_active_lock();
    tokio::pin!(wait_for_active_lock);
    let charge = loop {
        handover.ask(&standby)?;
        tokio::select! {
            charge = &mut wait_for_active_lock => break charge?,
            () = tokio::time::sleep(ASK_AGAIN) => {
                complain("the process in charge of this node's pods does not hand over: does it run? Waiting until it does so or ends");
            }
        }
    };
    Ok((charge, standby))
}
