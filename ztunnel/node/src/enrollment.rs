//! Reconciles the enrolled pods with the desired pods, one by one: a pod that cannot be enrolled
//! does not delay the others.

mod error;
mod failed;
mod prepare;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::error::EnrollError;
use self::failed::FailedPods;
use self::prepare::{capture, captured_addresses, prepare, warn_of_missing, was_replaced};
use crate::agent::zds::PodUid;
use crate::bpf::{self, Kernel};
use crate::pods::{self, NetnsSource, Opened, OptionalListener, Pod};
use crate::proxy::{ProxyState, Workers};
use mesh::LocalPod;
use mesh::NetnsCookie;
use mesh::{Identity, Snapshot, Uid, Workload};

/// Which source lists a pod, and under which name. For a short time two announced pods can be the
/// same workload of the mesh: the one that leaves and its replacement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PodKey {
    /// The settings list the pod.
    Listed(Uid),
    /// The node agent has announced the pod.
    Announced(PodUid),
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed(uid) => uid.fmt(f),
            Self::Announced(uid) => uid.fmt(f),
        }
    }
}

/// A pod that should be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DesiredPod {
    /// Its source and its name there.
    pub(super) key: PodKey,
    /// Its workload. If the mesh does not know the workload yet, the pod is captured anyway, and its
    /// connections wait for it.
    pub(super) uid: Uid,
    /// Its service account, if the node agent names it.
    pub(super) account: Option<Arc<str>>,
    /// Its workload as far as the node agent's announcement tells it, without addresses: the
    /// certificate is requested early, and the pod's own connections can go on with it if the
    /// control plane does not push the workload in time.
    pub(super) announced: Option<Arc<Workload>>,
    /// Its network namespace.
    pub(super) netns: NetnsSource,
}

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

#[derive(Debug)]
struct Enrolled {
    pod: Arc<Pod>,
    identity: Option<Identity>,
    /// An inbound listener, needed to enroll again when addresses change; none once another process
    /// accepts instead.
    inbound: Option<OwnedFd>,
    captured: Vec<IpAddr>,
    /// Whether its DNS queries are captured.
    dns: bool,
    /// Increases with each enrollment: of two pods that are the same workload the later one wins.
    number: u64,
}

/// The pods that are enrolled.
#[derive(Debug)]
pub(super) struct Enrollment {
    shared: Arc<ProxyState>,
    pods: HashMap<PodKey, Enrolled>,
    failed: FailedPods,
    last_number: u64,
    changed: bool,
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
            failed: FailedPods::default(),
            last_number: 0,
            changed: true,
            active: false,
        }
    }

    /// This process owns capture from now on. Pods that it already serves are enrolled again, because
    /// another process may have enrolled them meanwhile.
    pub(super) fn become_active(&mut self) {
        self.active = true;
        for enrolled in self.pods.values_mut() {
            enrolled.captured.clear();
        }
    }

    /// Another process owns capture from now on.
    pub(super) fn deactivate(&mut self) {
        self.active = false;
    }

    /// Closes this module's copies of the listeners; the workers close theirs.
    pub(super) fn close_listeners(&mut self) {
        for enrolled in self.pods.values_mut() {
            enrolled.inbound = None;
        }
    }

    /// The enrolled pods with their addresses, the earliest first.
    pub(super) fn pods(&self) -> Vec<LocalPod> {
        let mut pods: Vec<&Enrolled> = self.pods.values().collect();
        pods.sort_unstable_by_key(|enrolled| enrolled.number);
        let local = |enrolled: &&Enrolled| LocalPod {
            uid: enrolled.pod.uid.clone(),
            account: enrolled.pod.account.clone(),
            announced: enrolled.pod.announced.clone(),
            cookie: NetnsCookie(enrolled.pod.netns.cookie()),
            addresses: enrolled.captured.clone(),
            redirected: enrolled.pod.redirected.load(Ordering::Relaxed),
        };
        pods.iter().map(local).collect()
    }

    /// The number of enrolled pods.
    pub(super) fn count(&self) -> usize {
        self.pods.len()
    }

    /// The pod of a namespace.
    pub(super) fn pod(&self, cookie: NetnsCookie) -> Option<Arc<Pod>> {
        let mut pods = self.pods.values().map(|enrolled| &enrolled.pod);
        pods.find(|pod| pod.netns.cookie() == cookie.0).cloned()
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
            self.withdraw(context, key, &[]);
        }
        Ok(!captured.is_empty())
    }

    /// Whether the pods or their addresses have changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The time at which a pod that could not be enrolled is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        // Another process enrols the pods after a handover.
        self.failed.next_retry().filter(|_| self.active)
    }

    /// The pods that could not be enrolled because the programs of another proxy capture them, and
    /// whether that proxy serves them.
    pub(super) fn captured_by_others(&self) -> impl Iterator<Item = (&DesiredPod, bool)> {
        self.failed.captured()
    }

    /// Brings the enrolled pods in line with the desired ones. A pod that could not be enrolled is
    /// tried again when its time has come ([`Self::next_retry`]), or when it has changed.
    pub(super) fn reconcile(
        &mut self,
        context: EnrollContext<'_>,
        desired: &[DesiredPod],
        orphan_policy: OrphanPolicy,
    ) {
        let by_key: HashMap<&PodKey, &DesiredPod> =
            desired.iter().map(|pod| (&pod.key, pod)).collect();
        let stale = |(key, enrolled): (&PodKey, &Enrolled)| {
            let stale = match by_key.get(key) {
                Some(pod) => !matches_desired(enrolled, pod),
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
        self.failed.retain_desired(desired);
        if !self.active {
            return;
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
        if enrolled.is_some_and(|enrolled| !matches_desired(enrolled, desired)) {
            self.withdraw(context, &desired.key, std::slice::from_ref(desired));
        }
        let outcome = self.update_or_enroll(context, desired);
        let answer = outcome.as_ref().map_err(ToString::to_string).copied();
        self.failed.record(desired, outcome, Instant::now());
        answer
    }

    /// Removes a pod. If a desired pod has the same namespace, as another workload or under another
    /// name, the namespace stays captured, and so refused, until that pod is enrolled.
    fn withdraw(&mut self, context: EnrollContext<'_>, key: &PodKey, desired: &[DesiredPod]) {
        let Some(enrolled) = self.pods.remove(key) else {
            return;
        };
        self.changed = true;
        let cookie = enrolled.pod.netns.cookie();
        let replaced = desired.iter().any(|pod| has_same_netns(&enrolled, pod));
        if self.active
            && !replaced
            && let Some(kernel) = &self.shared.kernel
            && let Err(error) = kernel.withdraw(NetnsCookie(cookie))
        {
            tracing::error!(%error, pod = %key, "cannot stop capturing the pod");
        }
        context
            .workers
            .remove(NetnsCookie(cookie), context.deadline);
        self.forget_certificate(enrolled.identity);
        self.shared.telemetry.pod_removed();
        tracing::info!(pod = %key, "pod left");
    }

    /// Stops renewing a certificate unless another pod of this node has the same identity.
    fn forget_certificate(&self, identity: Option<Identity>) {
        let still_needed = self.pods.values().any(|pod| pod.identity == identity);
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
        if captured != enrolled.captured
            && let Some(inbound) = &enrolled.inbound
        {
            if let Some(kernel) = &self.shared.kernel {
                let netns = &enrolled.pod.netns;
                capture(kernel, netns, &captured, inbound, enrolled.dns)?;
            }
            enrolled.captured = captured;
            self.changed = true;
        }
        Ok(())
    }

    fn enroll(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
    ) -> Result<(), EnrollError> {
        let kernel = self.shared.kernel.clone();
        let (pod, opened) = prepare(desired, &self.shared, context.mesh)?;
        if kernel.is_none() && !pod.redirected.load(Ordering::Relaxed) {
            return Err(EnrollError::NoRules);
        }
        let cookie = pod.netns.cookie();
        let mut others = self.pods.iter();
        if let Some((other, _)) = others.find(|(_, other)| other.pod.netns.cookie() == cookie) {
            let other = other.clone();
            return Err(EnrollError::NetnsInUse { other });
        }
        let captured = captured_addresses(&pod, context.mesh);
        // Queries that are captured without a listener would be lost.
        let dns = self.shared.config.dns.is_some() && !opened.lacks(OptionalListener::Dns);
        let Opened {
            sets: listeners,
            missing,
        } = opened;
        let inbound = listeners
            .first()
            .map(|first| first.inbound.as_fd().try_clone_to_owned());
        let inbound = inbound.transpose().map_err(EnrollError::Duplicate)?;
        for listeners in &listeners {
            let marked = kernel
                .iter()
                .try_for_each(|kernel| kernel.mark_listener(listeners.inbound.as_fd()));
            marked.map_err(EnrollError::MarkListener)?;
        }
        context.workers.add(&pod, listeners);
        let Some(inbound) = inbound else {
            return Ok(());
        };
        if let Some(kernel) = &kernel
            && let Err(error) = capture(kernel, &pod.netns, &captured, &inbound, dns)
        {
            // What the kernel captures by now stays captured and is refused.
            context
                .workers
                .remove(NetnsCookie(cookie), context.deadline);
            return Err(error);
        }
        let identity = identity(&pod, desired, context.mesh);
        if let Some(identity) = &identity {
            self.shared.certificates.prefetch(identity);
        }
        tracing::info!(pod = %desired.key, workload = %desired.uid, netns = %desired.netns, addresses = ?captured, "pod enrolled");
        warn_of_missing(&missing, &desired.key, kernel.is_some());
        self.shared.telemetry.pod_added();
        self.changed = true;
        self.last_number += 1;
        let enrolled = Enrolled {
            pod,
            identity,
            inbound: Some(inbound),
            captured,
            dns,
            number: self.last_number,
        };
        self.pods.insert(desired.key.clone(), enrolled);
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

/// Whether a pod is enrolled as desired. A pod that was replaced under the same name has another
/// namespace at the same path.
fn matches_desired(enrolled: &Enrolled, desired: &DesiredPod) -> bool {
    let pod = &enrolled.pod;
    pod.uid == desired.uid && pod.account == desired.account && has_same_netns(enrolled, desired)
}

/// Whether an enrolled pod has the namespace of a desired one.
fn has_same_netns(enrolled: &Enrolled, desired: &DesiredPod) -> bool {
    let netns = &enrolled.pod.netns;
    *netns.source() == desired.netns && !was_replaced(netns)
}

/// A pod's identity: the mesh's if it knows the workload, otherwise the one that the node agent's
/// announcement implies.
fn identity(pod: &Pod, desired: &DesiredPod, mesh: &Snapshot) -> Option<Identity> {
    let known = pod.workload(mesh).map(|workload| workload.identity.clone());
    let announced = desired.announced.as_ref();
    known.or_else(|| announced.map(|announced| announced.identity.clone()))
}
