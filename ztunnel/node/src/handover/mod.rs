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
use crate::fastpath::Accounts;
use crate::{Node, assembly, program_log, until};
use admin::Pending;
pub(crate) use locks::{Asked, Charge, Heir, Ports as HeirPorts, Succession};
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

type Inheriting = JoinHandle<Result<(Charge, Heir), bpf::Error>>;

/// What this process is on its node.
#[derive(Debug)]
pub(crate) enum Post {
    /// Another process is in charge.
    Beside {
        /// The node is not ready before this process is.
        pending: Pending,
        /// The other one was asked to hand over.
        asking: Option<Inheriting>,
    },
    /// This one is.
    InCharge(InCharge),
    /// It was, and its heir does not serve all pods yet.
    HandingOver(JoinHandle<Result<(Heir, Option<Charge>), bpf::Error>>),
    /// It was: what is open may end.
    Retired,
    /// Rules capture the pods: nothing in the kernel is anybody's.
    Free,
}

/// What a process in charge has.
#[derive(Debug)]
pub(crate) struct InCharge {
    charge: Charge,
    /// Until all pods are served: the process before stays that long.
    heir: Option<Heir>,
    /// None where the system has no watch left.
    asked: Option<Asked>,
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
pub(crate) enum Turn {
    /// This process is to take charge.
    Take(Result<(Charge, Heir), bpf::Error>),
    /// Another one wants to.
    Asked,
    /// The heir serves all pods; or it is dead, and the charge is this process's again. Nobody else
    /// becomes heir meanwhile.
    Served(Result<(Heir, Option<Charge>), bpf::Error>),
    /// Processes before this one may have ended.
    LookAfter,
}

impl Post {
    /// Another process is in charge until [`Node::take_charge`].
    pub(crate) const fn beside(pending: Pending) -> Self {
        Self::Beside {
            pending,
            asking: None,
        }
    }

    /// Whether no other process has a say about the pods, and what is pinned is this one's.
    pub(crate) const fn is_in_charge(&self) -> bool {
        matches!(self, Self::InCharge(_) | Self::Free)
    }

    /// Waits until something changes. Safe to cancel.
    pub(crate) async fn turn(&mut self, succession: Option<&Succession>) -> Turn {
        let Some(succession) = succession else {
            return std::future::pending().await;
        };
        match self {
            Self::Beside {
                asking: Some(asking),
                ..
            } => Turn::Take(ended(asking.await)),
            Self::HandingOver(served) => Turn::Served(ended(served.await)),
            Self::InCharge(own) => {
                let look_after = own.look_after;
                tokio::select! {
                    // Its own lock is not somebody else's.
                    () = asked(own.asked.as_mut(), succession), if own.heir.is_none() => Turn::Asked,
                    () = until(look_after) => Turn::LookAfter,
                }
            }
            Self::Beside { asking: None, .. } => Turn::Take(nobody_in_charge(succession).await),
            Self::Retired | Self::Free => std::future::pending().await,
        }
    }
}

/// Waits until another process wants to take over. Safe to cancel.
async fn asked(watch: Option<&mut Asked>, succession: &Succession) {
    if let Some(watch) = watch {
        return watch.asked().await;
    }
    while !succession.has_heir() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits until whoever was in charge has ended, whatever is known here. Safe to cancel.
async fn nobody_in_charge(succession: &Succession) -> Result<(Charge, Heir), bpf::Error> {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if let Some(own) = succession.take()? {
            return Ok(own);
        }
    }
}

fn ended<T>(
    outcome: Result<Result<T, bpf::Error>, tokio::task::JoinError>,
) -> Result<T, bpf::Error> {
    outcome.unwrap_or_else(|error| {
        Err(bpf::Error::Succession {
            problem: error.to_string(),
        })
    })
}

impl Node {
    /// Has the node agent name its pods to this process, and enrolls.
    fn serve_pods(&mut self) {
        self.enrollment.take_charge();
        let named = || self.readiness.wait_for("the node agent's pods");
        self.agent = Agent::of(self.fixed.agent.as_ref(), named);
    }

    /// Enrolls and judges in the new post.
    fn settle(&mut self, before: Post) {
        self.enroll();
        // Pods that an earlier life of this process has served are judged anew as well.
        self.judge_anew();
        if let Post::Beside { pending, .. } = before {
            pending.done();
        }
    }

    /// Moves on where something was waited for that is there by now.
    pub(crate) fn move_on(&mut self) {
        match &mut self.post {
            // Rules send connections to whoever listens: not before they can be judged.
            Post::Beside { .. } if self.succession.is_none() && self.mesh.is_known() => {
                self.serve_pods();
                let before = std::mem::replace(&mut self.post, Post::Free);
                self.settle(before);
            }
            // What has to be known is known.
            Post::Beside {
                asking: asking @ None,
                ..
            } if self.mesh.is_known() => {
                tracing::info!(
                    "another process is in charge of this node's pods: asking it to hand over"
                );
                let ports = self.doors.heir_ports();
                if let Some(succession) = &self.succession {
                    let inherit = inherit(succession.clone(), ports);
                    *asking = Some(tokio::spawn(inherit));
                }
            }
            Post::InCharge(own) if own.heir.is_some() && self.readiness.pending().is_empty() => {
                own.heir = None;
                tracing::info!("in charge of this node's pods, and serving them");
            }
            _ => {}
        }
    }

    /// Does what the succession asks for.
    ///
    /// # Errors
    /// When this process cannot be in charge although it is its turn.
    pub(crate) async fn take_turn(&mut self, turn: Turn) -> Result<(), bpf::Error> {
        match turn {
            Turn::Take(taken) => {
                let (charge, heir) = taken?;
                self.take_charge(charge, Some(heir))
            }
            Turn::Asked => {
                tracing::info!("another process takes over this node's pods");
                if self.step_down().await
                    && let (Some(kernel), Some(succession)) =
                        (&self.shared.kernel, &self.succession)
                {
                    let served = served(kernel.clone(), succession.clone());
                    self.post = Post::HandingOver(tokio::spawn(served));
                }
                Ok(())
            }
            Turn::Served(served) => match served? {
                (heir, Some(charge)) => {
                    tracing::warn!("the process that was to take over has ended: in charge again");
                    self.take_charge(charge, None)?;
                    drop(heir);
                    Ok(())
                }
                (heir, None) => {
                    self.leave(heir);
                    Ok(())
                }
            },
            Turn::LookAfter => {
                self.look_after_formers();
                Ok(())
            }
        }
    }

    /// From now on what is pinned is this process's, as it was left. `heir` is there where a process
    /// before this one is to stay until all pods are served.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is detached.
    pub(crate) fn take_charge(
        &mut self,
        charge: Charge,
        heir: Option<Heir>,
    ) -> Result<(), bpf::Error> {
        let (Some(kernel), Some(succession)) = (self.shared.kernel.clone(), &self.succession)
        else {
            return Ok(());
        };
        kernel.take_charge(&bpf::Config {
            exemptions: assembly::exemptions(&self.settings),
            ..self.fixed.kernel.clone()
        })?;
        let asked = succession
            .watch()
            .inspect_err(
                |error| tracing::warn!(%error, "an heir is looked for every second instead"),
            )
            .ok();
        self.shared.keeper.take_charge();
        self.serve_pods();
        let program_log = tokio::spawn(program_log::follow(kernel.clone()));
        let tasks = [program_log, self.keep_accounts(kernel)];
        let before = std::mem::replace(
            &mut self.post,
            Post::InCharge(InCharge {
                charge,
                heir,
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
        if !matches!(self.post, Post::InCharge(_)) {
            return false;
        }
        self.shared.keeper.retire();
        self.enrollment.retire();
        if let Some(agent) = &mut self.agent {
            agent.retire();
        }
        let Post::InCharge(own) = std::mem::replace(&mut self.post, Post::Retired) else {
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
    fn leave(&mut self, heir: Heir) {
        self.post = Post::Retired;
        self.enrollment.resign();
        self.workers.resign();
        let succession = self.succession.as_ref();
        if succession.is_some_and(Succession::wants_ports) {
            // In this namespace one process can have the ports.
            self.stop.send_replace(true);
        }
        drop(heir);
        tracing::info!(
            "another process serves this node's pods: nothing more is accepted, what is open may end"
        );
    }

    fn look_after_formers(&mut self) {
        let Post::InCharge(own) = &mut self.post else {
            return;
        };
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        let left = kernel.forget_formers().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot see whether the processes before this one have ended");
            true
        });
        own.look_after = left.then(|| Instant::now() + LOOK_AFTER);
    }

    /// Has the kernel's events about the direct lane written down.
    fn keep_accounts(&self, kernel: Arc<Kernel>) -> JoinHandle<()> {
        let accounts = Accounts::new(self.shared.clone(), kernel.clone());
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
    succession: Succession,
) -> Result<(Heir, Option<Charge>), bpf::Error> {
    let heir = succession.served().await?;
    let began = Instant::now();
    loop {
        if kernel.is_next_in_line()?
            && let Some(charge) = succession.take_over()?
        {
            return Ok((heir, Some(charge)));
        }
        if began.elapsed() >= ALL_LOCKS {
            return Ok((heir, None));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits for its turn, then asks until the process in charge hands over, or ends.
async fn inherit(succession: Succession, ports: HeirPorts) -> Result<(Charge, Heir), bpf::Error> {
    let began = Instant::now();
    let mut said = began;
    let mut complain = |what: &str| {
        if said.elapsed() >= COMPLAIN {
            said = Instant::now();
            tracing::warn!(waited = ?began.elapsed(), "{what}");
        }
    };
    let become_heir = succession.become_heir(ports);
    tokio::pin!(become_heir);
    let heir = loop {
        tokio::select! {
            heir = &mut become_heir => break heir?,
            () = tokio::time::sleep(ASK_AGAIN) => {
                complain("waiting for a third process, which is about to take over");
            }
        }
    };
    let inherit = succession.inherit();
    tokio::pin!(inherit);
    let charge = loop {
        succession.ask(&heir)?;
        tokio::select! {
            charge = &mut inherit => break charge?,
            () = tokio::time::sleep(ASK_AGAIN) => {
                complain("the process in charge of this node's pods does not hand over: does it run? Waiting until it does so or ends");
            }
        }
    };
    Ok((charge, heir))
}
