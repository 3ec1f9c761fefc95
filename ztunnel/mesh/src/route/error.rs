//! Why a connection has no route. Each message names the dialled object, what was found and how to
//! fix it. None of these errors leads to a bypass.

use std::fmt;
use std::sync::Arc;

use crate::{Fault, GatewayDestination, NamespacedHostname};

/// The role of a workload between source and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It applies the policies of a destination.
    Waypoint,
    /// It forwards connections into another network.
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

/// Why a connection has no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The destination is a resource that could not be decoded.
    #[error(
        "the destination is {name}, a resource of the control plane that this proxy could not \
         decode: refused, because it may require a tunnel or a waypoint (the log line \"refused\" \
         of this resource gives the reason)"
    )]
    Undecoded {
        /// The name of the resource.
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
        "service {service} has no healthy backend for port {port}: none of its {endpoints} \
         endpoints is healthy and has a capacity, a target port and the locality that the service \
         demands"
    )]
    NoHealthyBackend {
        /// The service.
        service: NamespacedHostname,
        /// The port that was dialled.
        port: u16,
        /// The number of all endpoints.
        endpoints: usize,
    },
    /// The backends of a service have no addresses.
    #[error(
        "no backend of service {service} has a host name or an address of a family that the \
         service allows"
    )]
    NoAddress {
        /// The service.
        service: NamespacedHostname,
    },
    /// Every backend that may be chosen is in another network, and no gateway leads there.
    #[error(
        "the backends of service {service} are in network {network:?}, the source is in {own:?}, and \
         no backend names a network gateway that leads there"
    )]
    NoNetworkGateway {
        /// The service that was dialled.
        service: NamespacedHostname,
        /// The network of the first backend.
        network: Arc<str>,
        /// The network of the source.
        own: Arc<str>,
    },
    /// The mesh has no service or workload with the host name or address of the gateway.
    #[error(
        "{destination} is behind the {role} {gateway}, and the mesh has no service or workload with \
         that name or address: refused until it is deployed or the reference to it is removed"
    )]
    GatewayUnknown {
        /// The service or workload that was dialled.
        destination: String,
        /// The role of the gateway.
        role: Role,
        /// The host name or address of the gateway.
        gateway: GatewayDestination,
    },
    /// The gateway is known, and none of its instances is usable.
    #[error(
        "{destination} is behind the {role} {gateway}, which cannot be used: {source}; refused, \
         because a bypass of the {role} would bypass its policies"
    )]
    GatewayUnavailable {
        /// The service or workload that was dialled.
        destination: String,
        /// The role of the gateway.
        role: Role,
        /// The host name or address of the gateway.
        gateway: GatewayDestination,
        /// Why no instance is usable.
        source: Box<Self>,
    },
    /// All waypoints of a service have weight 0.
    #[error(
        "{destination} is behind {waypoints} waypoints, all with weight 0: refused until one of \
         them has a weight"
    )]
    NoWaypointWeight {
        /// The service that was dialled.
        destination: String,
        /// The number of waypoints.
        waypoints: usize,
    },
    /// A workload that was dialled by its own address has its waypoint in another network. There a
    /// destination is named by a host name, which only services have.
    #[error(
        "{destination} is behind the waypoint {gateway}, which is in another network: only services \
         are reachable there, so dial a service instead"
    )]
    WaypointElsewhere {
        /// The workload that was dialled.
        destination: String,
        /// The host name or address of its waypoint.
        gateway: GatewayDestination,
    },
}

impl RouteError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Undecoded { .. } => "unreadable",
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

    /// The party that has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NoSuchPort { .. } => Fault::Downstream,
            Self::NoHealthyBackend { .. } | Self::GatewayUnavailable { .. } => Fault::Upstream,
            Self::Undecoded { .. }
            | Self::NoAddress { .. }
            | Self::NoNetworkGateway { .. }
            | Self::GatewayUnknown { .. }
            | Self::NoWaypointWeight { .. }
            | Self::WaypointElsewhere { .. } => Fault::Mesh,
        }
    }
}
