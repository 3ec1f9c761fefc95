//! Workloads, services and policies, with the names and the JSON types that `istioctl ztunnel-config`
//! reads (`istioctl/pkg/writer/ztunnel/configdump/api.go` in istio/istio). A single value of another
//! type makes the command show nothing. It ignores unknown keys; the keys of this proxy are at the end
//! of each object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use mesh::{
    Action, ApplicationTunnel, Endpoint, GatewayAddress, HealthPolicy, HealthStatus, HttpMatch,
    Identity, IpFamilies, LoadBalancing, LoadBalancingMode, Locality, Match, NetworkAddress,
    NetworkMode, Policy, PolicyScope, Ports, RoutingScope, ServiceAccountMatch, ServiceEntry,
    Snapshot, StringMatch, TunnelProtocol, Visibility, WeightedWaypoint, Workload, WorkloadType,
};

/// The key `workloads`.
pub(super) fn workloads(mesh: &Snapshot) -> Value {
    let all = mesh.workloads().map(|object| WorkloadView::of(object));
    json!(all.collect::<Vec<_>>())
}

/// The key `services`.
pub(super) fn services(mesh: &Snapshot) -> Value {
    let all = mesh.entries().map(|object| ServiceView::of(object));
    json!(all.collect::<Vec<_>>())
}

/// The key `policies`.
pub(super) fn policies(mesh: &Snapshot) -> Value {
    let all = mesh.policies().map(|object| PolicyView::of(object));
    json!(all.collect::<Vec<_>>())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadView<'a> {
    uid: &'a str,
    workload_ips: &'a [IpAddr],
    waypoint: Option<GatewayView>,
    network_gateway: Option<GatewayView>,
    protocol: TunnelProtocol,
    name: &'a str,
    namespace: &'a str,
    service_account: &'a str,
    workload_name: &'a str,
    workload_type: WorkloadType,
    canonical_name: &'a str,
    canonical_revision: &'a str,
    cluster_id: &'a str,
    trust_domain: &'a str,
    locality: &'a Locality,
    node: &'a str,
    network: &'a str,
    status: HealthStatus,
    hostname: &'a str,
    capacity: u32,
    application_tunnel: Option<ApplicationTunnelView>,
    authorization_policies: Vec<&'a str>,
    // Keys of this proxy.
    identity: &'a Identity,
    native_tunnel: bool,
    network_mode: NetworkMode,
    /// By `namespace/hostname`: service port to target port.
    services: BTreeMap<String, &'a Ports>,
}

impl<'a> WorkloadView<'a> {
    fn of(workload: &'a Workload) -> Self {
        let services = workload.services.iter();
        let policies = workload.authorization_policies.iter();
        Self {
            uid: &workload.uid.0,
            workload_ips: &workload.workload_ips,
            waypoint: workload.waypoint.as_deref().map(GatewayView::of),
            network_gateway: workload.network_gateway.as_deref().map(GatewayView::of),
            protocol: workload.protocol,
            name: &workload.name,
            namespace: &workload.namespace,
            service_account: &workload.service_account,
            workload_name: &workload.workload_name,
            workload_type: workload.workload_type,
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            cluster_id: &workload.cluster_id,
            trust_domain: &workload.trust_domain,
            locality: &workload.locality,
            node: &workload.node,
            network: &workload.network,
            status: workload.status,
            hostname: &workload.hostname,
            capacity: workload.capacity,
            application_tunnel: workload.application_tunnel.map(ApplicationTunnelView::of),
            authorization_policies: policies.map(|policy| &**policy).collect(),
            identity: &workload.identity,
            native_tunnel: workload.native_tunnel,
            network_mode: workload.network_mode,
            services: services
                .map(|(key, ports)| (key.to_string(), &**ports))
                .collect(),
        }
    }
}

/// A waypoint or gateway; its destination is `namespace/hostname` or `network/address`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayView {
    destination: String,
    // Keys of this proxy.
    hbone_mtls_port: u16,
}

impl GatewayView {
    fn of(gateway: &GatewayAddress) -> Self {
        Self {
            destination: gateway.destination.to_string(),
            hbone_mtls_port: gateway.hbone_mtls_port,
        }
    }
}

#[derive(Serialize)]
struct ApplicationTunnelView {
    protocol: &'static str,
    port: Option<u16>,
}

impl ApplicationTunnelView {
    fn of(tunnel: ApplicationTunnel) -> Self {
        Self {
            protocol: if tunnel.proxy_protocol {
                "PROXY"
            } else {
                "NONE"
            },
            port: tunnel.port,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceView<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    /// `network/address`.
    vips: Vec<String>,
    ports: &'a Ports,
    load_balancer: Option<LoadBalancerView<'a>>,
    waypoint: Option<GatewayView>,
    /// By the workload's uid.
    endpoints: BTreeMap<&'a str, EndpointView<'a>>,
    subject_alt_names: Vec<&'a str>,
    ip_families: &'static str,
    // Keys of this proxy.
    /// `network/address/length`.
    ranges: Vec<String>,
    weighted_waypoints: Vec<WeightedWaypointView>,
    ingress_use_waypoint: bool,
    canonical: bool,
    visibility: Visibility,
}

impl<'a> ServiceView<'a> {
    fn of(entry: &'a ServiceEntry) -> Self {
        let service = &*entry.service;
        let names = service.subject_alt_names.iter();
        let weighted = service.weighted_waypoints.iter();
        let key = service.key().to_string();
        let endpoint = |endpoint: &'a Endpoint| {
            let view = EndpointView::of(endpoint, key.clone());
            (view.workload_uid, view)
        };
        Self {
            name: &service.name,
            namespace: &service.namespace,
            hostname: &service.hostname,
            vips: service.vips.iter().map(ToString::to_string).collect(),
            ports: &service.ports,
            load_balancer: service.load_balancing.as_ref().map(LoadBalancerView::of),
            waypoint: service.waypoint.as_ref().map(GatewayView::of),
            endpoints: entry.endpoints.iter().map(endpoint).collect(),
            subject_alt_names: names.map(|name| &**name).collect(),
            ip_families: match service.ip_families {
                IpFamilies::Automatic => "Automatic",
                IpFamilies::Ipv4Only => "IPv4",
                IpFamilies::Ipv6Only => "IPv6",
                IpFamilies::Dual => "Dual",
            },
            ranges: service
                .ranges
                .iter()
                .map(|range| format!("{}/{}", range.network, range.range))
                .collect(),
            weighted_waypoints: weighted.map(WeightedWaypointView::of).collect(),
            ingress_use_waypoint: service.ingress_use_waypoint,
            canonical: service.canonical,
            visibility: service.visibility,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerView<'a> {
    mode: LoadBalancingMode,
    routing_preferences: &'a [RoutingScope],
    health_policy: HealthPolicy,
}

impl<'a> LoadBalancerView<'a> {
    fn of(balancing: &'a LoadBalancing) -> Self {
        Self {
            mode: balancing.mode,
            routing_preferences: &balancing.routing_preferences,
            health_policy: balancing.health_policy,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WeightedWaypointView {
    #[serde(flatten)]
    waypoint: GatewayView,
    weight: u32,
}

impl WeightedWaypointView {
    fn of(weighted: &WeightedWaypoint) -> Self {
        Self {
            waypoint: GatewayView::of(&weighted.destination),
            weight: weighted.weight,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointView<'a> {
    workload_uid: &'a str,
    /// `namespace/hostname`.
    service: String,
    /// `network/address` of its first address; empty if it has only a hostname.
    address: String,
    port: &'a Ports,
    // Keys of this proxy.
    status: HealthStatus,
}

impl<'a> EndpointView<'a> {
    fn of(endpoint: &'a Endpoint, service: String) -> Self {
        let workload = &*endpoint.workload;
        let address = workload
            .workload_ips
            .first()
            .map(|&address| NetworkAddress {
                network: workload.network.clone(),
                address,
            });
        Self {
            workload_uid: &workload.uid.0,
            service,
            address: address.map_or_else(String::new, |address| address.to_string()),
            port: &endpoint.ports,
            status: workload.status,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyView<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: PolicyScope,
    action: Action,
    rules: Vec<Vec<Vec<MatchView<'a>>>>,
    // Keys of this proxy.
    dry_run: bool,
    unseen: bool,
}

impl<'a> PolicyView<'a> {
    fn of(policy: &'a Policy) -> Self {
        let clause = |clause: &'a Vec<Match>| clause.iter().map(MatchView::of).collect();
        let rules = policy.rules.iter();
        Self {
            name: &policy.name,
            namespace: &policy.namespace,
            scope: policy.scope,
            action: policy.action,
            rules: rules
                .map(|rule| rule.iter().map(clause).collect())
                .collect(),
            dry_run: policy.dry_run,
            unseen: policy.has_unknown_conditions,
        }
    }
}

/// Networks have the form `address/length`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchView<'a> {
    namespaces: Vec<StringMatchView<'a>>,
    not_namespaces: Vec<StringMatchView<'a>>,
    principals: Vec<StringMatchView<'a>>,
    not_principals: Vec<StringMatchView<'a>>,
    service_accounts: &'a [ServiceAccountMatch],
    not_service_accounts: &'a [ServiceAccountMatch],
    source_ips: &'a [IpNet],
    not_source_ips: &'a [IpNet],
    destination_ips: &'a [IpNet],
    not_destination_ips: &'a [IpNet],
    destination_ports: &'a [u16],
    not_destination_ports: &'a [u16],
    // A key of this proxy: the conditions on requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<HttpMatchView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HttpMatchView<'a> {
    methods: Vec<StringMatchView<'a>>,
    not_methods: Vec<StringMatchView<'a>>,
    hosts: Vec<StringMatchView<'a>>,
    not_hosts: Vec<StringMatchView<'a>>,
    paths: Vec<StringMatchView<'a>>,
    not_paths: Vec<StringMatchView<'a>>,
}

impl<'a> HttpMatchView<'a> {
    fn of(http: &'a HttpMatch) -> Self {
        Self {
            methods: texts(&http.methods),
            not_methods: texts(&http.not_methods),
            hosts: texts(&http.hosts),
            not_hosts: texts(&http.not_hosts),
            paths: texts(&http.paths),
            not_paths: texts(&http.not_paths),
        }
    }
}

fn texts(list: &[StringMatch]) -> Vec<StringMatchView<'_>> {
    list.iter().map(StringMatchView::of).collect()
}

impl<'a> MatchView<'a> {
    fn of(each: &'a Match) -> Self {
        Self {
            namespaces: texts(&each.namespaces),
            not_namespaces: texts(&each.not_namespaces),
            principals: texts(&each.principals),
            not_principals: texts(&each.not_principals),
            service_accounts: &each.service_accounts,
            not_service_accounts: &each.not_service_accounts,
            source_ips: &each.source_ips,
            not_source_ips: &each.not_source_ips,
            destination_ips: &each.destination_ips,
            not_destination_ips: &each.not_destination_ips,
            destination_ports: &each.destination_ports,
            not_destination_ports: &each.not_destination_ports,
            http: each.http.as_deref().map(HttpMatchView::of),
        }
    }
}

/// An object with one of these capitalized keys.
#[derive(Serialize)]
enum StringMatchView<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence {},
}

impl<'a> StringMatchView<'a> {
    fn of(each: &'a StringMatch) -> Self {
        match each {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence {},
        }
    }
}
