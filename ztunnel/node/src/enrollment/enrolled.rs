//! A pod that this process serves.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::DesiredPod;
use super::prepare::was_replaced;
use crate::bpf::CaptureListeners;
use crate::pods::Pod;
use mesh::{Identity, LocalPod, NetnsCookie, Snapshot};

/// A pod that this process serves.
#[derive(Debug)]
pub(super) struct Enrolled {
    pub(super) pod: Arc<Pod>,
    pub(super) identity: Option<Identity>,
    /// Copies of listeners, needed to enroll again when addresses change; none where rules capture, and
    /// once another process accepts instead.
    pub(super) listeners: Option<CaptureListeners<OwnedFd>>,
    /// Whether the workers still accept its connections.
    pub(super) accepting: bool,
    pub(super) captured: Vec<IpAddr>,
    /// When its applications accept no more connections that are older than the enrollment; none
    /// after that, and where rules capture.
    pub(super) settles: Option<Instant>,
    /// Increases with each enrollment: of two pods that are the same workload the later one wins.
    pub(super) number: u64,
}

impl Enrolled {
    /// The pod's network namespace.
    pub(super) fn cookie(&self) -> NetnsCookie {
        NetnsCookie(self.pod.netns.cookie())
    }

    /// The pod as an input of decisions. `leaving`: it is no longer captured.
    pub(super) fn local(&self, leaving: bool) -> LocalPod {
        LocalPod {
            uid: self.pod.uid.clone(),
            account: self.pod.account.clone(),
            announced: self.pod.announced.clone(),
            cookie: self.cookie(),
            addresses: self.captured.clone(),
            redirected: self.pod.redirected.load(Ordering::Relaxed),
            leaving,
        }
    }

    /// Whether it is the workload that is desired.
    pub(super) fn has_same_workload(&self, desired: &DesiredPod) -> bool {
        self.pod.uid == desired.uid && self.pod.account == desired.account
    }

    /// Whether it has the namespace of a desired pod. A pod that was replaced under the same name
    /// has another namespace at the same path.
    pub(super) fn has_same_netns(&self, desired: &DesiredPod) -> bool {
        let netns = &self.pod.netns;
        *netns.source() == desired.netns && !was_replaced(netns)
    }

    /// Whether it is enrolled as desired.
    pub(super) fn matches(&self, desired: &DesiredPod) -> bool {
        self.has_same_workload(desired) && self.has_same_netns(desired)
    }
}

/// A pod's identity: the mesh's if it knows the workload, otherwise the one that the node agent's
/// announcement implies.
pub(super) fn identity(pod: &Pod, desired: &DesiredPod, mesh: &Snapshot) -> Option<Identity> {
    let known = pod.workload(mesh).map(|workload| workload.identity.clone());
    let announced = desired.announced.as_ref();
    known.or_else(|| announced.map(|announced| announced.identity.clone()))
}
