//! What does a peer ask for, and may this pod answer to it? A pure function of the request, the
//! pod's workload and the mesh.
//!
//! Between node proxies the authority is the pod's own address. A name comes from another network,
//! through its gateway: it is a service that the pod backs, whose port is translated here. Another
//! address is for a waypoint that this proxy serves: it stands before that address, or is told by
//! a PROXY header what was dialled and judges for itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::discovery::gateways_of;
use crate::{Authority, Identity, PROXY_PORTS, Ports, Service, Snapshot, Workload, route};

/// What a tunnel leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelTarget {
    /// The pod's address and the port that was called.
    pub destination: SocketAddr,
    /// What was asked for: what a PROXY header tells.
    pub dialled: SocketAddr,
    /// The service, if it was asked for by name.
    pub service: Option<Arc<Service>>,
}

/// Why a tunnel does not lead here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The tunnel leads to somebody else.
    #[error("CONNECT {authority} does not lead to this pod, whose addresses are {addresses:?}")]
    NotThisPod {
        /// What was asked for.
        authority: String,
        /// What would have been right.
        addresses: Vec<IpAddr>,
    },
    /// The tunnel leads to a service that the pod does not back.
    #[error("CONNECT {authority}: workload {uid} does not back a service of that name")]
    NotItsService {
        /// What was asked for.
        authority: String,
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The service has no such port.
    #[error(
        "CONNECT {authority}: neither the service nor workload {uid} has a target for the port"
    )]
    NoSuchPort {
        /// What was asked for.
        authority: String,
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The tunnel leads back into the proxy.
    #[error("{destination} is a port of the proxy itself")]
    ProxyPort {
        /// What was asked for.
        destination: SocketAddr,
    },
}

/// A pod that is asked for something.
#[derive(Debug, Clone, Copy)]
pub struct LocalEndpoint<'a> {
    /// What it is.
    pub workload: &'a Workload,
    /// The addresses under which it is captured.
    pub addresses: &'a [IpAddr],
    /// That at which it was reached.
    pub at: IpAddr,
}

impl LocalEndpoint<'_> {
    /// Whether an address is one of the pod's.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.workload.workload_ips.contains(&address)
    }
}

/// Finds out what a peer asks for.
///
/// # Errors
/// When it is not for this pod.
pub fn target(
    authority: &Authority,
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
) -> Result<TunnelTarget, TargetError> {
    let target = match authority {
        Authority::Address(address) if endpoint.owns(address.ip()) => TunnelTarget {
            destination: *address,
            dialled: *address,
            service: None,
        },
        Authority::Address(address) if stands_before(endpoint.workload, address.ip(), mesh) => {
            TunnelTarget {
                destination: SocketAddr::new(endpoint.at, address.port()),
                dialled: *address,
                service: None,
            }
        }
        Authority::Address(_) => {
            return Err(TargetError::NotThisPod {
                authority: authority.to_string(),
                addresses: endpoint.addresses.to_vec(),
            });
        }
        Authority::Host(hostname, port) => by_name((hostname, *port), endpoint, mesh)?,
    };
    let delivered = delivered(endpoint.workload, target.destination, false);
    if [target.destination, delivered]
        .iter()
        .any(|to| PROXY_PORTS.contains(&to.port()))
    {
        return Err(TargetError::ProxyPort {
            destination: target.destination,
        });
    }
    Ok(target)
}

/// Where the application takes what came in a tunnel: an application tunnel may have a port of its
/// own. What bears a PROXY header goes `on_loopback`, if that is wanted, so that the application can
/// listen where nobody but the proxy gets, and believe the header.
pub fn delivered(workload: &Workload, destination: SocketAddr, on_loopback: bool) -> SocketAddr {
    let Some(tunnel) = workload.application_tunnel else {
        return destination;
    };
    let address = match destination.ip() {
        address if !(on_loopback && tunnel.proxy_protocol) => address,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, tunnel.port.unwrap_or_else(|| destination.port()))
}

/// Whether a workload is a waypoint that may be asked for an address.
fn stands_before(workload: &Workload, address: IpAddr, mesh: &Snapshot) -> bool {
    if let Some(tunnel) = workload.application_tunnel {
        return tunnel.proxy_protocol;
    }
    let is_it = |gateway| route::stands(gateway, mesh, |other| other.uid == workload.uid);
    // Whom of those the client meant is known to the client.
    let mut services = mesh.entries_by_vip(&workload.network, address);
    let before_a_service = services.any(|entry| gateways_of(&entry.service).any(is_it));
    if before_a_service {
        return true;
    }
    // A service may leave the address to the workload that has it.
    let found = mesh.workload_by_address(&workload.network, address);
    found.is_some_and(|found| found.waypoint.as_deref().is_some_and(is_it))
}

/// A service that the pod backs. Of several of that name, that of its own namespace.
fn by_name(
    (hostname, port): (&str, u16),
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
) -> Result<TunnelTarget, TargetError> {
    let authority = || format!("{hostname}:{port}");
    let uid = || endpoint.workload.uid.0.clone();
    let backed = || {
        let services = endpoint.workload.services.iter();
        services.filter(|(key, _)| key.hostname.eq_ignore_ascii_case(hostname))
    };
    let own = backed().find(|(key, _)| key.namespace == endpoint.workload.namespace);
    let found = own.or_else(|| backed().next());
    let found = found.and_then(|(key, ports)| Some((mesh.service(key)?, ports)));
    let (service, ports) = found.ok_or_else(|| TargetError::NotItsService {
        authority: authority(),
        uid: uid(),
    })?;
    let of = |ports: &Ports| ports.get(&port).copied().filter(|port| *port != 0);
    let target =
        of(ports)
            .or_else(|| of(&service.ports))
            .ok_or_else(|| TargetError::NoSuchPort {
                authority: authority(),
                uid: uid(),
            })?;
    Ok(TunnelTarget {
        destination: SocketAddr::new(endpoint.at, target),
        dialled: virtual_address(service, endpoint).map_or_else(
            || SocketAddr::new(endpoint.at, port),
            |address| SocketAddr::new(address, port),
        ),
        service: Some(service.clone()),
    })
}

/// An address of the service as it is known in the pod's network, for applications that can only be
/// told addresses: like the one at which the pod was reached, if there is one.
fn virtual_address(service: &Service, endpoint: LocalEndpoint<'_>) -> Option<IpAddr> {
    let here = || {
        let vips = service.vips.iter();
        vips.filter(|vip| vip.network == endpoint.workload.network)
    };
    let alike = here().find(|vip| vip.address.is_ipv4() == endpoint.at.is_ipv4());
    alike.or_else(|| here().next()).map(|vip| vip.address)
}

/// Whose connection it is: the client that a waypoint or gateway names, if the workload names that
/// waypoint or gateway; whatever anybody else says is not believed.
pub fn client_of(
    peer: IpAddr,
    (identity, named): (Option<&Identity>, Option<IpAddr>),
    workload: &Workload,
    mesh: &Snapshot,
) -> IpAddr {
    let believed = named
        .zip(identity)
        .and_then(|(named, identity)| speaks_for_others(identity, workload, mesh).then_some(named));
    believed.unwrap_or(peer)
}

/// Whether a peer may say on whose behalf it calls: it is a waypoint of the workload or of a
/// service that it backs, or the gateway of its network. Mutual TLS has proved the identity, and a
/// waypoint's is nobody else's.
fn speaks_for_others(peer: &Identity, workload: &Workload, mesh: &Snapshot) -> bool {
    route::waypoints_of(workload, mesh)
        .chain(workload.network_gateway.as_deref())
        .any(|gateway| route::stands(gateway, mesh, |other| other.identity == *peer))
}

#[cfg(test)]
mod tests;
