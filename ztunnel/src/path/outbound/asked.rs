//! Where an application wants to go that says so by SOCKS: an address, or a name that the mesh
//! knows, or else the resolver.

use std::net::{IpAddr, SocketAddr};

use super::super::route::choose_address;
use super::super::socks5::message::Destination;
use super::super::worker::Here;
use super::error::DepartError;
use crate::mesh::Workload;

/// The address that was asked for.
///
/// # Errors
/// When it is none that may be asked for, or a name without an address.
pub(super) async fn asked_for(here: &Here, asked: Destination) -> Result<SocketAddr, DepartError> {
    let to = match asked {
        Destination::Address(to) => to,
        Destination::Name(name, port) => {
            let known = {
                let view = here.local.shared.keeper.view();
                let source = here.pod.workload(&view.mesh);
                let source = source.ok_or_else(|| DepartError::UnknownWorkload {
                    uid: here.pod.uid.0.clone(),
                })?;
                let service = view.mesh.resolve_hostname(&name, &source.namespace);
                service.and_then(|entry| {
                    let vips = entry.service.vips.iter();
                    let here_too = vips.filter(|vip| vip.network == source.network);
                    let vips: Vec<IpAddr> = here_too.map(|vip| vip.address).collect();
                    reachable(here, source, &vips)
                })
            };
            let found = match known {
                Some(address) => address,
                None => {
                    let found = here.local.shared.resolver.resolve(&name).await?;
                    let like = here.pod.addresses.first().copied();
                    let dice = here.local.dice();
                    let chosen = like.and_then(|like| choose_address(&found, like, dice));
                    chosen.or_else(|| found.first().copied()).ok_or_else(|| {
                        super::ResolveError::Empty {
                            hostname: name.clone(),
                        }
                    })?
                }
            };
            SocketAddr::new(found.to_canonical(), port)
        }
    };
    let ip = to.ip();
    // The pod's loopback is the application's own, and the proxy's listeners are on it.
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || to.port() == 0 {
        return Err(DepartError::NotToBeAsked { destination: to });
    }
    Ok(to)
}

/// The first address of a family that the pod has, IPv4 before IPv6.
fn reachable(here: &Here, source: &Workload, addresses: &[IpAddr]) -> Option<IpAddr> {
    let own = || here.pod.addresses.iter().chain(&source.workload_ips);
    [true, false].into_iter().find_map(|v4| {
        let has = own().any(|own| own.is_ipv4() == v4);
        let mut of_family = addresses.iter().filter(|address| address.is_ipv4() == v4);
        of_family.next().copied().filter(|_| has)
    })
}
