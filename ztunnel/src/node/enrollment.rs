//! Which pods this node serves: brings what is enrolled in line with what the settings ask for,
//! pod by pod, so that a pod that cannot be enrolled does not keep the others waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::kernel::{self, Kernel, NetnsCookie, PodCapture};
use crate::mesh::{Identity, Snapshot, Uid};
use crate::path::{LocalPod, Shared, Workers};
use crate::pods::{self, Listeners, Netns, Pod, addresses_here, delivery};

/// A pod that the settings ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its workload.
    pub(super) uid: Uid,
    /// The file of its network namespace.
    pub(super) netns: PathBuf,
}

/// Why a pod is not enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrollError {
    /// Its namespace could not be prepared.
    #[error(transparent)]
    Pod(#[from] pods::Error),
    /// Its addresses could not be listed.
    #[error("cannot list the addresses of the pod: {0}")]
    Addresses(#[source] std::io::Error),
    /// Its inbound listeners could not be made known to the kernel programs.
    #[error("cannot make the inbound listeners known to the kernel programs: {0}")]
    Claim(#[source] std::io::Error),
    /// Capture could not be turned on.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

#[derive(Debug)]
struct Enrolled {
    pod: Arc<Pod>,
    identity: Option<Identity>,
    /// Keeps one inbound listener at hand for enrolling again when addresses change.
    inbound: OwnedFd,
    captured: Vec<IpAddr>,
}

/// The pods that are enrolled.
#[derive(Debug)]
pub(super) struct Enrollment {
    shared: Arc<Shared>,
    pods: HashMap<Uid, Enrolled>,
    changed: bool,
}

impl Enrollment {
    /// Nothing is enrolled yet. What an earlier process left enrolled stays captured, and
    /// refused, until [`Self::apply`] has taken it over or withdrawn it.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pods: HashMap::new(),
            changed: true,
        }
    }

    /// The pods that are served, and under which addresses.
    pub(super) fn pods(&self) -> impl Iterator<Item = LocalPod> {
        self.pods.values().map(|enrolled| LocalPod {
            uid: enrolled.pod.uid.clone(),
            cookie: NetnsCookie(enrolled.pod.netns.cookie()),
            addresses: enrolled.captured.clone(),
        })
    }

    /// The pod of a namespace.
    pub(super) fn pod(&self, cookie: NetnsCookie) -> Option<Arc<Pod>> {
        let mut pods = self.pods.values().map(|enrolled| &enrolled.pod);
        pods.find(|pod| pod.netns.cookie() == cookie.0).cloned()
    }

    /// Whether the pods or their addresses have changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Brings the enrolled pods in line with `wanted`, and returns those that could not be
    /// enrolled.
    pub(super) fn apply(
        &mut self,
        workers: &Workers,
        wanted: &[Wanted],
    ) -> Vec<(Wanted, EnrollError)> {
        self.withdraw_unwanted(workers, wanted);
        let mut failed = Vec::new();
        for pod in wanted {
            if let Err(error) = self.keep_or_enroll(workers, pod) {
                failed.push((pod.clone(), error));
            }
        }
        // A pod that could not be taken over stays captured, and so refused, rather than free.
        if failed.is_empty() {
            self.forget_strangers();
            if let Err(error) = self.shared.kernel.retire_others() {
                tracing::error!(%error, "the programs of an earlier version stay attached");
            }
        }
        failed
    }

    fn withdraw_unwanted(&mut self, workers: &Workers, wanted: &[Wanted]) {
        let keeps = |uid: &Uid, path: &Path| {
            // A pod that came back under the same name has another namespace behind its path.
            wanted
                .iter()
                .any(|pod| pod.uid == *uid && pod.netns == path)
        };
        let leaving: Vec<Uid> = self
            .pods
            .iter()
            .filter(|(uid, enrolled)| {
                let netns = &enrolled.pod.netns;
                !keeps(uid, netns.path()) || is_another(netns)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in leaving {
            if let Some(enrolled) = self.pods.remove(&uid) {
                self.changed = true;
                let cookie = enrolled.pod.netns.cookie();
                if let Err(error) = self.shared.kernel.withdraw(NetnsCookie(cookie)) {
                    tracing::error!(%error, pod = %uid.0, "cannot withdraw the pod from capture");
                }
                workers.remove(cookie);
                self.forget_certificate(enrolled.identity);
                self.shared.telemetry.pod_removed();
                tracing::info!(pod = %uid.0, "pod left");
            }
        }
    }

    /// Stops renewing a certificate that no pod here needs any more.
    fn forget_certificate(&self, identity: Option<Identity>) {
        let still_needed = self.pods.values().any(|pod| pod.identity == identity);
        if let Some(identity) = identity.filter(|_| !still_needed) {
            self.shared.certificates.forget(&identity);
        }
    }

    fn keep_or_enroll(&mut self, workers: &Workers, wanted: &Wanted) -> Result<(), EnrollError> {
        let view = self.shared.keeper.view_owned();
        let mesh = &view.mesh;
        if let Some(enrolled) = self.pods.get_mut(&wanted.uid) {
            let captured = captured_addresses(&enrolled.pod, mesh);
            if captured != enrolled.captured {
                capture(
                    &self.shared.kernel,
                    &enrolled.pod.netns,
                    &captured,
                    &enrolled.inbound,
                )?;
                enrolled.captured = captured;
                self.changed = true;
            }
            return Ok(());
        }
        let (pod, listeners) = prepare(wanted, self.shared.config.workers)?;
        let captured = captured_addresses(&pod, mesh);
        let inbound = listeners
            .first()
            .map(|first| first.inbound.as_fd().try_clone_to_owned());
        let inbound = inbound.transpose().map_err(EnrollError::Addresses)?;
        for listeners in &listeners {
            let claimed = self.shared.kernel.claim(listeners.inbound.as_fd());
            claimed.map_err(EnrollError::Claim)?;
        }
        workers.add(&pod, listeners);
        if let Some(inbound) = inbound {
            if let Err(error) = capture(&self.shared.kernel, &pod.netns, &captured, &inbound) {
                // What is captured stays captured and refused; only our part is taken back.
                workers.remove(pod.netns.cookie());
                return Err(error);
            }
            let identity = mesh
                .workload_by_uid(&wanted.uid)
                .map(|workload| workload.identity.clone());
            if let Some(identity) = &identity {
                self.shared.certificates.prefetch(identity);
            }
            tracing::info!(pod = %wanted.uid.0, netns = %wanted.netns.display(), addresses = ?captured, "pod enrolled");
            self.shared.telemetry.pod_added();
            self.changed = true;
            self.pods.insert(
                wanted.uid.clone(),
                Enrolled {
                    pod,
                    identity,
                    inbound,
                    captured,
                },
            );
        }
        Ok(())
    }

    /// Withdraws what the maps still hold and nobody asks for: pods of an earlier process that
    /// have left meanwhile.
    fn forget_strangers(&self) {
        let known = |cookie: &NetnsCookie| {
            self.pods
                .values()
                .any(|enrolled| enrolled.pod.netns.cookie() == cookie.0)
        };
        let captured = match self.shared.kernel.enrolled() {
            Ok(captured) => captured,
            Err(error) => {
                tracing::error!(%error, "cannot list the captured pods");
                return;
            }
        };
        for stranger in captured.into_iter().filter(|cookie| !known(cookie)) {
            match self.shared.kernel.withdraw(stranger) {
                Ok(()) => tracing::info!(cookie = stranger.0, "withdrew a pod that has left"),
                Err(error) => tracing::error!(%error, cookie = stranger.0, "cannot withdraw a pod"),
            }
        }
    }
}

/// Whether the file now leads to another namespace than the one that is held open. A file that
/// is gone leads nowhere, which is no reason to stop serving the pod.
fn is_another(netns: &Netns) -> bool {
    Netns::open(netns.path()).is_ok_and(|now| now.cookie() != netns.cookie())
}

fn prepare(wanted: &Wanted, workers: usize) -> Result<(Arc<Pod>, Vec<Listeners>), EnrollError> {
    let netns = Netns::open(&wanted.netns)?;
    let (addresses, listeners) = netns.visit(|| {
        delivery::prepare()?;
        let listeners: Result<Vec<_>, _> = (0..workers).map(|_| Listeners::open()).collect();
        let addresses = addresses_here().map_err(EnrollError::Addresses)?;
        Ok::<_, EnrollError>((addresses, listeners?))
    })??;
    let pod = Pod {
        uid: wanted.uid.clone(),
        netns: Arc::new(netns),
        addresses,
    };
    Ok((Arc::new(pod), listeners))
}

fn capture(
    kernel: &Kernel,
    netns: &Netns,
    addresses: &[IpAddr],
    inbound: &OwnedFd,
) -> Result<(), EnrollError> {
    let cookie = NetnsCookie(netns.cookie());
    let pod = PodCapture {
        cookie,
        netns: netns.as_fd(),
        addresses,
        inbound: inbound.as_fd(),
    };
    Ok(kernel.enroll(&pod)?)
}

/// The addresses under which the pod is called: what its interfaces bear and what the mesh says.
fn captured_addresses(pod: &Pod, mesh: &Snapshot) -> Vec<IpAddr> {
    let workload = mesh.workload_by_uid(&pod.uid);
    // The mesh's come first: the first of each family is what captured sockets are bound to.
    let mut addresses: Vec<IpAddr> = workload
        .map(|workload| workload.workload_ips.clone())
        .unwrap_or_default();
    for own in &pod.addresses {
        if !addresses.contains(own) {
            addresses.push(*own);
        }
    }
    addresses.retain(|address| pod.addresses.contains(address) || pod.addresses.is_empty());
    addresses
}
