//! Checks that the cgroup of the kernel programs contains the processes of each pod. A pod whose
//! processes are elsewhere would bypass the mesh.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PodKey;
use crate::bpf::Kernel;
use crate::pods::{self, Netns};
use mesh::NetnsCookie;

/// The delay of the first check of a pod. It doubles while applications have no sockets.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(64);

/// The pods whose processes have not been found in the cgroup of the programs.
#[derive(Debug)]
pub(super) struct Coverage {
    unchecked: Vec<(PodKey, Arc<Netns>)>,
    /// Those of them that have processes outside of the cgroup.
    outside: HashSet<NetnsCookie>,
    interval: Duration,
    next: Option<Instant>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            unchecked: Vec::new(),
            outside: HashSet::new(),
            interval: FIRST,
            next: None,
        }
    }
}

impl Coverage {
    /// Checks a pod from now on, until one of its applications has a socket. A new pod has none.
    pub(super) fn add(&mut self, key: &PodKey, netns: &Arc<Netns>, now: Instant) {
        self.remove(NetnsCookie(netns.cookie()));
        self.unchecked.push((key.clone(), netns.clone()));
        self.interval = FIRST;
        let next = self.next.get_or_insert(now + FIRST);
        *next = (*next).min(now + FIRST);
    }

    /// Checks a pod no more: it has left.
    pub(super) fn remove(&mut self, cookie: NetnsCookie) {
        self.outside.remove(&cookie);
        self.unchecked
            .retain(|(_, netns)| netns.cookie() != cookie.0);
    }

    /// The number of pods that have processes outside of the cgroup.
    pub(super) fn outside(&self) -> usize {
        self.outside.len()
    }

    /// The time of the next check.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Checks the pods if it is time.
    pub(super) fn check(&mut self, kernel: &Kernel, now: Instant) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        if let Err(error) = self.check_all(kernel) {
            tracing::warn!(%error, "cannot check whether the processes of the pods are captured");
        }
        self.interval = (self.interval * 2).min(LONGEST);
        self.next = (!self.unchecked.is_empty()).then(|| now + self.interval);
    }

    fn check_all(&mut self, kernel: &Kernel) -> Result<(), Box<dyn Error>> {
        // Before the cgroups are listed: all of these exist by now.
        let mut used: Vec<BTreeMap<u64, SocketAddr>> = Vec::new();
        for (key, netns) in &self.unchecked {
            let found = netns.visit(pods::application_cgroups);
            let found = found.map_err(Box::<dyn Error>::from);
            let found = found.and_then(|found| found.map_err(Box::from));
            used.push(found.unwrap_or_else(|error| {
                tracing::warn!(pod = %key, %error, "cannot check whether the pod's processes are captured");
                BTreeMap::new()
            }));
        }
        let ids: BTreeSet<u64> = used.iter().flat_map(BTreeMap::keys).copied().collect();
        let outside = kernel.cgroups_outside(&ids)?;
        let mut unchecked = Vec::new();
        for ((key, netns), used) in self.unchecked.drain(..).zip(used) {
            let cookie = NetnsCookie(netns.cookie());
            let found = used.iter().find(|(id, _)| outside.contains(id));
            if let Some((_, socket)) = found
                && self.outside.insert(cookie)
            {
                tracing::error!(
                    pod = %key, %socket,
                    "a process of the pod is outside of the cgroup that the eBPF programs are \
                     attached to: its connections are not captured and bypass the mesh; name a \
                     cgroup that contains the processes of all pods in capture.cgroup \
                     (ZTUNNEL_CAPTURE_CGROUP), and restart the proxy"
                );
            }
            if found.is_none() {
                self.outside.remove(&cookie);
            }
            if found.is_some() || used.is_empty() {
                unchecked.push((key, netns));
            }
        }
        self.unchecked = unchecked;
        Ok(())
    }
}
