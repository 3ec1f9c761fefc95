//! The pods of this node: their network namespaces, and the sockets and routes that the proxy needs
//! inside them.
//!
//! A pod is enrolled in four steps, each of which is idempotent: open its namespace ([`Netns`]),
//! prepare delivery with the client's address ([`routing`]), open the listeners ([`Listeners`]), and
//! turn capture on, which the enrollment does. [`destroy()`] terminates connections that are no longer
//! allowed. The settings or the node agent ([`zds`](crate::agent::zds)) list the pods. This module
//! does not use eBPF, and does not read or write the data of connections.

mod application_cgroups;
mod destroy;
mod dial;
mod error;
mod gone;
#[cfg(test)]
pub(crate) mod netlab;
mod netlink;
mod netns;
mod redirection;
mod rehearsal;
pub mod routing;
mod socket;
mod sysctl;
mod translation;
mod unsent;

pub use application_cgroups::application_cgroups;
pub use destroy::{
    Connection, DestroyMethod, Destroyed, Error as DestroyError, Failure, Outcome, destroy,
};
pub use dial::{Dial, bind_source, is_privileged};
pub use error::Error;
pub use gone::{PeerEnd, peer_gone};
pub use netns::{Netns, NetnsDescriptor, NetnsSource, interface_addresses};
pub use redirection::{dialled_of, is_redirected, is_served, redirected_from};
pub use rehearsal::{Rehearsal, rehearse};
#[cfg(test)]
pub(crate) use socket::listen_captured;
pub use socket::{
    CapturedListeners, DnsSockets, Listeners, MarkListener, Missing, Opened, OptionalListener,
    abort_on_drop, accept, leave_reuseport_group, local_of, mark_of, peer_of, send_from,
};
pub use translation::keep_translation;
pub use unsent::unsent;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mesh::{Snapshot, Uid, Workload};

/// A pod that is enrolled on this node. Shared by all workers.
#[derive(Debug)]
pub struct Pod {
    /// The uid of its workload in the mesh.
    pub uid: Uid,
    /// Its service account, if the node agent has named it.
    pub account: Option<Arc<str>>,
    /// Its workload as far as the node agent's announcement and its interfaces tell it. It says who
    /// the pod is, and not what it allows: it has no policies.
    pub announced: Option<Arc<Workload>>,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// The addresses on its interfaces, without loopback and link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Whether rules inside the pod redirect inbound connections: found at enrollment or later.
    pub redirected: AtomicBool,
}

impl Pod {
    /// The address of a client inside the pod as seen from outside. The source of a captured connection
    /// is a loopback address if the application has bound it to one, or if the pod has no address of the
    /// family.
    #[must_use]
    pub fn external_address(&self, client: SocketAddr) -> SocketAddr {
        let ip = client.ip();
        let own = self
            .addresses
            .iter()
            .find(|own| ip.is_loopback() && own.is_ipv4() == ip.is_ipv4());
        SocketAddr::new(own.copied().unwrap_or(ip), client.port())
    }

    /// The pod's workload in the mesh. None if the mesh has another service account: a pod that was
    /// replaced under the same name must not act as its predecessor.
    #[must_use]
    pub fn workload<'a>(&self, mesh: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        let workload = mesh.workload_by_uid(&self.uid)?;
        let account = self.account.as_ref();
        account
            .is_none_or(|account| *account == workload.service_account)
            .then_some(workload)
    }

    /// Whether `address` is one of the pod's own, on its interfaces or in the mesh.
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
    fn a_workload_with_another_service_account_is_not_the_pods() {
        let workload = Workload::new("uid", "web", "shop", "web").unwrap();
        let mesh = Snapshot::build(vec![workload], Vec::new(), Vec::new());
        let netns = Arc::new(Netns::own().unwrap());
        let known = |uid: &str, account: Option<&str>| {
            let pod = Pod {
                uid: Uid(uid.into()),
                account: account.map(Arc::from),
                announced: None,
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
