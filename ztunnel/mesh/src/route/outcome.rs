//! The routes that a connection can take.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::fastpath::JoinMode;
use crate::{Authority, Identity, NetnsCookie, Service, Workload};

/// Identities of which a peer must prove one.
pub type Identities = SmallVec<[Identity; 1]>;

/// Where a connection goes, and by which path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// As plain TCP, from the pod's network namespace.
    Passthrough {
        /// The address to connect to.
        to: SocketAddr,
        /// The workload with this address, if the mesh has one.
        workload: Option<Arc<Workload>>,
        /// The dialled service, if a service was dialled.
        service: Option<Arc<Service>>,
    },
    /// To a pod of this node without a tunnel. This node evaluates its policies at the source.
    Direct {
        /// The address to connect to.
        to: SocketAddr,
        /// The network namespace of the destination pod.
        server: NetnsCookie,
        /// Whether a sockmap may join the sockets of later connections.
        join_mode: JoinMode,
        /// The destination.
        workload: Arc<Workload>,
        /// The dialled service, if a service was dialled.
        service: Option<Arc<Service>>,
    },
    /// Through an HBONE tunnel.
    Tunnel(Hop),
}

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Its role.
    pub kind: HopKind,
    /// Its HBONE address and port.
    pub at: SocketAddr,
    /// The authority of the CONNECT request.
    pub authority: Authority,
    /// The identities of which it must prove one; never empty.
    pub expected: Identities,
    /// The workload at the other end.
    pub workload: Arc<Workload>,
    /// The dialled service, if a service was dialled.
    pub service: Option<Arc<Service>>,
}

/// The role of the other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HopKind {
    /// The destination.
    Destination,
    /// The waypoint of the destination. The authority is the dialled address.
    Waypoint,
    /// A gateway that forwards a second tunnel, inside this one, into another network. The
    /// authority of both is the host name of the service, because its addresses are not those of
    /// this network.
    NetworkGateway {
        /// The identities of which the end of the second tunnel must prove one; never empty.
        then: Identities,
    },
}
