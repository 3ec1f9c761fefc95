//! Puts changes of the mesh, the pods and the settings in force: the fast path, open connections
//! and metrics follow the new view.

use std::time::{Duration, Instant};

use super::agent::Agent;
use super::mesh_updates::MeshUpdate;
use super::node::Node;
use mesh::View;

/// How often the metrics of workloads that are gone are dropped while the mesh changes.
const METRICS_CLEANUP_INTERVAL: Duration = Duration::from_secs(10);

/// How long after a change the fast path is swept again. A connection that the proxy was opening
/// during the change, authorized by the previous view, is in the kernel's table by then.
const SECOND_SWEEP: Duration = Duration::from_millis(200);

impl Node {
    /// Puts an update of the control plane in force, and then answers the requests that wait for
    /// it. Both may be deferred until the node's pods are known.
    pub(super) fn handle_mesh_update(&mut self, update: MeshUpdate) {
        let began = Instant::now();
        self.waiting_batches.extend(update.waiting);
        if !update.changed && !self.reauthorization_waits() {
            // The snapshot is the one in force already.
            self.waiting_batches.clear();
            self.mesh.in_force(began.elapsed());
            return;
        }
        self.reauthorize();
        self.enroll();
        if self.next_metrics_cleanup <= began {
            self.next_metrics_cleanup = began + METRICS_CLEANUP_INTERVAL;
            self.drop_stale_metrics();
        }
        if !self.reauthorization_waits() {
            self.mesh.in_force(began.elapsed());
        }
    }

    /// Drops the metrics of workloads that are gone.
    pub(super) fn drop_stale_metrics(&self) {
        let mesh = self.mesh.current();
        let telemetry = &self.shared.telemetry;
        telemetry.retain(|uid| mesh.workload_by_uid(uid).is_some());
    }

    /// Puts the current snapshot and pods in force. When this returns, no fast-path entry
    /// contradicts them, and connections that they forbid are being terminated. While the node's
    /// pods are not known yet, only the known pods are served by the new view; the rest follows
    /// when they are known.
    pub(super) fn reauthorize(&mut self) {
        self.discover_own_pods();
        if !self.mesh.is_known() {
            return;
        }
        let active = self.handover_state.is_active();
        let mut path_settings = self.acceleration.path_settings(&self.settings, active);
        if self.shared.kernel.is_none() {
            // Only the kernel programs know which pod a plaintext connection comes from.
            path_settings.tunnel_everything();
        }
        let mesh = self.mesh.current();
        let view = View::new(mesh.clone(), self.enrollment.pods(), &path_settings);
        if self.reauthorization_waits() {
            self.shared.fast_path.look_ahead(view);
            self.waiting_batches.clear();
            return;
        }
        self.shared.fast_path.change(view);
        self.workers.reauthorize();
        self.second_sweep = Some(Instant::now() + SECOND_SWEEP);
        self.sweep();
        self.waiting_batches.clear();
        self.mesh.in_force(Duration::ZERO);
    }

    /// Whether reauthorization is deferred until more is known about the mesh or the pods.
    pub(super) fn reauthorization_waits(&self) -> bool {
        let snapshot_due = self.agent.as_ref().and_then(Agent::snapshot_due);
        !self.mesh.is_known() || snapshot_due.is_some() || self.own_pods.holds()
    }

    /// Terminates the connections of the fast path that must end.
    pub(super) fn sweep(&mut self) {
        let began = Instant::now();
        let (enrollment, drain_time) = (&self.enrollment, self.settings.termination_deadline);
        let fast_path = &self.shared.fast_path;
        let next = fast_path.sweep(drain_time, |cookie| enrollment.pod(cookie));
        self.second_sweep = self.second_sweep.filter(|second| *second > began);
        self.next_sweep = next.into_iter().chain(self.second_sweep).min();
    }
}
