//! The input of every decision on this node: the mesh, the pods of this node, and the paths that
//! the settings allow them. A view is immutable; a change builds a new one, which the fast path's
//! controller puts in force.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::fastpath::JoinMode;
use crate::{Snapshot, Uid, Workload};

/// The number of a network namespace (`SO_NETNS_COOKIE`), which is unique until the machine
/// restarts.
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
    /// Over the fast path, without encryption: the bytes do not leave the machine.
    #[default]
    Direct,
    /// Over the tunnel path, as between two nodes.
    Tunnel,
}

/// The paths that the settings allow a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedPaths {
    /// How the workload talks to pods of its own node.
    pub same_node: SameNode,
    /// Whether a sockmap may join the sockets of its connections.
    pub join_mode: JoinMode,
}

impl Default for AllowedPaths {
    fn default() -> Self {
        Self {
            same_node: SameNode::default(),
            join_mode: JoinMode::Apart,
        }
    }
}

/// The paths that the settings allow each workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathSettings {
    /// For workloads without an override.
    pub mesh: AllowedPaths,
    /// The overrides of single workloads.
    pub overrides: HashMap<Uid, AllowedPaths>,
}

impl PathSettings {
    /// Disables the fast path between pods of this node.
    pub fn tunnel_everything(&mut self) {
        for allowed in self.overrides.values_mut().chain([&mut self.mesh]) {
            allowed.same_node = SameNode::Tunnel;
        }
    }

    fn of(&self, uid: &Uid) -> AllowedPaths {
        self.overrides.get(uid).copied().unwrap_or(self.mesh)
    }
}

/// A pod of this node that the proxy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// The uid of its workload.
    pub uid: Uid,
    /// The service account that the node agent reported, if it did. A workload of the mesh with
    /// another service account is a different workload.
    pub account: Option<Arc<str>>,
    /// Its workload as far as the node agent's announcement and its interfaces tell it: who the pod
    /// is, and not what it allows.
    pub announced: Option<Arc<Workload>>,
    /// Its network namespace.
    pub cookie: NetnsCookie,
    /// The addresses for which its connections are captured.
    pub addresses: Vec<IpAddr>,
    /// Whether rules inside the pod redirect inbound connections. The fast path does not lead to
    /// such a pod, because the connection would arrive at an address that no entry names.
    pub redirected: bool,
    /// Whether it has left: its connections are no longer captured. Those that still arrive at the
    /// proxy's listeners are served for a short time, and the kernel carries no new ones.
    pub leaving: bool,
}

impl LocalPod {
    /// Whether the pod can be this workload of the mesh. With no workload in the mesh yet, it can.
    fn matches(&self, workload: Option<&Arc<Workload>>) -> bool {
        workload
            .zip(self.account.as_ref())
            .is_none_or(|(workload, account)| workload.service_account == *account)
    }
}

#[derive(Debug)]
struct ServedPod {
    pod: LocalPod,
    paths: AllowedPaths,
}

/// The mesh, the pods of this node, and the paths that the settings allow them.
#[derive(Debug, Default)]
pub struct View {
    /// The mesh.
    pub mesh: Arc<Snapshot>,
    pods: HashMap<NetnsCookie, ServedPod>,
    cookies: HashMap<Uid, NetnsCookie>,
    /// The pods served here whose workloads the mesh does not know, by address.
    expected: HashMap<IpAddr, Uid>,
}

impl View {
    /// Builds the view of a mesh with the pods of this node.
    #[must_use]
    pub fn new(
        mesh: Arc<Snapshot>,
        pods: impl IntoIterator<Item = LocalPod>,
        paths: &PathSettings,
    ) -> Self {
        let mut view = Self {
            mesh,
            ..Self::default()
        };
        for pod in pods {
            let paths = paths.of(&pod.uid);
            let workload = view.mesh.workload_by_uid(&pod.uid);
            let (known, matches) = (workload.is_some(), pod.matches(workload));
            if !pod.leaving && (!known || !matches) {
                let expected = pod.addresses.iter();
                let expected = expected.map(|address| (*address, pod.uid.clone()));
                view.expected.extend(expected);
            }
            if matches {
                view.cookies.insert(pod.uid.clone(), pod.cookie);
            }
            view.pods.insert(pod.cookie, ServedPod { pod, paths });
        }
        view
    }

    /// The pod with this network namespace, if this node serves it.
    #[must_use]
    pub fn pod(&self, cookie: NetnsCookie) -> Option<&LocalPod> {
        self.pods.get(&cookie).map(|served| &served.pod)
    }

    /// Whether this node serves a pod of this uid whose workload the control plane has not pushed.
    #[must_use]
    pub fn is_expected(&self, uid: &str) -> bool {
        self.expected.values().any(|expected| *expected.0 == *uid)
    }

    /// The pod of this node that has an address and whose workload the control plane has not pushed,
    /// for a workload that dials the address. An address of the source's own pod is its own, even
    /// where another pod has the same.
    #[must_use]
    pub fn expects(&self, source: &Workload, address: IpAddr) -> Option<&Uid> {
        let expected = self.expected.get(&address)?;
        let own = self.find(source);
        let own = own.is_some_and(|served| served.pod.addresses.contains(&address));
        (!own).then_some(expected)
    }

    /// The workload of the pod with this network namespace.
    #[must_use]
    pub fn workload(&self, cookie: NetnsCookie) -> Option<&Arc<Workload>> {
        let pod = self.pod(cookie)?;
        let workload = self.mesh.workload_by_uid(&pod.uid);
        workload.filter(|_| pod.matches(workload))
    }

    /// The workload that a pod acts with as a client: that of the mesh, or the announced one where the
    /// mesh does not contain it.
    #[must_use]
    pub fn client(&self, cookie: NetnsCookie) -> Option<&Arc<Workload>> {
        let announced = || self.pod(cookie)?.announced.as_ref();
        self.workload(cookie).or_else(announced)
    }

    /// Whether a sockmap joins the connections between a pod and the proxy.
    #[must_use]
    pub fn join_mode(&self, cookie: NetnsCookie) -> JoinMode {
        self.pods
            .get(&cookie)
            .map_or(JoinMode::Apart, |served| served.paths.join_mode)
    }

    /// The pods that this node serves.
    pub fn pods(&self) -> impl Iterator<Item = &LocalPod> {
        self.pods.values().map(|served| &served.pod)
    }

    /// Whether this node serves the pod of a workload.
    #[must_use]
    pub fn serves(&self, workload: &Workload) -> bool {
        self.find(workload).is_some()
    }

    fn find(&self, workload: &Workload) -> Option<&ServedPod> {
        self.pods.get(self.cookies.get(&workload.uid)?)
    }

    /// How a workload reaches another one of this node without a tunnel: the pod with the address,
    /// and whether a sockmap may join the sockets. `None` if the connection needs a tunnel: one of
    /// the two is on another node, the settings demand encryption, the destination leaves or
    /// redirects inbound connections, or it has an application tunnel or terminates HBONE itself.
    #[must_use]
    pub fn direct(
        &self,
        source: &Workload,
        workload: &Workload,
        to: IpAddr,
    ) -> Option<(NetnsCookie, JoinMode)> {
        let server = self.find(workload)?;
        let client = self.find(source)?;
        let both = [client.paths, server.paths];
        // A connection of a pod to itself does not leave the pod, so neither setting applies.
        let is_loop = server.pod.cookie == client.pod.cookie;
        let encrypt = !is_loop && both.iter().any(|end| end.same_node == SameNode::Tunnel);
        let needs_tunnel = workload.native_tunnel || workload.application_tunnel.is_some();
        let redirected = server.pod.redirected && !is_loop;
        if encrypt
            || needs_tunnel
            || redirected
            || server.pod.leaving
            || !server.pod.addresses.contains(&to)
        {
            return None;
        }
        let joined = both.iter().all(|end| end.join_mode == JoinMode::Joined);
        let join_mode = if joined {
            JoinMode::Joined
        } else {
            JoinMode::Apart
        };
        Some((server.pod.cookie, join_mode))
    }
}
