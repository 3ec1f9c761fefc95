//! Which pods the node serves at this moment: those of the settings and those of the node agent,
//! enrolled as they come, tried again where that fails.

use std::time::Instant;

use super::agent::{self, Agent, Task};
use super::capture::ForeignPrograms;
use super::enrollment::{DesiredPod, EnrollError, Enrollment, OrphanPolicy, Terms};
use super::{ENROLL_RETRY, Node, assembly};
use crate::agent::zds;
use crate::bpf;
use mesh::NetnsCookie;

impl Node {
    /// Brings all pods in line with what is asked for and with what the mesh says about them; to be
    /// called whenever one of the two has changed.
    pub(super) fn enroll(&mut self) {
        let wanted = self.wanted();
        let agent = self.agent.as_ref();
        let orphan_policy = agent.map_or(OrphanPolicy::Detach, Agent::orphan_policy);
        let (enrollment, terms) = self.enrolling();
        let failed = enrollment.apply(terms, &wanted, orphan_policy);
        let foreign_programs = self.foreign_programs_capture(&failed);
        let wait = || self.readiness.wait_for(ForeignPrograms::TASK);
        self.foreign_programs.note(foreign_programs, wait);
        let again = foreign_programs || !failed.is_empty();
        self.retry = again.then(|| Instant::now() + ENROLL_RETRY);
        self.enrolled();
        for (pod, error) in &failed {
            tracing::error!(%error, pod = %pod.key, netns = %pod.netns, "cannot enroll the pod; trying again");
        }
        // A pod that is gone must not keep the node from serving the others.
        if self.handover_state.is_active()
            && let Some(pending) = self.pending.take()
        {
            pending.done();
        }
    }

    /// Whether programs of another proxy capture pods here where rules are to: pods of this node, or
    /// any by the pins, where those can be seen.
    fn foreign_programs_capture(&self, failed: &[(DesiredPod, EnrollError)]) -> bool {
        let captured = |(_, error): &(_, EnrollError)| matches!(error, EnrollError::Captured);
        let pins = &self.settings.capture.bpf_directory;
        self.shared.kernel.is_none()
            && (failed.iter().any(captured) || bpf::captured_below(pins) > 0)
    }

    /// The pods that the settings and the node agent ask for.
    fn wanted(&self) -> Vec<DesiredPod> {
        let mut wanted = assembly::pods(&self.settings);
        let agent = self.agent.iter();
        wanted.extend(agent.flat_map(|agent| agent.wanted(&self.settings)));
        wanted
    }

    fn enrolling(&mut self) -> (&mut Enrollment, Terms<'_>) {
        let terms = Terms {
            workers: &self.workers,
            mesh: self.mesh.current(),
            deadline: self.settings.termination_deadline,
        };
        (&mut self.enrollment, terms)
    }

    /// After pods came or went: counts them, and lets them count.
    fn enrolled(&mut self) {
        let named = self.agent.as_ref().map_or(0, Agent::count);
        let wanted = assembly::pods(&self.settings).len() + named;
        let missing = wanted.saturating_sub(self.enrollment.count());
        let missing = i64::try_from(missing).unwrap_or(i64::MAX);
        self.shared.telemetry.pods().pending.set(missing);
        if self.enrollment.take_changed() {
            self.reauthorize();
        }
    }

    /// Looks whether pods have got rules that redirect what comes in; no direct lane leads to those.
    /// Where rules capture: whether programs do so since.
    pub(super) fn recheck_pods(&mut self, pods: &[NetnsCookie]) {
        if self.shared.kernel.is_none() {
            let (enrollment, terms) = self.enrolling();
            return match enrollment.yield_captured(terms, pods) {
                Ok(true) => self.enroll(),
                // An application has called the proxy's port itself.
                Ok(false) => {}
                Err(error) => self.foreign_programs.suspect(&error),
            };
        }
        if self.enrollment.find_rules(pods) {
            self.reauthorize();
        }
    }

    /// Does what the node agent asks for, and answers.
    pub(super) fn handle_request(&mut self, request: zds::Request) {
        let Some(agent) = &mut self.agent else {
            return;
        };
        match agent.handle_request(request, &self.settings) {
            Task::None => {}
            Task::Enroll(wanted, reply) => {
                let (enrollment, terms) = self.enrolling();
                let added = enrollment.add(terms, &wanted);
                if let Err(error) = &added {
                    self.retry
                        .get_or_insert_with(|| Instant::now() + ENROLL_RETRY);
                    tracing::error!(%error, pod = %wanted.key, "cannot enroll the pod; trying again");
                }
                self.enrolled();
                agent::answer(reply, added.map_err(|error| error.to_string()));
            }
            Task::Apply(reply) => {
                self.enroll();
                if self.agent.as_ref().is_some_and(Agent::is_complete) {
                    self.stop_waiting();
                }
                agent::answer(reply, Ok(()));
            }
        }
    }

    /// Puts in force what was held back until the pods were known.
    pub(super) fn stop_waiting(&mut self) {
        let Some(agent) = &mut self.agent else {
            return;
        };
        let held = agent.hold().is_some();
        if agent.is_complete() {
            agent.settled();
        } else {
            tracing::warn!("the node agent has not named its pods yet: going on without them");
            agent.release();
        }
        if held {
            self.reauthorize();
        }
    }
}

/// The node agent's next request; none ever comes where there is no agent.
pub(super) async fn requested(agent: Option<&mut Agent>) -> Option<zds::Request> {
    match agent {
        Some(agent) => agent.request().await,
        None => std::future::pending().await,
    }
}
