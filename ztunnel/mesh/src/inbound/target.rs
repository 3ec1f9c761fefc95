//! Where a tunnel leads, and whether it may lead to this pod: a pure function of the request, the
//! pod's workload and the mesh.
//!
//! Between node proxies the authority is the pod's own address. A host name comes from another
//! network through its gateway: it names a service that the pod backs, whose port is translated
//! here. Any other address is for a waypoint that this proxy serves: it is a waypoint of that
//! address, or it gets the dialled address in a PROXY header and decides itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::discovery::gateways_of;
use crate::{Authority, Identity, PROXY_PORTS, Ports, Service, Snapshot, Workload, route};

/// The destination of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelTarget {
    /// The pod's address and the port.
    pub destination: SocketAddr,
    /// The dialled address, as a PROXY header reports it.
    pub dialled: SocketAddr,
    /// The service, if the authority is its host name.
    pub service: Option<Arc<Service>>,
}

/// A tunnel does not lead to this pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The authority is an address of another pod.
    #[error("CONNECT {authority} does not lead to this pod, whose addresses are {addresses:?}")]
    NotThisPod {
        /// The authority of the CONNECT request.
        authority: String,
        /// The addresses of the pod.
        addresses: Vec<IpAddr>,
    },
    /// The authority is the host name of a service that the pod does not back.
    #[error("CONNECT {authority}: workload {uid} does not back a service with that host name")]
    NotItsService {
        /// The authority of the CONNECT request.
        authority: String,
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The service has no such port.
    #[error("CONNECT {authority}: neither the service nor workload {uid} has a target port for it")]
    NoSuchPort {
        /// The authority of the CONNECT request.
        authority: String,
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The destination is a port of the proxy.
    #[error("{destination} is a port of the proxy, where no application is reachable")]
    ProxyPort {
        /// The authority of the CONNECT request.
        destination: SocketAddr,
    },
}

/// The pod that accepted a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct LocalEndpoint<'a> {
    /// Its workload.
    pub workload: &'a Workload,
    /// The addresses for which its connections are captured.
    pub addresses: &'a [IpAddr],
    /// The address at which the tunnel reached it.
    pub at: IpAddr,
}

impl LocalEndpoint<'_> {
    /// Whether an address is one of the pod's.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.workload.workload_ips.contains(&address)
    }
}

/// Finds where a tunnel leads.
///
/// # Errors
/// When it does not lead to this pod.
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
        Authority::Address(address) if is_waypoint_for(endpoint.workload, address.ip(), mesh) => {
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
        Authority::Host(hostname, port) => by_name(hostname, *port, endpoint, mesh)?,
    };
    let delivery = delivery_address(endpoint.workload, target.destination, false);
    if [target.destination, delivery]
        .iter()
        .any(|to| PROXY_PORTS.contains(&to.port()))
    {
        return Err(TargetError::ProxyPort {
            destination: target.destination,
        });
    }
    Ok(target)
}

/// The address and port at which the application accepts a tunnelled connection. An application
/// tunnel may have its own port. A connection with a PROXY header is delivered on loopback if
/// `on_loopback` is set, so that the application can listen there and trust the header.
pub fn delivery_address(
    workload: &Workload,
    destination: SocketAddr,
    on_loopback: bool,
) -> SocketAddr {
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

/// Whether a workload is a waypoint of an address.
fn is_waypoint_for(workload: &Workload, address: IpAddr, mesh: &Snapshot) -> bool {
    if let Some(tunnel) = workload.application_tunnel {
        return tunnel.proxy_protocol;
    }
    let is_it = |gateway| route::resolves_to(gateway, mesh, |other| other.uid == workload.uid);
    // Only the client knows which of the services with this address it dialled.
    let mut services = mesh.entries_by_vip(&workload.network, address);
    let is_of_service = services.any(|entry| gateways_of(&entry.service).any(is_it));
    if is_of_service {
        return true;
    }
    // The workload with this address may have a waypoint, too.
    let found = mesh.workload_by_address(&workload.network, address);
    found.is_some_and(|found| found.waypoint.as_deref().is_some_and(is_it))
}

/// A service that the pod backs. Of several with the same host name, that of its own namespace.
fn by_name(
    hostname: &str,
    port: u16,
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

/// A virtual address of the service in the pod's network, for applications that expect an address:
/// of the same family as the address at which the pod was reached, if possible.
fn virtual_address(service: &Service, endpoint: LocalEndpoint<'_>) -> Option<IpAddr> {
    let in_network = || {
        let vips = service.vips.iter();
        vips.filter(|vip| vip.network == endpoint.workload.network)
    };
    let same_family = in_network().find(|vip| vip.address.is_ipv4() == endpoint.at.is_ipv4());
    same_family
        .or_else(|| in_network().next())
        .map(|vip| vip.address)
}

/// What a tunnel says about the client of its connection.
#[derive(Debug, Clone, Copy)]
pub struct ClientReport<'a> {
    /// The peer's identity, which mutual TLS has proved; none for a plaintext connection.
    pub identity: Option<&'a Identity>,
    /// The client's address as the peer reports it, if it reports one.
    pub address: Option<IpAddr>,
}

/// The client's address: the one that a waypoint or gateway reports, if it is a waypoint or gateway
/// of the workload. A report of any other peer is ignored.
pub fn client_address(
    peer: IpAddr,
    report: ClientReport<'_>,
    workload: &Workload,
    mesh: &Snapshot,
) -> IpAddr {
    let trusted = |identity| may_report_client(identity, workload, mesh);
    let reported = report.address;
    reported
        .filter(|_| report.identity.is_some_and(trusted))
        .unwrap_or(peer)
}

/// Whether a peer may report its client: it is a waypoint of the workload or of a service that the
/// workload backs, or the gateway of the workload's network. Mutual TLS has proved the identity, and
/// no other workload has a waypoint's identity.
fn may_report_client(peer: &Identity, workload: &Workload, mesh: &Snapshot) -> bool {
    route::waypoints_of(workload, mesh)
        .chain(workload.network_gateway.as_deref())
        .any(|gateway| route::resolves_to(gateway, mesh, |other| other.identity == *peer))
}

#[cfg(test)]
mod tests;
