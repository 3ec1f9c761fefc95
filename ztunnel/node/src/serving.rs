//! The pods that the node serves: those of the settings and those of the node agent. They are
//! enrolled as they come, and retried after a failure.

use std::time::{Duration, Instant};

use super::agent::{self, Agent, Task};
use super::assembly;
use super::capture::ForeignPrograms;
use super::enrollment::{DesiredPod, EnrollContext, Enrollment, OrphanPolicy};
use super::node::Node;
use crate::agent::zds;
use crate::bpf;
use crate::pods::NetnsSource;
use mesh::NetnsCookie;

/// How often it is checked whether the programs of another proxy still capture pods.
const FOREIGN_PROGRAMS_CHECK: Duration = Duration::from_secs(1);

impl Node {
    /// Reconciles the enrolled pods with the desired pods and with the mesh. Called whenever one of
    /// the two has changed.
    pub(super) fn enroll(&mut self) {
        let desired = self.desired_pods();
        let agent = self.agent.as_ref();
        let orphan_policy = agent.map_or(OrphanPolicy::Detach, Agent::orphan_policy);
        let (enrollment, context) = self.enrollment_with_context();
        enrollment.reconcile(context, &desired, orphan_policy);
        let foreign_programs = self.foreign_programs_capture();
        // It was left to another proxy, which has ended.
        let is_left = self.agent.is_none() && self.handover_state.is_active();
        if is_left && !self.foreign_programs.still_served() {
            self.connect_to_agent();
        }
        let wait = || self.readiness.wait_for(ForeignPrograms::TASK);
        self.foreign_programs.update(foreign_programs, wait);
        let check = foreign_programs.then(|| Instant::now() + FOREIGN_PROGRAMS_CHECK);
        self.enroll_due = check.into_iter().chain(self.enrollment.next_due()).min();
        self.apply_enrollment_changes();
        // Failed pods do not keep the node unready: one that is gone must not stop the others.
        if self.handover_state.is_active()
            && let Some(pending) = self.first_enrollment.take()
        {
            pending.done();
        }
    }

    /// Whether programs of another proxy capture pods although rules should: desired pods that
    /// failed for this reason, or any pod whose pins are visible here.
    fn foreign_programs_capture(&mut self) -> bool {
        let pins = &self.settings.capture.bpf_directory;
        self.shared.kernel.is_none()
            && (self.enrollment.captured_by_others().next().is_some()
                || bpf::captured_pods_below(pins) > 0
                || self.foreign_programs.still_served())
    }

    /// The pods that the settings and the node agent list.
    fn desired_pods(&self) -> Vec<DesiredPod> {
        let mut desired = assembly::pods(&self.settings);
        let agent = self.agent.iter();
        desired.extend(agent.flat_map(|agent| agent.desired_pods(&self.settings)));
        desired
    }

    fn enrollment_with_context(&mut self) -> (&mut Enrollment, EnrollContext<'_>) {
        let context = EnrollContext {
            workers: &self.workers,
            mesh: self.mesh.current(),
            deadline: self.settings.termination_deadline,
        };
        (&mut self.enrollment, context)
    }

    /// After pods were enrolled or removed: updates the metric, and reauthorizes if the set of pods
    /// or their addresses have changed.
    fn apply_enrollment_changes(&mut self) {
        let announced = self.agent.as_ref().map_or(0, Agent::count);
        let desired = assembly::pods(&self.settings).len() + announced;
        let missing = desired.saturating_sub(self.enrollment.count());
        let missing = i64::try_from(missing).unwrap_or(i64::MAX);
        self.shared.telemetry.pods().pending.set(missing);
        if self.enrollment.take_changed() {
            self.reauthorize();
        }
    }

    /// Checks whether these pods have rules that redirect inbound connections: the fast path cannot
    /// lead to such a pod. Where rules capture, it checks whether foreign programs capture now.
    pub(super) fn recheck_pods(&mut self, pods: &[NetnsCookie]) {
        if self.shared.kernel.is_none() {
            let (enrollment, context) = self.enrollment_with_context();
            return match enrollment.release_captured(context, pods) {
                Ok(true) => self.enroll(),
                // An application has connected to the proxy's port itself.
                Ok(false) => {}
                Err(error) => self.foreign_programs.suspect(&error),
            };
        }
        if self.enrollment.find_redirection(pods) {
            self.reauthorize();
        }
    }

    /// Handles a request of the node agent, and answers it.
    pub(super) fn handle_request(&mut self, request: zds::Request) {
        let Some(agent) = &mut self.agent else {
            return;
        };
        match agent.handle_request(request, &self.settings) {
            Task::None => {}
            Task::Enroll(desired, reply) => {
                let (enrollment, context) = self.enrollment_with_context();
                let added = enrollment.add(context, &desired);
                let due = self.enrollment.next_due();
                self.enroll_due = self.enroll_due.into_iter().chain(due).min();
                self.apply_enrollment_changes();
                agent::answer(reply, added);
            }
            Task::Reconcile(reply) => {
                self.enroll();
                self.leave_agent_to_other_proxy();
                if self.agent.as_ref().is_some_and(Agent::is_complete) {
                    self.stop_waiting_for_agent();
                }
                agent::answer(reply, Ok(()));
            }
        }
    }

    /// Connects to the node agent, if the settings name one: it announces its pods.
    pub(super) fn connect_to_agent(&mut self) {
        let wait_for_pods = || self.readiness.wait_for("the node agent's pods");
        self.agent = Agent::of(self.fixed.agent.as_ref(), wait_for_pods);
    }

    /// Disconnects from the node agent if its first snapshot shows that a running proxy with programs
    /// serves its pods. The agent announces new pods to the process that connected last: with this
    /// connection closed, that is the other proxy again. If the other proxy does not run, this process
    /// stays: it can serve new pods, and refuses the captured ones.
    fn leave_agent_to_other_proxy(&mut self) {
        let agent = self.agent.as_ref();
        let first_snapshot = agent.is_some_and(|agent| agent.snapshot_due().is_some());
        if self.shared.kernel.is_some() || !first_snapshot {
            return;
        }
        let captured = self.enrollment.captured_by_others();
        let served = captured.filter(|(_, served)| *served);
        let served: Vec<NetnsSource> = served.map(|(pod, _)| pod.netns.clone()).collect();
        if served.is_empty() {
            return;
        }
        tracing::warn!(
            pods = served.len(),
            "a proxy with eBPF programs serves the pods of this node: the node agent is left to it \
             until it ends"
        );
        self.foreign_programs.watch(served);
        self.agent = None;
        self.enroll();
    }

    /// Ends the wait for the node agent's first snapshot, and catches up on the reauthorization that
    /// was deferred for it.
    pub(super) fn stop_waiting_for_agent(&mut self) {
        let Some(agent) = &mut self.agent else {
            return;
        };
        let waited = agent.snapshot_due().is_some();
        if agent.is_complete() {
            agent.snapshot_applied();
        } else {
            tracing::warn!(
                "the node agent has not sent its first snapshot of pods in time: connections are \
                 authorized without it"
            );
            agent.stop_waiting();
        }
        if waited {
            self.reauthorize();
        }
    }
}

/// Waits for the node agent's next request; forever where there is no agent.
pub(super) async fn next_request(agent: Option<&mut Agent>) -> Option<zds::Request> {
    match agent {
        Some(agent) => agent.request().await,
        None => std::future::pending().await,
    }
}
