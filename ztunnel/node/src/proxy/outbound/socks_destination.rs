//! The destination of a SOCKS request: an address or a name. A name resolves as it does by DNS in
//! the pod: first in the mesh, by the same function and with short names and search domains, then
//! by the resolver.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::connection::Accepted;
use super::super::inputs::InputError;
use super::super::pod_context::PodContext;
use super::super::resolve::ResolveError;
use super::super::socks5::message::Destination;
use super::error::OutboundError;
use crate::pods::{self, PeerEnd};
use mesh::names::{Answer, Family, Question, answer};
use mesh::route::choose_address;
use mesh::{Snapshot, Workload};
use telemetry::WaitKind;

/// Resolves the destination to an address.
///
/// # Errors
/// When the destination is not allowed, or the name has no address.
pub(super) async fn socks_destination(
    context: &PodContext,
    requested: &Destination,
    accepted: &Accepted,
) -> Result<SocketAddr, OutboundError> {
    let to = match requested {
        Destination::Address(to) => *to,
        Destination::Name(name, port) => {
            wait_for_client(context, accepted).await?;
            SocketAddr::new(resolve(context, name).await?, *port)
        }
    };
    let ip = to.ip();
    // The pod's loopback belongs to the application, and the proxy's listeners are on it.
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || to.port() == 0 {
        return Err(OutboundError::SocksDestination { destination: to });
    }
    Ok(to)
}

/// The meaning of a name depends on the client, so its workload has to be known.
async fn wait_for_client(context: &PodContext, accepted: &Accepted) -> Result<(), InputError> {
    let waits = &context.proxy.waits;
    let deadline = waits.deadline(WaitKind::Outbound, accepted.accepted_at);
    let client_gone = pods::peer_gone(&accepted.stream, PeerEnd::MayBeHalf);
    Ok(context.wait_for_client(deadline, client_gone).await?)
}

async fn resolve(context: &PodContext, name: &Arc<str>) -> Result<IpAddr, OutboundError> {
    let proxy = &context.proxy;
    let random = context.worker.random();
    let empty = || ResolveError::Empty {
        hostname: name.clone(),
    };
    let answer = {
        let view = proxy.fast_path.view();
        let source = context.client(&view.mesh);
        let source = source.ok_or_else(|| OutboundError::UnknownWorkload {
            uid: context.pod.uid.0.clone(),
        })?;
        let families = families(context.pod.addresses.iter().chain(&source.workload_ips));
        in_mesh(
            &view.mesh,
            &proxy.config.domain,
            &source,
            &families,
            name,
            random,
        )
    };
    match answer {
        MeshAnswer::Address(address) => return Ok(address),
        MeshAnswer::NoAddress => return Err(empty().into()),
        MeshAnswer::NotInMesh => {}
    }
    let found = proxy.resolver.resolve(name, context.cookie()).await?;
    let like = context.pod.addresses.first().copied();
    let chosen = like.and_then(|like| choose_address(&found, like, random));
    let chosen = chosen.or_else(|| found.first().copied());
    Ok(chosen.ok_or_else(empty)?.to_canonical())
}

/// The address families that a pod with these addresses can reach, IPv4 first.
fn families<'a>(own: impl Iterator<Item = &'a IpAddr> + Clone) -> Vec<Family> {
    let v4 = own.clone().any(IpAddr::is_ipv4).then_some(Family::V4);
    let v6 = own.clone().any(IpAddr::is_ipv6).then_some(Family::V6);
    v4.into_iter().chain(v6).collect()
}

/// The mesh's answer for a name.
#[derive(Debug, PartialEq, Eq)]
enum MeshAnswer {
    /// The name's address.
    Address(IpAddr),
    /// The name is in the mesh, and has no address that the client can reach.
    NoAddress,
    /// The name is not in the mesh.
    NotInMesh,
}

fn in_mesh(
    mesh: &Snapshot,
    domain: &str,
    client: &Workload,
    families: &[Family],
    name: &str,
    random: u64,
) -> MeshAnswer {
    let mut found = MeshAnswer::NotInMesh;
    for &family in families {
        match answer(mesh, domain, client, &Question { name, family }, random) {
            Answer::Records { addresses, .. } => match addresses.first() {
                Some(address) => return MeshAnswer::Address(*address),
                None => found = MeshAnswer::NoAddress,
            },
            Answer::NoData => found = MeshAnswer::NoAddress,
            Answer::NotMine => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::{Uid, local};

    const MESH: &str = r#"
workloads:
- { uid: client, name: client, namespace: shop, workloadIps: ["10.0.0.1"] }
- { uid: db-0, name: db-0, namespace: shop, workloadIps: ["10.0.0.2"], services: { shop/db.shop.svc.cluster.local: {} } }
services:
- { name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: ["/10.1.0.1", "/fd01::1"] }
- { name: web, namespace: bank, hostname: web.bank.svc.cluster.local, vips: ["/10.1.0.2"] }
- { name: six, namespace: shop, hostname: six.shop.svc.cluster.local, vips: ["/fd01::6"] }
- { name: db, namespace: shop, hostname: db.shop.svc.cluster.local }
- { name: far, namespace: shop, hostname: far.example.com }
"#;

    fn answered(families: &[Family], name: &str) -> MeshAnswer {
        let mesh = local::parse(MESH).unwrap().into_snapshot();
        let client = mesh.workload_by_uid(&Uid("client".into())).unwrap();
        in_mesh(&mesh, "cluster.local", client, families, name, 7)
    }

    #[test]
    fn a_name_means_what_the_pod_is_told_by_dns() {
        for (name, address) in [
            ("web.shop.svc.cluster.local", "10.1.0.1"),
            ("web", "10.1.0.1"),
            ("web.bank", "10.1.0.2"),
            ("web.bank.svc", "10.1.0.2"),
            ("web.bank.shop.svc.cluster.local", "10.1.0.2"),
            ("db", "10.0.0.2"),
            ("db-0.db", "10.0.0.2"),
            ("six", "fd01::6"),
        ] {
            let found = answered(&[Family::V4, Family::V6], name);
            assert_eq!(
                found,
                MeshAnswer::Address(address.parse().unwrap()),
                "{name}"
            );
        }
    }

    #[test]
    fn only_what_the_pod_can_call_counts() {
        let v6 = "fd01::1".parse().unwrap();
        assert_eq!(answered(&[Family::V6], "web"), MeshAnswer::Address(v6));
        assert_eq!(answered(&[Family::V4], "six"), MeshAnswer::NoAddress);
    }

    #[test]
    fn others_are_for_the_resolver() {
        for name in [
            "www.example.com",
            "far.example.com",
            "unknown-name",
            "web.nowhere",
        ] {
            assert_eq!(
                answered(&[Family::V4, Family::V6], name),
                MeshAnswer::NotInMesh,
                "{name}"
            );
        }
    }
}
