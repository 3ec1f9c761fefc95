//! Decodes `istio.workload.Workload`.

use std::sync::Arc;

use super::fields::{
    FieldError, gateway, ip, or_default, port, port_or_zero, service_key, truncated,
};
use api::istio::workload as wire;
use mesh::{
    ApplicationTunnel, Backed, HealthStatus, Interner, Locality, NetworkMode, Ports,
    TunnelProtocol, Uid, Workload, WorkloadType,
};

pub(super) fn build(
    workload: &wire::Workload,
    trust_domain: &str,
    texts: &mut Interner,
) -> Result<Workload, FieldError> {
    if workload.uid.is_empty() {
        return Err(FieldError::new("must not be empty").at("uid"));
    }
    let namespace = or_default(&workload.namespace, "default");
    let service_account = or_default(&workload.service_account, "default");
    let trust_domain = or_default(&workload.trust_domain, trust_domain);
    let identity = texts
        .identity(trust_domain, namespace, service_account)
        .map_err(|error| FieldError::new(error).at("service_account"))?;
    let mut workload_ips = Vec::with_capacity(workload.addresses.len());
    for (at, bytes) in workload.addresses.iter().enumerate() {
        let address = ip(bytes).map_err(|error| error.at(format_args!("addresses[{at}]")))?;
        workload_ips.push(address);
    }
    let mut gateway = |wire: &Option<wire::GatewayAddress>, field: &str| {
        let decoded = wire.as_ref().map(|wire| gateway(wire, texts));
        let decoded = decoded.transpose().map_err(|error| error.at(field))?;
        Ok(decoded.map(|gateway| texts.gateway(gateway)))
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
        // The wrapper type distinguishes an unset capacity (1) from a capacity of 0, which means that
        // the workload is never chosen.
        capacity: workload.capacity.unwrap_or(1),
    })
}

/// Plain TCP only for the values that mean it. A workload with a sidecar (`LEGACY_ISTIO_MTLS`)
/// accepts plain TCP from a node proxy, as it does from Istio's.
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
) -> Result<Option<ApplicationTunnel>, FieldError> {
    use wire::application_tunnel::Protocol;
    let Some(tunnel) = tunnel else {
        return Ok(None);
    };
    let port = match tunnel.port {
        0 => None,
        number => Some(port(number).map_err(|error| error.at("application_tunnel.port"))?),
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

/// The services in the order of their keys: the map has no order, and equal workloads have to compare
/// as equal.
fn services(workload: &wire::Workload, texts: &mut Interner) -> Result<Arc<Backed>, FieldError> {
    let mut services = Vec::with_capacity(workload.services.len());
    for (key, ports) in &workload.services {
        let at_key = |error: FieldError| error.at(format_args!("services[{:?}]", truncated(key)));
        let (namespace, hostname) = key
            .split_once('/')
            .ok_or_else(|| at_key(FieldError::new("the key is not namespace/hostname")))?;
        let service = service_key(namespace, hostname, texts).map_err(at_key)?;
        let ports = target_ports(&ports.ports).map_err(at_key)?;
        services.push((service, texts.ports(ports)));
    }
    services.sort();
    Ok(texts.services(services))
}

/// The target ports of a service of the workload. A target port of 0 is omitted.
fn target_ports(ports: &[wire::Port]) -> Result<Ports, FieldError> {
    let mut decoded = Ports::new();
    for (at, each) in ports.iter().enumerate() {
        let at_index = |error: FieldError| error.at(format_args!("ports[{at}]"));
        let from = port(each.service_port).map_err(|error| at_index(error.at("service_port")))?;
        let to =
            port_or_zero(each.target_port).map_err(|error| at_index(error.at("target_port")))?;
        if to != 0 {
            decoded.insert(from, to);
        }
    }
    Ok(decoded)
}

fn locality(locality: Option<&wire::Locality>, texts: &mut Interner) -> Arc<Locality> {
    let locality = locality.map_or_else(Locality::default, |locality| Locality {
        region: texts.get(&locality.region),
        zone: texts.get(&locality.zone),
        subzone: texts.get(&locality.subzone),
    });
    texts.locality(locality)
}
