//! Which pods this node serves: brings what is enrolled in line with what the settings ask for,
//! pod by pod, so that a pod that cannot be enrolled does not keep the others waiting.

mod prepare;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::prepare::{capture, captured_addresses, is_another, prepare, warn_of};
use crate::agent::zds::PodUid;
use crate::bpf::{self, Kernel};
use crate::pods::{self, Extra, NetnsSource, Opened, Pod};
use crate::proxy::{ProxyState, Workers};
use mesh::LocalPod;
use mesh::NetnsCookie;
use mesh::{Identity, Snapshot, Uid};

/// Who asks for a pod, and by which name. Two pods in the agent's list may be one workload of the
/// mesh for a moment: one that leaves, and the one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PodKey {
    /// The settings.
    Listed(Uid),
    /// The node agent.
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

/// A pod that is to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DesiredPod {
    /// Who asks for it.
    pub(super) key: PodKey,
    /// Its workload. The mesh may not know it yet: the pod is captured all the same, and its
    /// connections are refused until the mesh does.
    pub(super) uid: Uid,
    /// Its service account, where somebody else than the mesh says it.
    pub(super) account: Option<Arc<str>>,
    /// Who it will be, where that is known without the mesh: its certificate is got ahead.
    pub(super) identity: Option<Identity>,
    /// Its network namespace.
    pub(super) netns: NetnsSource,
}

/// What enrolling depends on besides the pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// Who serves the pods.
    pub(super) workers: &'a Workers,
    /// What is known about their workloads.
    pub(super) mesh: &'a Snapshot,
    /// How long what a pod has open may last after it has left.
    pub(super) deadline: Duration,
}

/// What to do with pods that an earlier process has captured and nobody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrphanPolicy {
    /// They have left, or left the mesh: they are let go.
    Detach,
    /// They may still be asked for: they stay captured, and so refused.
    Retain,
}

/// Why a pod is not enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrollError {
    /// Its namespace could not be prepared.
    #[error(transparent)]
    Pod(#[from] pods::Error),
    /// Another pod has its namespace.
    #[error("its network namespace is that of pod {other}")]
    OnPortConflict {
        /// The other pod.
        other: PodKey,
    },
    /// Its addresses could not be listed.
    #[error("cannot list the addresses of the pod: {0}")]
    Addresses(#[source] std::io::Error),
    /// Its inbound listeners could not be made known to the kernel programs.
    #[error("cannot make the inbound listeners known to the kernel programs: {0}")]
    Claim(#[source] std::io::Error),
    /// Nothing would take its connections to the proxy.
    #[error(
        "no rules inside the pod redirect its connections, and there are no kernel programs here: it \
         would be without a mesh (istio-cni puts the rules there; see capture.by)"
    )]
    NoRules,
    /// What it opens would arrive without its destination, and what comes in not at all.
    #[error(
        "the eBPF programs of another proxy capture it, and this proxy is to be reached by rules \
         (capture.by): end that proxy, if it runs, and run `ztunnel kernel remove` on the node"
    )]
    Captured,
    /// Capture could not be turned on.
    #[error(transparent)]
    Kernel(#[from] bpf::Error),
}

#[derive(Debug)]
struct Enrolled {
    pod: Arc<Pod>,
    identity: Option<Identity>,
    /// Keeps one inbound listener at hand for enrolling again when addresses change; none once
    /// another process accepts in its place.
    inbound: Option<OwnedFd>,
    captured: Vec<IpAddr>,
    /// Whether its questions to resolvers are captured.
    dns: bool,
    /// Counts upwards: of two pods that are the same workload the later one is meant.
    number: u64,
}

/// The pods that are enrolled.
#[derive(Debug)]
pub(super) struct Enrollment {
    shared: Arc<ProxyState>,
    pods: HashMap<PodKey, Enrolled>,
    numbers: u64,
    changed: bool,
    /// Whether what is in the kernel is this process's: if not, no pod comes, and capture is left
    /// alone.
    in_charge: bool,
}

impl Enrollment {
    /// Nothing is enrolled yet. What an earlier process left enrolled stays captured, and
    /// refused, until [`Self::apply`] has taken it over or withdrawn it.
    pub(super) fn new(shared: Arc<ProxyState>) -> Self {
        Self {
            shared,
            pods: HashMap::new(),
            numbers: 0,
            changed: true,
            in_charge: false,
        }
    }

    /// What is in the kernel is this process's from now on. Pods that it has served all the time are
    /// enrolled anew: somebody else may have had them meanwhile.
    pub(super) fn become_active(&mut self) {
        self.in_charge = true;
        for enrolled in self.pods.values_mut() {
            enrolled.captured.clear();
        }
    }

    /// What is in the kernel is another process's from now on.
    pub(super) fn retire(&mut self) {
        self.in_charge = false;
    }

    /// Lets go of the listeners; those that accept on them let go of theirs.
    pub(super) fn resign(&mut self) {
        for enrolled in self.pods.values_mut() {
            enrolled.inbound = None;
        }
    }

    /// The pods that are served, and under which addresses, the earliest first.
    pub(super) fn pods(&self) -> Vec<LocalPod> {
        let mut pods: Vec<&Enrolled> = self.pods.values().collect();
        pods.sort_unstable_by_key(|enrolled| enrolled.number);
        let local = |enrolled: &&Enrolled| LocalPod {
            uid: enrolled.pod.uid.clone(),
            account: enrolled.pod.account.clone(),
            cookie: NetnsCookie(enrolled.pod.netns.cookie()),
            addresses: enrolled.captured.clone(),
            redirected: enrolled.pod.redirected.load(Ordering::Relaxed),
        };
        pods.iter().map(local).collect()
    }

    /// How many pods are served.
    pub(super) fn count(&self) -> usize {
        self.pods.len()
    }

    /// The pod of a namespace.
    pub(super) fn pod(&self, cookie: NetnsCookie) -> Option<Arc<Pod>> {
        let mut pods = self.pods.values().map(|enrolled| &enrolled.pod);
        pods.find(|pod| pod.netns.cookie() == cookie.0).cloned()
    }

    /// Looks for rules in these pods that redirect what comes in, and says whether any of them has
    /// some.
    pub(super) fn find_rules(&self, recheck: &[NetnsCookie]) -> bool {
        let mut found = false;
        for pod in recheck.iter().filter_map(|cookie| self.pod(*cookie)) {
            let redirected = &pod.redirected;
            let seen = redirected.load(Ordering::Relaxed);
            let has = seen || pod.netns.visit(pods::is_redirected).unwrap_or(false);
            if has && !seen {
                tracing::info!(pod = %pod.uid.0, "rules inside the pod redirect what comes in: no direct lane leads to it");
            }
            redirected.fetch_or(has, Ordering::Relaxed);
            found |= has;
        }
        found
    }

    /// Lets those of these pods go that the programs of another proxy have captured since they were
    /// enrolled by rules, and says whether there were any.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn yield_captured(
        &mut self,
        terms: Terms<'_>,
        recheck: &[NetnsCookie],
    ) -> std::io::Result<bool> {
        let mut captured = Vec::new();
        for (key, enrolled) in &self.pods {
            let netns = &enrolled.pod.netns;
            let suspected = recheck.contains(&NetnsCookie(netns.cookie()));
            if suspected && bpf::is_captured(netns.as_fd())? {
                captured.push(key.clone());
            }
        }
        for key in &captured {
            self.withdraw(terms, key, &[]);
        }
        Ok(!captured.is_empty())
    }

    /// Whether the pods or their addresses have changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Brings the enrolled pods in line with `wanted`, and returns those that could not be
    /// enrolled.
    pub(super) fn apply(
        &mut self,
        terms: Terms<'_>,
        wanted: &[DesiredPod],
        orphan_policy: OrphanPolicy,
    ) -> Vec<(DesiredPod, EnrollError)> {
        let asked: HashMap<&PodKey, &DesiredPod> =
            wanted.iter().map(|pod| (&pod.key, pod)).collect();
        let left = |(key, enrolled): (&PodKey, &Enrolled)| {
            let leaves = match asked.get(key) {
                Some(pod) => !is_as_wanted(enrolled, pod),
                // The agent has not said yet who is there: whom it does not name may still come.
                None => {
                    !matches!(key, PodKey::Announced(_)) || orphan_policy == OrphanPolicy::Detach
                }
            };
            leaves.then(|| key.clone())
        };
        let leaving: Vec<PodKey> = self.pods.iter().filter_map(left).collect();
        for key in leaving {
            self.withdraw(terms, &key, wanted);
        }
        let mut failed = Vec::new();
        if !self.in_charge {
            return failed;
        }
        for pod in wanted {
            if let Err(error) = self.keep_or_enroll(terms, pod) {
                failed.push((pod.clone(), error));
            }
        }
        // A pod that could not be taken over stays captured, and so refused, rather than free.
        if failed.is_empty()
            && orphan_policy == OrphanPolicy::Detach
            && let Some(kernel) = &self.shared.kernel
        {
            self.detach_orphans(kernel);
            if let Err(error) = kernel.retire_others() {
                tracing::error!(%error, "the programs of an earlier version stay attached");
            }
        }
        failed
    }

    /// Enrols one pod, without a look at the others.
    pub(super) fn add(&mut self, terms: Terms<'_>, wanted: &DesiredPod) -> Result<(), EnrollError> {
        let enrolled = self.pods.get(&wanted.key);
        if enrolled.is_some_and(|enrolled| !is_as_wanted(enrolled, wanted)) {
            self.withdraw(terms, &wanted.key, std::slice::from_ref(wanted));
        }
        self.keep_or_enroll(terms, wanted)
    }

    /// Serves a pod no longer. Where its namespace is to be served again at once, as another
    /// workload or under another name, it stays captured, and refused, meanwhile.
    fn withdraw(&mut self, terms: Terms<'_>, key: &PodKey, wanted: &[DesiredPod]) {
        let Some(enrolled) = self.pods.remove(key) else {
            return;
        };
        self.changed = true;
        let cookie = enrolled.pod.netns.cookie();
        let comes_back = wanted.iter().any(|pod| is_the_place(&enrolled, pod));
        if self.in_charge
            && !comes_back
            && let Some(kernel) = &self.shared.kernel
            && let Err(error) = kernel.withdraw(NetnsCookie(cookie))
        {
            tracing::error!(%error, pod = %key, "cannot withdraw the pod from capture");
        }
        terms.workers.remove(cookie, terms.deadline);
        self.forget_certificate(enrolled.identity);
        self.shared.telemetry.pod_removed();
        tracing::info!(pod = %key, "pod left");
    }

    /// Stops renewing a certificate that no pod here needs any more.
    fn forget_certificate(&self, identity: Option<Identity>) {
        let still_needed = self.pods.values().any(|pod| pod.identity == identity);
        if let Some(identity) = identity.filter(|_| !still_needed) {
            self.shared.certificates.forget(&identity);
        }
    }

    fn keep_or_enroll(&mut self, terms: Terms<'_>, wanted: &DesiredPod) -> Result<(), EnrollError> {
        if self.pods.contains_key(&wanted.key) {
            self.keep(terms, wanted)
        } else {
            self.enroll(terms, wanted)
        }
    }

    /// Follows what the mesh says about a pod that is enrolled.
    fn keep(&mut self, terms: Terms<'_>, wanted: &DesiredPod) -> Result<(), EnrollError> {
        let Some(enrolled) = self.pods.get_mut(&wanted.key) else {
            return Ok(());
        };
        // Who has left the mesh, perhaps for a moment, keeps what it has.
        if let Some(now) = identity(&enrolled.pod, wanted, terms.mesh)
            && enrolled.identity.as_ref() != Some(&now)
        {
            self.shared.certificates.prefetch(&now);
            let previous_proxy = enrolled.identity.replace(now);
            self.forget_certificate(previous_proxy);
        }
        let Some(enrolled) = self.pods.get_mut(&wanted.key) else {
            return Ok(());
        };
        let captured = captured_addresses(&enrolled.pod, terms.mesh);
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

    fn enroll(&mut self, terms: Terms<'_>, wanted: &DesiredPod) -> Result<(), EnrollError> {
        let kernel = self.shared.kernel.clone();
        let (pod, opened) = prepare(wanted, &self.shared, terms.mesh)?;
        if kernel.is_none() && !pod.redirected.load(Ordering::Relaxed) {
            return Err(EnrollError::NoRules);
        }
        let cookie = pod.netns.cookie();
        let mut foreign_programs = self.pods.iter();
        if let Some((other, _)) =
            foreign_programs.find(|(_, other)| other.pod.netns.cookie() == cookie)
        {
            let other = other.clone();
            return Err(EnrollError::OnPortConflict { other });
        }
        let captured = captured_addresses(&pod, terms.mesh);
        // Captured without a listener they would be lost.
        let dns = self.shared.config.dns.is_some() && !opened.lacks(Extra::Dns);
        let Opened {
            sets: listeners,
            without,
        } = opened;
        let inbound = listeners
            .first()
            .map(|first| first.inbound.as_fd().try_clone_to_owned());
        let inbound = inbound.transpose().map_err(EnrollError::Addresses)?;
        for listeners in &listeners {
            let claimed = kernel
                .iter()
                .try_for_each(|kernel| kernel.mark_listener(listeners.inbound.as_fd()));
            claimed.map_err(EnrollError::Claim)?;
        }
        terms.workers.add(&pod, listeners);
        let Some(inbound) = inbound else {
            return Ok(());
        };
        if let Some(kernel) = &kernel
            && let Err(error) = capture(kernel, &pod.netns, &captured, &inbound, dns)
        {
            // What is captured stays captured and refused; only our part is taken back.
            terms.workers.remove(cookie, terms.deadline);
            return Err(error);
        }
        let identity = identity(&pod, wanted, terms.mesh);
        if let Some(identity) = &identity {
            self.shared.certificates.prefetch(identity);
        }
        tracing::info!(pod = %wanted.key, workload = %wanted.uid, netns = %wanted.netns, addresses = ?captured, "pod enrolled");
        warn_of(&without, &wanted.key, kernel.is_some());
        self.shared.telemetry.pod_added();
        self.changed = true;
        self.numbers += 1;
        let enrolled = Enrolled {
            pod,
            identity,
            inbound: Some(inbound),
            captured,
            dns,
            number: self.numbers,
        };
        self.pods.insert(wanted.key.clone(), enrolled);
        Ok(())
    }

    /// Withdraws what the maps still hold and nobody asks for: pods of an earlier process that
    /// have left meanwhile.
    fn detach_orphans(&self, kernel: &Kernel) {
        let known = |cookie: &NetnsCookie| {
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
        for stranger in captured.into_iter().filter(|cookie| !known(cookie)) {
            match kernel.withdraw(stranger) {
                Ok(()) => tracing::info!(cookie = stranger.0, "withdrew a pod that has left"),
                Err(error) => tracing::error!(%error, cookie = stranger.0, "cannot withdraw a pod"),
            }
        }
    }
}

/// Whether a pod is enrolled as it is asked for. One that came back under the same name has another
/// namespace behind its path.
fn is_as_wanted(enrolled: &Enrolled, wanted: &DesiredPod) -> bool {
    let pod = &enrolled.pod;
    pod.uid == wanted.uid && pod.account == wanted.account && is_the_place(enrolled, wanted)
}

/// Whether a pod's namespace is the one that is asked for.
fn is_the_place(enrolled: &Enrolled, wanted: &DesiredPod) -> bool {
    let netns = &enrolled.pod.netns;
    *netns.place() == wanted.netns && !is_another(netns)
}

/// Who a pod is: what the mesh says goes before what was said with the pod.
fn identity(pod: &Pod, wanted: &DesiredPod, mesh: &Snapshot) -> Option<Identity> {
    let known = pod.workload(mesh).map(|workload| workload.identity.clone());
    known.or_else(|| wanted.identity.clone())
}
