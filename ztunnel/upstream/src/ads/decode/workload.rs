//! `istio.workload.Workload`.

use std::sync::Arc;

use super::fields::{BadField, gateway, ip, or, port, port_or_zero, service_key, shown};
use api::istio::workload as wire;
use mesh::{
    ApplicationTunnel, Backed, HealthStatus, Interner, Locality, NetworkMode, Ports,
    TunnelProtocol, Uid, Workload, WorkloadType,
};

pub(super) fn build(
    workload: &wire::Workload,
    trust_domain: &str,
    texts: &mut Interner,
) -> Result<Workload, BadField> {
    if workload.uid.is_empty() {
        return Err(BadField::new("must not be empty").at("uid"));
    }
    let namespace = or(&workload.namespace, "default");
    let service_account = or(&workload.service_account, "default");
    let trust_domain = or(&workload.trust_domain, trust_domain);
    let identity = texts
        .identity(trust_domain, namespace, service_account)
        .map_err(|error| BadField::new(error).at("service_account"))?;
    let mut workload_ips = Vec::with_capacity(workload.addresses.len());
    for (at, bytes) in workload.addresses.iter().enumerate() {
        let address = ip(bytes).map_err(|bad| bad.at(format_args!("addresses[{at}]")))?;
        workload_ips.push(address);
    }
    let mut gateway = |wire: &Option<wire::GatewayAddress>, field: &str| {
        let read = wire.as_ref().map(|wire| gateway(wire, texts));
        let read = read.transpose().map_err(|bad| bad.at(field))?;
        Ok(read.map(|gateway| texts.gateway(gateway)))
    };
    let waypoint = gateway(&workload.waypoint, "waypoint")?;
    let network_gateway = gateway(&workload.network_gateway, "network_gateway")?;
    Ok(Workload {
        uid: Uid(workload.uid.as_str().into()),
        name: workload.name.as_str().into(),
        namespace: texts.get(namespace),
        trust_domain: texts.get(trust_domain),
        service_account: texts.get(service_account),
        identity,
        workload_ips: workload_ips.into(),
        hostname: texts.get(&workload.hostname),
        network: texts.get(&workload.network),
        protocol: protocol(workload.tunnel_protocol),
        waypoint,
        network_gateway,
        node: texts.get(&workload.node),
        canonical_name: texts.get(&workload.canonical_name),
        canonical_revision: texts.get(&workload.canonical_revision),
        workload_type: workload_type(workload.workload_type),
        workload_name: texts.get(&workload.workload_name),
        native_tunnel: workload.native_tunnel,
        application_tunnel: application_tunnel(workload.application_tunnel.as_ref())?,
        services: services(workload, texts)?,
        authorization_policies: texts
            .policies(workload.authorization_policies.iter().map(String::as_str)),
        status: status(workload.status),
        cluster_id: texts.get(&workload.cluster_id),
        locality: locality(workload.locality.as_ref(), texts),
        network_mode: network_mode(workload.network_mode),
        // A wrapper, so that "not said" (1) and "never choose it" (0) differ.
        capacity: workload.capacity.unwrap_or(1),
    })
}

/// Plain TCP only where the control plane says so. A workload with a sidecar
/// (`LEGACY_ISTIO_MTLS`) takes plain TCP from a node proxy, as it does from Istio's own.
fn protocol(number: i32) -> TunnelProtocol {
    match wire::TunnelProtocol::try_from(number) {
        Ok(wire::TunnelProtocol::None | wire::TunnelProtocol::LegacyIstioMtls) => {
            TunnelProtocol::Tcp
        }
        Ok(wire::TunnelProtocol::Hbone) | Err(_) => TunnelProtocol::Hbone,
    }
}

fn workload_type(number: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(number) {
        Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
    }
}

fn status(number: i32) -> HealthStatus {
    match wire::WorkloadStatus::try_from(number) {
        Ok(wire::WorkloadStatus::Healthy) => HealthStatus::Healthy,
        Ok(wire::WorkloadStatus::Unhealthy) | Err(_) => HealthStatus::Unhealthy,
    }
}

fn network_mode(number: i32) -> NetworkMode {
    match wire::NetworkMode::try_from(number) {
        Ok(wire::NetworkMode::Standard) | Err(_) => NetworkMode::Standard,
        Ok(wire::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
    }
}

fn application_tunnel(
    tunnel: Option<&wire::ApplicationTunnel>,
) -> Result<Option<ApplicationTunnel>, BadField> {
    use wire::application_tunnel::Protocol;
    let Some(tunnel) = tunnel else {
        return Ok(None);
    };
    let port = match tunnel.port {
        0 => None,
        number => Some(port(number).map_err(|bad| bad.at("application_tunnel.port"))?),
    };
    let proxy_protocol = match Protocol::try_from(tunnel.protocol) {
        Ok(Protocol::None) => false,
        Ok(Protocol::Proxy) | Err(_) => true,
    };
    Ok(Some(ApplicationTunnel {
        proxy_protocol,
        port,
    }))
}

/// In the order of their keys: a map has none of its own, and equal workloads should be equal.
fn services(workload: &wire::Workload, texts: &mut Interner) -> Result<Arc<Backed>, BadField> {
    let mut services = Vec::with_capacity(workload.services.len());
    for (key, ports) in &workload.services {
        let at = |bad: BadField| bad.at(format_args!("services[{:?}]", shown(key)));
        let (namespace, hostname) = key
            .split_once('/')
            .ok_or_else(|| at(BadField::new("the key is not namespace/hostname")))?;
        let service = service_key(namespace, hostname, texts).map_err(at)?;
        let ports = target_ports(&ports.ports).map_err(at)?;
        services.push((service, texts.ports(ports)));
    }
    services.sort();
    Ok(texts.services(services))
}

/// A workload that names 0 as its target names none.
fn target_ports(ports: &[wire::Port]) -> Result<Ports, BadField> {
    let mut read = Ports::new();
    for (at, each) in ports.iter().enumerate() {
        let bad = |bad: BadField| bad.at(format_args!("ports[{at}]"));
        let from = port(each.service_port).map_err(|wrong| bad(wrong.at("service_port")))?;
        let to = port_or_zero(each.target_port).map_err(|wrong| bad(wrong.at("target_port")))?;
        if to != 0 {
            read.insert(from, to);
        }
    }
    Ok(read)
}

fn locality(locality: Option<&wire::Locality>, texts: &mut Interner) -> Arc<Locality> {
    let locality = locality.map_or_else(Locality::default, |locality| Locality {
        region: texts.get(&locality.region),
        zone: texts.get(&locality.zone),
        subzone: texts.get(&locality.subzone),
    });
    texts.locality(locality)
}
