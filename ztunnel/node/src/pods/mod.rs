//! The pods that live on this node: their network namespaces, and the sockets and routes that
//! the proxy needs inside them.
//!
//! A pod is enrolled in four steps, each of which can be repeated: open its namespace
//! ([`Netns`]), make room for delivery with the client's address ([`delivery`]), open the
//! listeners ([`Listeners`]), and last, from `node`, turn capture on. Connections of a pod that are
//! no longer allowed are ended by [`destroy()`]. Which pods there are the settings say, or the node
//! agent ([`zds`]). Nothing here knows about eBPF; nothing here reads
//! or writes a connection.

pub mod delivery;
mod destroy;
mod error;
mod gone;
#[cfg(test)]
pub(crate) mod netlab;
mod netns;
mod redirection;
mod rehearsal;
mod socket;
mod sysctl;
mod unsent;

pub use destroy::{
    Connection, DestroyMethod, Destroyed, Error as DestroyError, Failure, Outcome, destroy,
};
pub use error::Error;
pub use gone::{PeerEnd, peer_gone};
pub use netns::{Handed, Netns, NetnsSource, addresses_here};
pub use redirection::{dialled_of, is_redirected, redirected_from};
pub use rehearsal::{Rehearsal, rehearse};
pub use socket::{
    Dial, DnsSockets, Extra, Listeners, Opened, Source, abort_on_drop, accept, local_of, peer_of,
    send_from, step_aside,
};
pub use unsent::unsent;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mesh::{Snapshot, Uid, Workload};

/// A pod that is enrolled on this node. Shared by all workers.
#[derive(Debug)]
pub struct Pod {
    /// Which workload of the mesh it is.
    pub uid: Uid,
    /// Its service account, where somebody else than the mesh has said it.
    pub account: Option<Arc<str>>,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// The addresses by which it can be called: those on its interfaces, without loopback and
    /// link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Whether rules inside it redirect what comes in: found when it was enrolled, or seen since.
    pub redirected: AtomicBool,
}

impl Pod {
    /// The address by which others know a client inside the pod. The kernel gives loopback as the
    /// source of a captured IPv6 connection, and of one that was bound to a port beforehand.
    #[must_use]
    pub fn known_as(&self, client: SocketAddr) -> SocketAddr {
        let ip = client.ip();
        let own = self
            .addresses
            .iter()
            .find(|own| ip.is_loopback() && own.is_ipv4() == ip.is_ipv4());
        SocketAddr::new(own.copied().unwrap_or(ip), client.port())
    }

    /// What the mesh says about the pod. Nothing where the mesh knows another service account: a
    /// pod that came back under an old name must not act as its predecessor.
    #[must_use]
    pub fn workload<'a>(&self, mesh: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        let workload = mesh.workload_by_uid(&self.uid)?;
        let account = self.account.as_ref();
        account
            .is_none_or(|account| *account == workload.service_account)
            .then_some(workload)
    }

    /// Whether `address` is one of the pod's own, by its interfaces or by what the mesh says.
    #[must_use]
    pub fn owns(&self, address: IpAddr, workload: &Workload) -> bool {
        self.addresses.contains(&address) || workload.workload_ips.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn a_pod_is_no_workload_that_has_another_account() {
        let workload = Workload::new("uid", "web", "shop", "web").unwrap();
        let mesh = Snapshot::build(vec![workload], Vec::new(), Vec::new());
        let netns = Arc::new(Netns::own().unwrap());
        let known = |uid: &str, account: Option<&str>| {
            let pod = Pod {
                uid: Uid(uid.into()),
                account: account.map(Arc::from),
                netns: netns.clone(),
                addresses: Vec::new(),
                redirected: AtomicBool::new(false),
            };
            pod.workload(&mesh).is_some()
        };
        assert!(known("uid", None));
        assert!(known("uid", Some("web")));
        assert!(!known("uid", Some("admin")));
        assert!(!known("other", Some("web")));
    }
}
