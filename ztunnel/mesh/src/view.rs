//! What one judgement looks at: the mesh, which of its pods are served here, and which lanes the
//! operator allows them. Immutable; whoever learns something new builds another one and has the
//! [`super::direct::Keeper`] put it in force.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::fastpath::Ends;
use crate::{Snapshot, Uid, Workload};

/// A network namespace's number, `SO_NETNS_COOKIE`: never used twice while the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How two pods of this node talk to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SameNode {
    /// In the kernel, without encryption: the bytes do not leave the machine.
    #[default]
    Direct,
    /// Through a tunnel, as if they were on two nodes.
    Tunnel,
}

/// What the operator allows a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// How it talks to pods of its node.
    pub same_node: SameNode,
    /// Whether its connections may be joined.
    pub ends: Ends,
}

impl Default for Allowed {
    fn default() -> Self {
        Self {
            same_node: SameNode::default(),
            ends: Ends::Apart,
        }
    }
}

/// What the operator allows, workload by workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lanes {
    /// For those that have no entry of their own.
    pub mesh: Allowed,
    /// By workload.
    pub overrides: HashMap<Uid, Allowed>,
}

impl Lanes {
    /// Takes the direct lane between pods of this node away.
    pub fn tunnel_everything(&mut self) {
        for allowed in self.overrides.values_mut().chain([&mut self.mesh]) {
            allowed.same_node = SameNode::Tunnel;
        }
    }

    fn of(&self, uid: &Uid) -> Allowed {
        self.overrides.get(uid).copied().unwrap_or(self.mesh)
    }
}

/// A pod that is served here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Which workload it is.
    pub uid: Uid,
    /// Its service account, where somebody else than the mesh has said it: a workload with another
    /// one is somebody else.
    pub account: Option<Arc<str>>,
    /// Its network namespace.
    pub cookie: NetnsCookie,
    /// The addresses under which it is captured.
    pub addresses: Vec<IpAddr>,
    /// Whether somebody's rules inside the pod redirect what comes in. What arrives there is not
    /// what was written down when it left, so the direct lane does not lead to it.
    pub redirected: bool,
}

impl LocalPod {
    /// Whether it is what the mesh knows under its uid; it may be, where the mesh knows nothing.
    fn is(&self, workload: Option<&Arc<Workload>>) -> bool {
        workload
            .zip(self.account.as_ref())
            .is_none_or(|(workload, account)| workload.service_account == *account)
    }
}

/// What one judgement looks at.
#[derive(Debug, Default)]
pub struct View {
    /// The mesh.
    pub mesh: Arc<Snapshot>,
    pods: HashMap<NetnsCookie, (LocalPod, Allowed)>,
    cookies: HashMap<Uid, NetnsCookie>,
    /// The pods served here whose workloads the mesh does not know, by address.
    expected: HashMap<IpAddr, Uid>,
}

impl View {
    /// Of a mesh, with the pods that are served here and what they may.
    #[must_use]
    pub fn new(
        mesh: Arc<Snapshot>,
        pods: impl IntoIterator<Item = LocalPod>,
        lanes: &Lanes,
    ) -> Self {
        let mut view = Self {
            mesh,
            ..Self::default()
        };
        for pod in pods {
            let allowed = lanes.of(&pod.uid);
            let workload = view.mesh.workload_by_uid(&pod.uid);
            let (known, is_it) = (workload.is_some(), pod.is(workload));
            if !(known && is_it) {
                let expected = pod.addresses.iter();
                let expected = expected.map(|address| (*address, pod.uid.clone()));
                view.expected.extend(expected);
            }
            if is_it {
                view.cookies.insert(pod.uid.clone(), pod.cookie);
            }
            view.pods.insert(pod.cookie, (pod, allowed));
        }
        view
    }

    /// The pod of a namespace, if it is served here.
    #[must_use]
    pub fn pod(&self, cookie: NetnsCookie) -> Option<&LocalPod> {
        self.pods.get(&cookie).map(|(pod, _)| pod)
    }

    /// Whether a pod is served here and the mesh does not know its workload (yet).
    #[must_use]
    pub fn is_expected(&self, uid: &str) -> bool {
        self.expected.values().any(|expected| *expected.0 == *uid)
    }

    /// The pod served here that has an address and whose workload the mesh does not know (yet), for a
    /// workload that dials it. An address of the source's own pod is its own, even where another pod
    /// has the same.
    #[must_use]
    pub fn expects(&self, source: &Workload, address: IpAddr) -> Option<&Uid> {
        let expected = self.expected.get(&address)?;
        let own = self.find(source);
        let own = own.is_some_and(|(pod, _)| pod.addresses.contains(&address));
        (!own).then_some(expected)
    }

    /// What the mesh says about the pod of a namespace.
    #[must_use]
    pub fn workload(&self, cookie: NetnsCookie) -> Option<&Arc<Workload>> {
        let pod = self.pod(cookie)?;
        let workload = self.mesh.workload_by_uid(&pod.uid);
        workload.filter(|_| pod.is(workload))
    }

    /// Whether the connections of a pod with the proxy are joined.
    #[must_use]
    pub fn ends(&self, cookie: NetnsCookie) -> Ends {
        self.pods
            .get(&cookie)
            .map_or(Ends::Apart, |(_, allowed)| allowed.ends)
    }

    /// The pods that are served here.
    pub fn pods(&self) -> impl Iterator<Item = &LocalPod> {
        self.pods.values().map(|(pod, _)| pod)
    }

    /// Whether a workload is a pod that is served here.
    #[must_use]
    pub fn serves(&self, workload: &Workload) -> bool {
        self.find(workload).is_some()
    }

    fn find(&self, workload: &Workload) -> Option<&(LocalPod, Allowed)> {
        self.pods.get(self.cookies.get(&workload.uid)?)
    }

    /// How a workload may reach another one at one of its addresses without a tunnel: the pod that
    /// is there, and whether the ends may be joined. None: it takes the tunnel, because one of
    /// them is elsewhere, or wants encryption, or redirects what comes in, or the application behind it wants to be told who
    /// calls or ends tunnels itself.
    #[must_use]
    pub fn direct(
        &self,
        source: &Workload,
        workload: &Workload,
        to: IpAddr,
    ) -> Option<(NetnsCookie, Ends)> {
        let (server, servers) = self.find(workload)?;
        let (client, clients) = self.find(source)?;
        let both = [clients, servers];
        // What a pod says to itself leaves it on no lane, and does not come in.
        let itself = server.cookie == client.cookie;
        let tunnel = !itself && both.iter().any(|end| end.same_node == SameNode::Tunnel);
        let wants_tunnels = workload.native_tunnel || workload.application_tunnel.is_some();
        let redirected = server.redirected && !itself;
        if tunnel || wants_tunnels || redirected || !server.addresses.contains(&to) {
            return None;
        }
        let joined = both.iter().all(|end| end.ends == Ends::Joined);
        let ends = if joined { Ends::Joined } else { Ends::Apart };
        Some((server.cookie, ends))
    }
}
