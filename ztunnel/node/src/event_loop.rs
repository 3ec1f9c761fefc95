//! The main loop: it waits for the next event and hands it to one handler.

use std::ops::ControlFlow;

use super::Error;
use super::agent::{Agent, zds};
use super::deadline::until;
use super::handover::HandoverEvent;
use super::mesh_updates::MeshUpdate;
use super::node::Node;
use super::serving;
use super::signals::Signals;
use mesh::NetnsCookie;
use settings::Watcher;

/// What the main loop reacts to.
#[derive(Debug)]
enum NodeEvent {
    /// A file of the settings has changed.
    SettingsChanged,
    /// The locks of this node's proxies have changed hands.
    Handover(HandoverEvent),
    /// It is time to try the admin, metrics and readiness ports again.
    AdminPortsDue,
    /// It is time to enroll pods again.
    EnrollDue,
    /// The mesh has changed. None: the control plane's client has stopped.
    MeshUpdated(Option<MeshUpdate>),
    /// The node agent has sent a request. None: its client has stopped.
    AgentRequest(Option<zds::Request>),
    /// Workers have seen signs of redirection rules or foreign programs in these pods.
    PodsToRecheck(Vec<NetnsCookie>),
    /// The node agent has taken too long to send its first snapshot.
    SnapshotOverdue,
    /// On-demand discovery of the node's own pods has something to do.
    OwnPodsDue,
    /// The kernel's self-test of acceleration has finished.
    AccelerationTested,
    /// It is time to sweep the fast path's connections once more.
    SweepDue,
    /// It is time to check what captures the pods.
    CaptureCheckDue,
    /// A signal or the admin server stops the process.
    Stop,
}

struct EventLoop {
    node: Node,
    watcher: Option<Watcher>,
    signals: Signals,
}

/// Handles events until one stops the node, then drains its connections.
///
/// # Errors
/// When a part has stopped that the node needs. A restarted process has it again.
pub(super) async fn run(mut node: Node) -> Result<(), Error> {
    for warning in &node.settings.warnings {
        tracing::warn!("{warning}");
    }
    let watcher = node.watch_settings();
    // The watcher misses what was written between the start and now.
    node.reload();
    let mut events = EventLoop {
        node,
        watcher,
        signals: Signals::listen(),
    };
    let outcome = loop {
        events.node.advance_handover();
        let event = events.next_event().await;
        match events.handle(event).await {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    events.drain().await;
    outcome
}

impl EventLoop {
    /// Waits for the next event. Safe to cancel.
    async fn next_event(&mut self) -> NodeEvent {
        let node = &mut self.node;
        let captures = node.shared.kernel.is_some();
        let capture_due = captures.then(|| node.capture_watch.next());
        let snapshot_due = node.agent.as_ref().and_then(Agent::snapshot_due);
        tokio::select! {
            () = changed(self.watcher.as_mut()) => NodeEvent::SettingsChanged,
            event = node.handover_state.next_event(node.handover.as_ref()) => {
                NodeEvent::Handover(event)
            }
            () = node.admin_listeners.due() => NodeEvent::AdminPortsDue,
            () = until(node.enroll_due) => NodeEvent::EnrollDue,
            update = node.mesh.changed() => NodeEvent::MeshUpdated(update),
            request = serving::next_request(node.agent.as_mut()) => {
                NodeEvent::AgentRequest(request)
            }
            pods = node.shared.recheck.take() => NodeEvent::PodsToRecheck(pods),
            () = until(snapshot_due) => NodeEvent::SnapshotOverdue,
            () = until(node.own_pods.due()) => NodeEvent::OwnPodsDue,
            () = node.acceleration.tested() => NodeEvent::AccelerationTested,
            () = until(node.next_sweep) => NodeEvent::SweepDue,
            () = until(capture_due) => NodeEvent::CaptureCheckDue,
            () = self.signals.end() => NodeEvent::Stop,
            () = node.quit.notified() => NodeEvent::Stop,
        }
    }

    async fn handle(&mut self, event: NodeEvent) -> Result<ControlFlow<()>, Error> {
        let node = &mut self.node;
        match event {
            NodeEvent::SettingsChanged => self.handle_settings_changed(),
            NodeEvent::Handover(event) => node.handle_handover(event).await?,
            NodeEvent::AdminPortsDue => node.admin_listeners.try_bind(),
            NodeEvent::EnrollDue => node.enroll(),
            NodeEvent::MeshUpdated(update) => {
                node.handle_mesh_update(update.ok_or(Error::Ended("control plane"))?);
            }
            NodeEvent::AgentRequest(request) => {
                node.handle_request(request.ok_or(Error::Ended("node agent"))?);
            }
            NodeEvent::PodsToRecheck(pods) => node.recheck_pods(&pods),
            NodeEvent::SnapshotOverdue => node.stop_waiting_for_agent(),
            NodeEvent::OwnPodsDue => node.handle_own_pods_due(),
            NodeEvent::AccelerationTested => node.reauthorize(),
            NodeEvent::SweepDue => node.sweep(),
            NodeEvent::CaptureCheckDue => node.check_capture(),
            NodeEvent::Stop => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn handle_settings_changed(&mut self) {
        self.node.reload();
        let files = self.node.settings_files();
        if let Some(Err(error)) = self.watcher.as_mut().map(|w| w.retarget(&files)) {
            tracing::error!(
                %error,
                "cannot watch the settings files: later changes may go unnoticed until a restart"
            );
        }
    }

    /// Waits until open connections have ended or the deadline has passed; a second signal ends
    /// them at once.
    async fn drain(self) {
        let Self {
            mut node,
            mut signals,
            ..
        } = self;
        tracing::info!("stopping: draining connections");
        // First: a standby proxy must not wait for the drain.
        node.deactivate().await;
        node.stop.send_replace(true);
        // The enrollment owns listeners: a connection that no worker would accept is refused.
        drop(node.agent);
        drop(node.enrollment);
        let deadline = node.settings.termination_deadline;
        node.workers.drain(deadline, signals.end()).await;
        node.admin_listeners.finished().await;
    }
}

async fn changed(watcher: Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}
