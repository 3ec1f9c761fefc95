//! Why a connection goes nowhere. Each text names what was dialled, what was found instead of a
//! way there, and what would help; none of these ends in a bypass.

use std::fmt;
use std::sync::Arc;

use crate::{DemandKey, Fault, GatewayDestination, NamespacedHostname, Uid};

/// What somebody in the middle is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It applies a destination's policies.
    Waypoint,
    /// It lets connections into another network.
    NetworkGateway,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waypoint => "waypoint",
            Self::NetworkGateway => "network gateway",
        })
    }
}

/// Why a connection goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The mesh is known in part only, and the control plane was not asked yet whether it knows
    /// this. Whoever asks for the route asks, and then for the route once more.
    #[error("{key} is not known here, and the control plane was not asked for it")]
    NotDiscovered {
        /// What to ask for.
        key: DemandKey,
    },
    /// A pod of this node was dialled, and the mesh does not know its workload: which policies and
    /// waypoints are its own is not known. Whoever asks for the route waits, and asks once more.
    #[error(
        "pod {uid} of this node has the address, and its workload is not in the mesh: refused, because \
         its policies and waypoints are not known"
    )]
    NotPushed {
        /// Under which uid the mesh will know it.
        uid: Uid,
    },
    /// The control plane has told of whoever is there, and it could not be read.
    #[error(
        "the control plane has told of {name}, which this proxy could not read: refused, because it may \
         have to be reached by a tunnel or a waypoint (the log says why, at \"refused\")"
    )]
    Unreadable {
        /// The name under which it was told.
        name: Arc<str>,
    },
    /// A service was dialled on a port that it does not have.
    #[error("service {service} has no port {port}")]
    NoSuchPort {
        /// The service.
        service: NamespacedHostname,
        /// The port that was dialled.
        port: u16,
    },
    /// A service has no backend that may be chosen.
    #[error(
        "service {service} has no healthy backend for port {port}: {endpoints} endpoints are known, \
         none of them healthy, with a capacity, a target port and the locality that the service demands"
    )]
    NoHealthyBackend {
        /// The service.
        service: NamespacedHostname,
        /// The port that was dialled.
        port: u16,
        /// How many backends there are, good or bad.
        endpoints: usize,
    },
    /// The backends of a service have no addresses.
    #[error(
        "none of the backends of service {service} has an address of a family that the service \
         allows, or a host name"
    )]
    NoAddress {
        /// The service.
        service: NamespacedHostname,
    },
    /// Every backend that could be chosen is in another network, and no gateway leads there.
    #[error(
        "the backends of service {service} are in network {network:?}, the source is in {own:?}, and \
         none of them names a network gateway that leads there"
    )]
    NoNetworkGateway {
        /// The service that was dialled.
        service: NamespacedHostname,
        /// Where the first of them is.
        network: Arc<str>,
        /// Where the source is.
        own: Arc<str>,
    },
    /// The mesh knows nobody under the name of the waypoint or gateway.
    #[error(
        "{destination} is behind the {role} {gateway}, and the mesh knows no service or workload of \
         that name or address: refused until it is deployed, or no longer named"
    )]
    GatewayUnknown {
        /// The service or workload that was dialled.
        destination: String,
        /// Which of the two.
        role: Role,
        /// What it is called.
        gateway: GatewayDestination,
    },
    /// The waypoint or gateway is known, and none of its instances can be used.
    #[error(
        "{destination} is behind the {role} {gateway}, and it cannot be used: {source}; refused, \
         because going around it would go around its policies"
    )]
    GatewayUnavailable {
        /// The service or workload that was dialled.
        destination: String,
        /// Which of the two.
        role: Role,
        /// What it is called.
        gateway: GatewayDestination,
        /// Why not.
        source: Box<Self>,
    },
    /// None of a service's waypoints may be chosen.
    #[error(
        "{destination} is behind {waypoints} waypoints, and all of them have the weight 0: refused \
         until one of them may be chosen"
    )]
    NoWaypointWeight {
        /// The service that was dialled.
        destination: String,
        /// How many waypoints it names.
        waypoints: usize,
    },
    /// A workload that was dialled by its own address has its waypoint in another network, where
    /// only services are known by name.
    #[error(
        "{destination} is behind the waypoint {gateway}, which is in another network: only a service \
         can be reached there, dial one"
    )]
    WaypointElsewhere {
        /// The workload that was dialled.
        destination: String,
        /// What its waypoint is called.
        gateway: GatewayDestination,
    },
}

impl RouteError {
    /// A short name out of a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotDiscovered { .. } => "unasked",
            Self::NotPushed { .. } => "not_pushed",
            Self::Unreadable { .. } => "unreadable",
            Self::NoSuchPort { .. } => "no_such_port",
            Self::NoHealthyBackend { .. } => "no_healthy_backend",
            Self::NoAddress { .. } => "no_address",
            Self::NoNetworkGateway { .. } => "no_network_gateway",
            Self::GatewayUnknown { role, .. } => match role {
                Role::Waypoint => "waypoint_unknown",
                Role::NetworkGateway => "network_gateway_unknown",
            },
            Self::GatewayUnavailable { role, .. } => match role {
                Role::Waypoint => "waypoint_unavailable",
                Role::NetworkGateway => "network_gateway_unavailable",
            },
            Self::NoWaypointWeight { .. } => "no_waypoint_weight",
            Self::WaypointElsewhere { .. } => "waypoint_elsewhere",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NoSuchPort { .. } => Fault::Downstream,
            Self::NoHealthyBackend { .. } | Self::GatewayUnavailable { .. } => Fault::Upstream,
            Self::NotDiscovered { .. }
            | Self::NotPushed { .. }
            | Self::Unreadable { .. }
            | Self::NoAddress { .. }
            | Self::NoNetworkGateway { .. }
            | Self::GatewayUnknown { .. }
            | Self::NoWaypointWeight { .. }
            | Self::WaypointElsewhere { .. } => Fault::Mesh,
        }
    }
}
