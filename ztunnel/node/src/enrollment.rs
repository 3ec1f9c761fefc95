//! Reconciles the enrolled pods with the desired pods, one by one: a pod that cannot be enrolled
//! does not delay the others.

mod coverage;
mod desired;
mod enroll;
mod enrolled;
mod error;
mod failed;
mod leaving;
mod prepare;
mod restore;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::coverage::Coverage;
pub(super) use self::desired::{DesiredPod, PodKey};
use self::enrolled::{Enrolled, identity};
use self::error::EnrollError;
use self::failed::FailedPods;
use self::leaving::LeavingPods;
use self::prepare::{capture, captured_addresses};
use crate::bpf::{self, Kernel};
use crate::pods::{self, Pod};
use crate::proxy::{ProxyState, Workers};
use mesh::LocalPod;
use mesh::NetnsCookie;
use mesh::{Identity, Snapshot};

/// How long after a pod's enrollment its applications may accept connections whose SYN is older.
const HANDSHAKES: Duration = Duration::from_secs(1);

/// How often a proxy with rules checks whether programs capture its pods.
const CAPTURE_CHECK: Duration = Duration::from_secs(1);

/// How long the programs of the version before wait for pods that cannot be enrolled: they stay until all
/// pods are enrolled, and a pod that is not is refused after that time.
const REWRITING: Duration = Duration::from_secs(30);

/// What enrolling depends on besides the pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct EnrollContext<'a> {
    /// The workers that serve the pods.
    pub(super) workers: &'a Workers,
    /// The mesh with the pods' workloads.
    pub(super) mesh: &'a Snapshot,
    /// How long the connections of a removed pod may stay open.
    pub(super) deadline: Duration,
}

/// What to do with orphans: pods that are enrolled or captured, but not desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrphanPolicy {
    /// They are gone or have left the mesh: stop capturing them.
    Detach,
    /// The node agent may still announce them: they stay captured, and those that no process serves
    /// are refused.
    Retain,
}

/// The pods that are enrolled.
#[derive(Debug)]
pub(super) struct Enrollment {
    shared: Arc<ProxyState>,
    pods: HashMap<PodKey, Enrolled>,
    leaving: LeavingPods,
    coverage: Coverage,
    failed: FailedPods,
    last_number: u64,
    changed: bool,
    /// When to check again whether other programs capture a pod, where rules should.
    next_capture_check: Instant,
    /// When the programs of the version before end; none if they do not capture.
    rewriting_ends: Option<Instant>,
    /// Whether this process is active. If not, it enrolls no pod and does not touch capture.
    active: bool,
}

impl Enrollment {
    /// No pod is enrolled yet. Pods of a previous process stay captured, and so refused, until
    /// [`Self::reconcile`] enrolls or withdraws them.
    pub(super) fn new(shared: Arc<ProxyState>) -> Self {
        Self {
            shared,
            pods: HashMap::new(),
            leaving: LeavingPods::default(),
            coverage: Coverage::default(),
            failed: FailedPods::default(),
            last_number: 0,
            changed: true,
            next_capture_check: Instant::now(),
            rewriting_ends: None,
            active: false,
        }
    }

    /// This process owns capture from now on. Pods that it already serves are enrolled again, because
    /// another process may have enrolled them meanwhile.
    pub(super) fn become_active(&mut self) {
        self.active = true;
        let kernel = self.shared.kernel.as_ref();
        self.rewriting_ends = kernel
            .is_some_and(|kernel| kernel.rewriting_captures())
            .then(|| Instant::now() + REWRITING);
        let settles = self
            .shared
            .kernel
            .is_some()
            .then(|| Instant::now() + HANDSHAKES);
        for enrolled in self.pods.values_mut() {
            enrolled.captured.clear();
            // The other process may have enrolled the pod a moment ago.
            enrolled.settles = settles;
        }
    }

    /// Another process owns capture from now on.
    pub(super) fn deactivate(&mut self) {
        self.active = false;
    }

    /// Closes this module's copies of the listeners; the workers close theirs.
    pub(super) fn close_listeners(&mut self) {
        for enrolled in self.pods.values_mut().chain(self.leaving.iter_mut()) {
            enrolled.listeners = None;
            enrolled.accepting = false;
        }
    }

    /// The pods with their addresses: those that leave, and then the enrolled ones, the earliest
    /// first.
    pub(super) fn pods(&self) -> Vec<LocalPod> {
        let mut pods: Vec<&Enrolled> = self.pods.values().collect();
        pods.sort_unstable_by_key(|enrolled| enrolled.number);
        let leaving = self.leaving.iter().map(|enrolled| enrolled.local(true));
        let enrolled = pods.into_iter().map(|enrolled| enrolled.local(false));
        leaving.chain(enrolled).collect()
    }

    /// The number of enrolled pods that are captured: processes of the others are outside of the
    /// cgroup of the programs.
    pub(super) fn count(&self) -> usize {
        self.pods.len().saturating_sub(self.coverage.outside())
    }

    /// The pod of a namespace.
    pub(super) fn pod(&self, cookie: NetnsCookie) -> Option<Arc<Pod>> {
        let mut pods = self.pods.values().chain(self.leaving.iter());
        let enrolled = pods.find(|enrolled| enrolled.cookie() == cookie)?;
        Some(enrolled.pod.clone())
    }

    /// Looks for rules in these pods that redirect inbound connections. Returns whether one of the
    /// pods has such rules.
    pub(super) fn find_redirection(&self, recheck: &[NetnsCookie]) -> bool {
        let mut any_redirected = false;
        for pod in recheck.iter().filter_map(|cookie| self.pod(*cookie)) {
            let flag = &pod.redirected;
            let known = flag.load(Ordering::Relaxed);
            let redirected = known || pod.netns.visit(pods::is_redirected).unwrap_or(false);
            if redirected && !known {
                drop(pod.netns.visit(prepare::keep_translation));
                tracing::info!(
                    pod = %pod.uid.0,
                    "rules inside the pod redirect inbound connections: the fast path does not lead \
                     to it"
                );
            }
            flag.fetch_or(redirected, Ordering::Relaxed);
            any_redirected |= redirected;
        }
        any_redirected
    }

    /// Where rules capture: checks from time to time whether the programs of another proxy have captured
    /// pods since their enrollment, and withdraws these. It would get a part of their connections, and
    /// not know what they are.
    fn release_captured_when_due(&mut self, context: EnrollContext<'_>, now: Instant) {
        if self.shared.kernel.is_some() || self.next_capture_check > now {
            return;
        }
        self.next_capture_check = now + CAPTURE_CHECK;
        let pods: Vec<_> = self.pods.values().map(Enrolled::cookie).collect();
        if let Err(error) = self.release_captured(context, &pods) {
            tracing::debug!(%error, "cannot check whether the programs of another proxy capture pods");
        }
    }

    /// Withdraws those of these pods that the programs of another proxy have captured since their
    /// enrollment. Returns whether there were any.
    ///
    /// # Errors
    /// When the kernel cannot say which programs capture a pod.
    pub(super) fn release_captured(
        &mut self,
        context: EnrollContext<'_>,
        recheck: &[NetnsCookie],
    ) -> std::io::Result<bool> {
        let mut captured = Vec::new();
        for (key, enrolled) in &self.pods {
            let netns = &enrolled.pod.netns;
            let rechecked = recheck.contains(&NetnsCookie(netns.cookie()));
            if rechecked && bpf::is_captured(netns.as_fd())? {
                captured.push(key.clone());
            }
        }
        for key in &captured {
            if let Some(enrolled) = self.pods.remove(key) {
                self.stop_capturing(key, &enrolled, false);
                self.end(context, enrolled);
            }
        }
        Ok(!captured.is_empty())
    }

    /// Whether the pods or their addresses have changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The time of the next reconciliation: a pod that could not be enrolled is to be tried again,
    /// one that has left is no longer to be served, or one is to be checked.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // Another process enrols the pods after a handover.
        let retry = self.failed.next_retry().filter(|_| self.active);
        let settles = self.pods.values().filter_map(|enrolled| enrolled.settles);
        let others = [
            self.leaving.next_end(),
            self.coverage.next(),
            settles.min(),
            self.rewriting_ends.filter(|_| self.active),
            (self.shared.kernel.is_none() && !self.pods.is_empty())
                .then_some(self.next_capture_check),
        ];
        retry.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// The pods that could not be enrolled because the programs of another proxy capture them, and
    /// whether that proxy serves them.
    pub(super) fn captured_by_others(&self) -> impl Iterator<Item = (&DesiredPod, bool)> {
        self.failed.captured()
    }

    /// Brings the enrolled pods in line with the desired ones. A pod that could not be enrolled is
    /// tried again when its time has come ([`Self::next_due`]), or when it has changed.
    pub(super) fn reconcile(
        &mut self,
        context: EnrollContext<'_>,
        desired: &[DesiredPod],
        orphan_policy: OrphanPolicy,
    ) {
        for enrolled in self.leaving.take_ended(Instant::now()) {
            self.end(context, enrolled);
        }
        if let Some(kernel) = self.shared.kernel.clone() {
            self.coverage.check(&kernel, Instant::now());
            self.settle(&kernel, Instant::now());
        }
        let by_key: HashMap<&PodKey, &DesiredPod> =
            desired.iter().map(|pod| (&pod.key, pod)).collect();
        let stale = |(key, enrolled): (&PodKey, &Enrolled)| {
            let stale = match by_key.get(key) {
                Some(pod) => !enrolled.matches(pod),
                // Before its snapshot is complete the agent may still announce the pod.
                None => {
                    !matches!(key, PodKey::Announced(_)) || orphan_policy == OrphanPolicy::Detach
                }
            };
            stale.then(|| key.clone())
        };
        let stale: Vec<PodKey> = self.pods.iter().filter_map(stale).collect();
        for key in stale {
            self.withdraw(context, &key, desired);
        }
        self.release_captured_when_due(context, Instant::now());
        self.failed.retain_desired(desired);
        if !self.active {
            return;
        }
        // Before the agent has announced its pods, the other proxy may still serve them.
        if self.rewriting_ends.is_some_and(|end| end <= Instant::now()) {
            match orphan_policy {
                OrphanPolicy::Detach => self.replace_rewriting(),
                OrphanPolicy::Retain => self.rewriting_ends = Some(Instant::now() + REWRITING),
            }
        }
        for pod in desired {
            let now = Instant::now();
            if !self.failed.should_wait(pod, now) {
                let outcome = self.update_or_enroll(context, pod);
                self.failed.record(pod, outcome, now);
            }
        }
        // A pod that failed stays captured, and so refused: it must not bypass the mesh.
        if self.failed.is_empty()
            && orphan_policy == OrphanPolicy::Detach
            && let Some(kernel) = &self.shared.kernel
        {
            self.detach_orphans(kernel);
            if let Err(error) = kernel.remove_other_layouts() {
                tracing::error!(%error, "cannot detach the programs of an earlier version");
            }
            self.replace_rewriting();
        }
    }

    /// Replaces the programs of the version before, if they still capture.
    fn replace_rewriting(&mut self) {
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        self.rewriting_ends = match kernel.replace_rewriting() {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, "cannot replace the programs of an earlier version: trying again");
                Some(Instant::now() + REWRITING)
            }
        };
    }

    /// From now on, the programs stop connections to these pods that the proxy has not authorized,
    /// also if their SYN may be older than the enrollment.
    fn settle(&mut self, kernel: &Kernel, now: Instant) {
        let enrolled = self.pods.values_mut();
        for enrolled in enrolled.filter(|pod| pod.settles.is_some_and(|settles| settles <= now)) {
            enrolled.settles = None;
            if !self.active {
                continue;
            }
            if let Err(error) = kernel.settle(enrolled.cookie()) {
                tracing::error!(%error, pod = %enrolled.pod.uid.0, "the programs cannot be told to stop unauthorized connections to the pod: trying again");
                enrolled.settles = Some(now + HANDSHAKES);
            }
            // What the pod has accepted meanwhile is authorized now.
            self.changed = true;
        }
    }

    /// Enrolls or updates one pod and leaves the others alone.
    ///
    /// # Errors
    /// When the pod cannot be enrolled: the text says why. It is tried again later.
    pub(super) fn add(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
    ) -> Result<(), String> {
        let enrolled = self.pods.get(&desired.key);
        if enrolled.is_some_and(|enrolled| !enrolled.matches(desired)) {
            self.withdraw(context, &desired.key, std::slice::from_ref(desired));
        }
        let outcome = self.update_or_enroll(context, desired);
        let answer = outcome.as_ref().map_err(ToString::to_string).copied();
        self.failed.record(desired, outcome, Instant::now());
        answer
    }

    /// Removes a pod; its listeners stay open for a little longer. If a desired pod has the same
    /// namespace, as another workload or under another name, they do not, and the namespace stays
    /// captured, and so refused, until that pod is enrolled.
    fn withdraw(&mut self, context: EnrollContext<'_>, key: &PodKey, desired: &[DesiredPod]) {
        let Some(enrolled) = self.pods.remove(key) else {
            return;
        };
        let replaced = desired.iter().any(|pod| enrolled.has_same_netns(pod));
        self.stop_capturing(key, &enrolled, replaced);
        if self.active && !replaced {
            self.leaving.add(enrolled, Instant::now());
        } else {
            self.end(context, enrolled);
        }
    }

    /// Stops capturing a pod that is no longer enrolled, unless it is `replaced`.
    fn stop_capturing(&mut self, key: &PodKey, enrolled: &Enrolled, replaced: bool) {
        self.changed = true;
        self.coverage.remove(enrolled.cookie());
        if self.active
            && !replaced
            && let Some(kernel) = &self.shared.kernel
            && let Err(error) = kernel.withdraw(enrolled.cookie())
        {
            tracing::error!(%error, pod = %key, "cannot stop capturing the pod");
        }
        self.shared.telemetry.pod_removed();
        tracing::info!(pod = %key, "pod left");
    }

    /// Closes the listeners of a pod that is no longer enrolled; its connections drain.
    fn end(&mut self, context: EnrollContext<'_>, enrolled: Enrolled) {
        self.changed = true;
        context.workers.remove(enrolled.cookie(), context.deadline);
        self.forget_certificate(enrolled.identity);
    }

    /// Stops renewing a certificate unless another pod of this node has the same identity.
    fn forget_certificate(&self, identity: Option<Identity>) {
        let mut pods = self.pods.values().chain(self.leaving.iter());
        let still_needed = pods.any(|pod| pod.identity == identity);
        if let Some(identity) = identity.filter(|_| !still_needed) {
            self.shared.certificates.forget(&identity);
        }
    }

    fn update_or_enroll(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
    ) -> Result<(), EnrollError> {
        if self.pods.contains_key(&desired.key) {
            self.update(context, desired)
        } else {
            self.enroll(context, desired)
        }
    }

    /// Applies changes of the mesh to an enrolled pod: its identity and its addresses.
    fn update(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
    ) -> Result<(), EnrollError> {
        let Some(enrolled) = self.pods.get_mut(&desired.key) else {
            return Ok(());
        };
        // A pod whose workload is missing from the mesh, perhaps briefly, keeps its identity.
        if let Some(identity) = identity(&enrolled.pod, desired, context.mesh)
            && enrolled.identity.as_ref() != Some(&identity)
        {
            self.shared.certificates.prefetch(&identity);
            let previous_identity = enrolled.identity.replace(identity);
            self.forget_certificate(previous_identity);
        }
        let Some(enrolled) = self.pods.get_mut(&desired.key) else {
            return Ok(());
        };
        let captured = captured_addresses(&enrolled.pod, context.mesh);
        if captured != enrolled.captured && enrolled.accepting {
            if let (Some(kernel), Some(listeners)) = (&self.shared.kernel, &enrolled.listeners) {
                capture(kernel, &enrolled.pod.netns, &captured, listeners)?;
            }
            enrolled.captured = captured;
            self.changed = true;
        }
        Ok(())
    }

    /// Withdraws orphans of previous processes: pods that the maps still hold and that are not
    /// desired.
    fn detach_orphans(&self, kernel: &Kernel) {
        let is_enrolled = |cookie: &NetnsCookie| {
            self.pods
                .values()
                .any(|enrolled| enrolled.pod.netns.cookie() == cookie.0)
        };
        let captured = match kernel.enrolled() {
            Ok(captured) => captured,
            Err(error) => {
                tracing::error!(%error, "cannot list the captured pods");
                return;
            }
        };
        for orphan in captured.into_iter().filter(|cookie| !is_enrolled(cookie)) {
            match kernel.withdraw(orphan) {
                Ok(()) => {
                    tracing::info!(cookie = orphan.0, "stopped capturing a pod that has left")
                }
                Err(error) => {
                    tracing::error!(%error, cookie = orphan.0, "cannot stop capturing a pod");
                }
            }
        }
    }
}
