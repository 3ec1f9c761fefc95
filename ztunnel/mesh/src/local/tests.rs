//! Files that load, and what is said about those that do not.

use super::*;
use crate::{
    GatewayDestination, HealthPolicy, HealthStatus, IpFamilies, LoadBalancingMode, NetworkMode,
    RoutingScope, StringMatch, TunnelProtocol, WorkloadType,
};

/// What Istio's ztunnel reads, in the shapes that its users write.
const PEER: &str = r#"
# comments stay where they are
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1"]
  protocol: HBONE
  node: local
  network: ""
  services:
    "default/example.com":
      80: 8080
    "default/example2.com":
      80: 8080
- uid: cluster1//v1/Pod/default/local-tcp
  name: local-tcp
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.2"]
  protocol: TCP
  node: local
  network: ""
policies:
  - action: Allow
    rules:
    - - - notDestinationPorts:
          - 9999
    name: deny-9999
    namespace: default
    scope: Namespace
services:
- name: local
  namespace: default
  hostname: example.com
  vips:
    - /127.10.0.1
  ports:
    80: 8080
  subjectAltNames:
   - spiffe://cluster.local/ns/default/sa/local
- name: remote
  namespace: default
  hostname: example2.com
  vips:
    - remote/127.10.0.2
  ports:
    80: 8080
"#;

#[test]
fn a_file_of_istios_ztunnel_loads_unchanged() {
    let mesh = parse(PEER).unwrap();
    assert_eq!(
        (
            mesh.workloads.len(),
            mesh.services.len(),
            mesh.policies.len()
        ),
        (2, 2, 1)
    );
    assert_eq!(mesh.warnings, Vec::<String>::new());
    let [local, plain] = &mesh.workloads[..] else {
        panic!("two workloads")
    };
    assert_eq!(
        local.identity.as_str(),
        "spiffe://cluster.local/ns/default/sa/default"
    );
    assert_eq!(local.protocol, TunnelProtocol::Hbone);
    assert_eq!(plain.protocol, TunnelProtocol::Tcp);
    assert_eq!(local.services.first().unwrap().1.get(&80), Some(&8080));
    assert_eq!(
        mesh.services
            .last()
            .unwrap()
            .vips
            .first()
            .unwrap()
            .to_string(),
        "remote/127.10.0.2"
    );
    let snapshot = mesh.into_snapshot();
    let service = snapshot
        .service_by_vip("", "127.10.0.1".parse().unwrap())
        .unwrap();
    assert_eq!(snapshot.endpoints(&service.key()).len(), 1);
}

#[test]
fn every_field_of_a_workload_and_a_service() {
    let mesh = parse(
        r#"
workloads:
- { uid: u, name: w, namespace: n, trustDomain: td, serviceAccount: sa, workloadIps: ["::ffff:10.0.0.1", "fd00::1"],
    hostname: h, network: net, protocol: hbone, waypoint: { destination: net/10.9.9.9, hboneMtlsPort: 15009 },
    networkGateway: { destination: { hostname: { namespace: gw, hostname: gw.example } } },
    node: node-a, canonicalName: cn, canonicalRevision: v2, workloadType: cronjob, workloadName: cw, nativeTunnel: true,
    applicationTunnel: { protocol: PROXY, port: 9090 }, services: { n/s: { "80": 8080 } },
    authorizationPolicies: [n/p, n/p], status: UNHEALTHY, clusterId: c2, locality: { region: r, zone: z, subzone: s },
    networkMode: HOST_NETWORK, capacity: 3 }
services:
- { name: s, namespace: n, hostname: s, ports: { 80: 0 }, waypoint: { destination: { namespace: n, hostname: wp } },
    loadBalancing: { routingPreference: [REGION, zone], mode: FAILOVER, healthPolicy: ALLOW_ALL }, ipFamilies: IPv6 }
policies:
- { name: p, namespace: n, scope: WorkloadSelector, action: Deny, dryRun: true, rules: [] }
"#,
    )
    .unwrap();
    let workload = mesh.workloads.first().unwrap();
    assert_eq!(workload.identity.as_str(), "spiffe://td/ns/n/sa/sa");
    assert_eq!(
        workload.workload_ips.first().unwrap().to_string(),
        "10.0.0.1"
    );
    let waypoint = workload.waypoint.as_ref().unwrap();
    assert_eq!(
        (waypoint.destination.to_string(), waypoint.hbone_mtls_port),
        ("net/10.9.9.9".to_owned(), 15009)
    );
    let gateway = workload.network_gateway.as_ref().unwrap();
    assert!(
        matches!(&gateway.destination, GatewayDestination::Hostname(key) if key.to_string() == "gw/gw.example")
    );
    assert_eq!(gateway.hbone_mtls_port, 15008);
    assert_eq!(workload.workload_type, WorkloadType::CronJob);
    let tunnel = workload.application_tunnel.unwrap();
    assert_eq!((tunnel.proxy_protocol, tunnel.port), (true, Some(9090)));
    assert_eq!(workload.status, HealthStatus::Unhealthy);
    assert_eq!(workload.authorization_policies.len(), 1, "named twice");
    assert_eq!(workload.network_mode, NetworkMode::HostNetwork);
    assert_eq!((workload.capacity, &*workload.locality.zone), (3, "z"));
    let service = mesh.services.first().unwrap();
    let balancing = service.load_balancing.as_ref().unwrap();
    assert_eq!(
        balancing.routing_preferences,
        [RoutingScope::Region, RoutingScope::Zone]
    );
    assert_eq!(balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(balancing.health_policy, HealthPolicy::AllowAll);
    assert_eq!(service.ip_families, IpFamilies::Ipv6Only);
    assert!(mesh.policies.first().unwrap().dry_run);
    assert_eq!(mesh.warnings, Vec::<String>::new());
}

#[test]
fn every_kind_of_match_in_every_spelling() {
    let mesh = parse(
        r#"
policies:
- name: p
  scope: Global
  action: Deny
  rules:
  - - - namespaces: [{ exact: a }, { Prefix: b }, !Suffix c, { presence: {} }, Presence]
        notNamespaces: [{ presence: null }]
        principals: [{ exact: spiffe://td/ns/n/sa/s }, { prefix: td }]
        notPrincipals: [{ suffix: /sa/s }]
        serviceAccounts: [{ namespace: n, serviceAccount: s }, n/s]
        notServiceAccounts: [n/t]
        sourceIps: [10.0.0.0/8, 10.1.2.3]
        notSourceIps: ["fd00::/8"]
        destinationIps: ["::ffff:10.0.0.0/104"]
        notDestinationIps: []
        destinationPorts: [80]
        notDestinationPorts: [81]
"#,
    )
    .unwrap();
    let rule = mesh.policies.first().unwrap().rules.first().unwrap();
    let found = rule.first().unwrap().first().unwrap();
    let exact = |text: &str| StringMatch::Exact(text.into());
    assert_eq!(
        found.namespaces,
        [
            exact("a"),
            StringMatch::Prefix("b".into()),
            StringMatch::Suffix("c".into()),
            StringMatch::Presence,
            StringMatch::Presence
        ]
    );
    assert_eq!(found.principals.first().unwrap(), &exact("td/ns/n/sa/s"));
    assert_eq!(
        found.service_accounts.first(),
        found.service_accounts.last()
    );
    assert_eq!(found.source_ips.last().unwrap().to_string(), "10.1.2.3/32");
    assert_eq!(
        found.destination_ips.first().unwrap().to_string(),
        "10.0.0.0/8"
    );
}

/// A file, and its complaint.
const CASES: &[(&str, &str)] = &[
    (
        "workload: []",
        "workload: unknown field, did you mean \"workloads\"? (line 1)",
    ),
    (
        "workloads: [{ name: a }]",
        "workloads[0]: missing field `uid` (line 1)",
    ),
    (
        "workloads: [{ uid: '', name: a }]",
        "workloads[0].uid: must not be empty",
    ),
    (
        "workloads: [{ uid: a, name: a, workloadIp: 10.0.0.1 }]",
        "workloads[0].workloadIp: unknown field, did you mean \"workloadIps\"? (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, workloadIps: [10.0.0] }]",
        "workloads[0].workloadIps[0]: \"10.0.0\" is not an IP address (line 1)",
    ),
    (
        "workloads:\n- uid: a\n  name: a\n  protocol: HBON",
        "workloads[0].protocol: \"HBON\" is not one of TCP, HBONE (line 4)",
    ),
    (
        "workloads: [{ uid: a, name: a, serviceAccount: a/b }]",
        "workloads[0].serviceAccount: \"spiffe://cluster.local/ns/default/sa/a/b\" is not a workload identity: expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>",
    ),
    (
        "workloads: [{ uid: a, name: a, services: { b: { 80: 80 } } }]",
        "workloads[0].services.b: \"b\" is not namespace/hostname (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, services: { n/b: { 80: 0 } } }]",
        "workloads[0].services.n/b.80: invalid value: integer `0`, expected a port, 1 to 65535 (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, services: { n/b: { 70000: 80 } } }]",
        "workloads[0].services.n/b.70000: invalid value: integer `70000`, expected a port, 1 to 65535 (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, capacity: -1 }]",
        "workloads[0].capacity: invalid value: integer `-1`, expected u32 (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, status: Sick }]",
        "workloads[0].status: \"Sick\" is not one of Healthy, Unhealthy (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a, waypoint: { destination: x } }]",
        "workloads[0].waypoint.destination: expected \"network/address\", \"namespace/hostname\", {network, address} or {namespace, hostname} (line 1)",
    ),
    (
        "workloads: [{ uid: a, name: a }, { uid: a, name: b }]",
        "workloads[1].uid: \"a\" is already the uid of the workload at workloads[0]",
    ),
    (
        "workloads: [{ uid: a, name: a, workloadIps: [10.0.0.1] }, { uid: b, name: b, workloadIps: ['::ffff:10.0.0.1'] }]",
        "workloads[1].workloadIps[0]: 10.0.0.1 in network \"\" already belongs to workload a (workloads[0].workloadIps[0])",
    ),
    (
        "workloads: [{ uid: a, name: a, workloadIps: [10.0.0.1, 10.0.0.1] }]",
        "workloads[0].workloadIps[1]: 10.0.0.1 in network \"\" already belongs to workload a (workloads[0].workloadIps[0])",
    ),
    (
        "workloads: [{ uid: a, name: a, workloadIps: [10.0.0.1] }]\nservices: [{ name: s, hostname: s, vips: [/10.0.0.1] }]",
        "services[0].vips[0]: 10.0.0.1 in network \"\" already belongs to workload a (workloads[0].workloadIps[0])",
    ),
    (
        "services: [{ name: s, hostname: s, vips: [10.1.0.1] }]",
        "services[0].vips[0]: \"10.1.0.1\" is not network/address (\"/10.1.0.1\" in the default network) (line 1)",
    ),
    (
        "services: [{ name: s, hostname: s, vips: [net/10.1.0] }]",
        "services[0].vips[0]: \"net/10.1.0\" is not network/address (\"/10.1.0.1\" in the default network) (line 1)",
    ),
    (
        "services: [{ name: s, hostname: s, ports: { 0: 80 } }]",
        "services[0].ports.0: invalid value: integer `0`, expected a port, 1 to 65535 (line 1)",
    ),
    (
        "services: [{ name: s, hostname: s, ports: { 80: 65536 } }]",
        "services[0].ports.80: invalid value: integer `65536`, expected a port, 0 to 65535 (line 1)",
    ),
    (
        "services: [{ name: s, hostname: s }, { name: t, hostname: s }]",
        "services[1].hostname: \"default/s\" is already the key of the service at services[0]",
    ),
    (
        "services: [{ name: s, hostname: a/b }]",
        "services[0].hostname: \"a/b\" is not a host name",
    ),
    (
        "services: [{ name: s, hostname: s, loadBalancer: { mode: Fast } }]",
        "services[0].loadBalancer.mode: \"Fast\" is not one of Standard, Strict, Failover, Passthrough (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Everywhere, action: Deny }]",
        "policies[0].scope: \"Everywhere\" is not one of Global, Namespace, WorkloadSelector (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Audit }]",
        "policies[0].action: \"Audit\" is not one of Allow, Deny (line 1)",
    ),
    (
        "policies: [{ name: p, action: Deny }]",
        "policies[0]: missing field `scope` (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny }, { name: p, scope: Global, action: Deny }]",
        "policies[1].name: \"default/p\" is already the key of the policy at policies[0]",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny, rules: [[[{ ports: [80] }]]] }]",
        "policies[0].rules[0][0][0].ports: unknown field, expected one of namespaces, notNamespaces, principals, notPrincipals, serviceAccounts, notServiceAccounts, sourceIps, notSourceIps, destinationIps, notDestinationIps, destinationPorts, notDestinationPorts (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny, rules: [[[{ destinationPort: [80] }]]] }]",
        "policies[0].rules[0][0][0].destinationPort: unknown field, did you mean \"destinationPorts\"? (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny, rules: [[[{ principals: [x] }]]] }]",
        "policies[0].rules[0][0][0].principals[0]: expected {exact: …}, {prefix: …}, {suffix: …} or {presence: {}} (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny, rules: [[[{ sourceIps: [10.0.0.0/33] }]]] }]",
        "policies[0].rules[0][0][0].sourceIps[0]: \"10.0.0.0/33\" is not an address range such as 10.0.0.0/8 or an address (line 1)",
    ),
    (
        "policies: [{ name: p, scope: Global, action: Deny, rules: [{ principals: [] }] }]",
        "policies[0].rules[0]: invalid type: map, expected a sequence (line 1)",
    ),
    (
        "workloads: 3",
        "workloads: invalid type: integer `3`, expected a sequence (line 1)",
    ),
    (
        "workloads: [",
        "did not find expected node content (line 2)",
    ),
];

#[test]
fn invalid_files_and_their_error_messages() {
    let mut failures = String::new();
    for (text, complaint) in CASES {
        let found = parse(text).map_or_else(|error| error.to_string(), |_| "it loads".to_owned());
        if found != *complaint {
            failures.push_str(&format!("    ({text:?}, {found:?}),\n"));
        }
    }
    assert!(
        failures.is_empty(),
        "these complaints are others:\n{failures}"
    );
}

#[test]
fn pods_on_their_nodes_network_share_its_address() {
    let shared = "workloads: [{ uid: a, name: a, workloadIps: [10.0.0.1], networkMode: HostNetwork }, \
                  { uid: b, name: b, workloadIps: [10.0.0.1], networkMode: HostNetwork }]";
    assert!(parse(shared).is_ok());
    assert!(parse(&shared.replacen(", networkMode: HostNetwork", "", 1)).is_err());
}

#[test]
fn the_same_address_in_two_networks_is_two_addresses() {
    let text = "workloads: [{ uid: a, name: a, workloadIps: [10.0.0.1], network: x }, \
                { uid: b, name: b, workloadIps: [10.0.0.1], network: y }]";
    let snapshot = parse(text).unwrap().into_snapshot();
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(
        &*snapshot.workload_by_address("x", address).unwrap().name,
        "a"
    );
    assert_eq!(
        &*snapshot.workload_by_address("y", address).unwrap().name,
        "b"
    );
    assert!(snapshot.workload_by_address("", address).is_none());
}

#[test]
fn probably_unintended_settings_are_warned_about() {
    let text = "workloads: [{ uid: a, name: a, authorizationPolicies: [n/p], services: { n/s: { 80: 80 } } }]\n\
                services: [{ name: t, hostname: t, subjectAltNames: [x] }]";
    assert_eq!(
        parse(text).unwrap().warnings,
        [
            "workload a: authorizationPolicies lists \"n/p\", and there is no such policy with the \
             scope WorkloadSelector: it is not enforced",
            "workload a: services names \"n/s\", and there is no such service",
            "service default/t: subjectAltNames holds \"x\", which is no workload identity: no backend \
             can present it"
        ]
    );
}

#[test]
fn texts_are_shared() {
    let mesh = parse(PEER).unwrap();
    let [one, two] = &mesh.workloads[..] else {
        panic!("two workloads")
    };
    assert!(std::sync::Arc::ptr_eq(&one.namespace, &two.namespace));
    assert!(std::sync::Arc::ptr_eq(&one.node, &two.node));
}
