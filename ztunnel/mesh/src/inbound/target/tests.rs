//! What peers may ask a pod for, by example.

use super::*;
use crate::{Uid, local};

const MESH: &str = r#"
workloads:
- { uid: pod, name: pod, serviceAccount: pod, workloadIps: ["10.0.0.2", "fd00::2"], protocol: HBONE,
    waypoint: { destination: default/wp },
    networkGateway: { destination: "remote/10.9.0.1" },
    services: { default/s.example: { 80: 8080 }, other/s.example: { 80: 7070 }, other/t.example: {}, default/named: {}, default/gone: {} } }
- { uid: sandwich, name: sandwich, workloadIps: ["10.0.0.3"], protocol: HBONE, services: { default/wp2: {} } }
- { uid: told, name: told, workloadIps: ["10.0.0.4"], protocol: HBONE, applicationTunnel: { protocol: PROXY, port: 15088 } }
- { uid: moved, name: moved, workloadIps: ["10.0.0.5"], protocol: HBONE, applicationTunnel: { port: 9000 } }
- { uid: trap, name: trap, workloadIps: ["10.0.0.6"], protocol: HBONE, applicationTunnel: { port: 15001 } }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.0.9"], protocol: HBONE, services: { default/wp: {} } }
- { uid: gw, name: gw, serviceAccount: gw, workloadIps: ["10.9.0.1"], network: remote, protocol: HBONE }
- { uid: canary, name: canary, serviceAccount: canary, workloadIps: ["10.0.0.10"], protocol: HBONE }
- { uid: guarded, name: guarded, workloadIps: ["10.0.0.11"], protocol: HBONE, waypoint: { destination: "/10.0.0.3" } }
services:
- { name: s, hostname: s.example, vips: ["/10.1.0.1", "/fd01::1"], ports: { 80: 80, 81: 8181 } }
- { name: s, namespace: other, hostname: s.example, vips: ["/10.1.0.2"], ports: { 80: 80 } }
- { name: t, namespace: other, hostname: t.example, vips: ["remote/10.1.0.3"], ports: { 80: 8000 }, waypoint: { destination: "/10.0.0.10" } }
- { name: named, hostname: named, vips: ["/10.1.0.4"], ports: { 80: 0 } }
- { name: wp, hostname: wp, vips: ["/10.1.0.9"], ports: { 15008: 15008 } }
- { name: wp2, hostname: wp2, vips: ["/10.1.0.10"], ports: { 15008: 15008 } }
- { name: behind, hostname: behind, vips: ["/10.1.0.11"], ports: { 80: 80 }, waypoint: { destination: default/wp2 } }
- { name: shared, hostname: shared, vips: ["/10.1.0.12"], ports: { 80: 80 },
    weightedWaypoints: [{ destination: { destination: default/wp }, weight: 1 }, { destination: { destination: default/wp2 }, weight: 0 }] }
"#;

fn endpoint(uid: &str, authority: &str) -> String {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let workload = mesh.workload_by_uid(&Uid(uid.into())).unwrap();
    let endpoint = LocalEndpoint {
        workload,
        addresses: &workload.workload_ips,
        at: workload.workload_ips[0],
    };
    match target(&authority.parse().unwrap(), endpoint, &mesh) {
        Err(error) => error.to_string(),
        Ok(found) => {
            let to = delivery_address(workload, found.destination, false);
            let service = found.service.map(|service| service.key().to_string());
            let service = service.map(|key| format!(" of {key}")).unwrap_or_default();
            format!(
                "{} at {to} told {}{service}",
                found.destination, found.dialled
            )
        }
    }
}

/// The pod, what a peer asks it for, and the answer.
const ASKED: &[(&str, &str, &str)] = &[
    (
        "pod",
        "10.0.0.2:80",
        "10.0.0.2:80 at 10.0.0.2:80 told 10.0.0.2:80",
    ),
    (
        "pod",
        "[fd00::2]:80",
        "[fd00::2]:80 at [fd00::2]:80 told [fd00::2]:80",
    ),
    // By name: the service of the own namespace; its own port goes before the service's.
    (
        "pod",
        "s.example:80",
        "10.0.0.2:8080 at 10.0.0.2:8080 told 10.1.0.1:80 of default/s.example",
    ),
    (
        "pod",
        "S.Example:81",
        "10.0.0.2:8181 at 10.0.0.2:8181 told 10.1.0.1:81 of default/s.example",
    ),
    // No address of this service is known in the pod's network.
    (
        "pod",
        "t.example:80",
        "10.0.0.2:8000 at 10.0.0.2:8000 told 10.0.0.2:80 of other/t.example",
    ),
    (
        "pod",
        "named:80",
        "CONNECT named:80: neither the service nor workload pod has a target port for it",
    ),
    (
        "pod",
        "gone:80",
        "CONNECT gone:80: workload pod does not back a service with that host name",
    ),
    (
        "pod",
        "behind:80",
        "CONNECT behind:80: workload pod does not back a service with that host name",
    ),
    (
        "pod",
        "10.0.0.3:80",
        "CONNECT 10.0.0.3:80 does not lead to this pod, whose addresses are [10.0.0.2, fd00::2]",
    ),
    (
        "pod",
        "10.1.0.1:80",
        "CONNECT 10.1.0.1:80 does not lead to this pod, whose addresses are [10.0.0.2, fd00::2]",
    ),
    (
        "pod",
        "10.0.0.2:15006",
        "10.0.0.2:15006 is a port of the proxy, where no application is reachable",
    ),
    (
        "pod",
        "10.0.0.2:15008",
        "10.0.0.2:15008 is a port of the proxy, where no application is reachable",
    ),
    // A waypoint that this proxy serves is asked for what it stands before.
    (
        "sandwich",
        "10.1.0.11:80",
        "10.0.0.3:80 at 10.0.0.3:80 told 10.1.0.11:80",
    ),
    (
        "sandwich",
        "10.1.0.12:80",
        "10.0.0.3:80 at 10.0.0.3:80 told 10.1.0.12:80",
    ),
    (
        "sandwich",
        "10.0.0.11:80",
        "10.0.0.3:80 at 10.0.0.3:80 told 10.0.0.11:80",
    ),
    (
        "sandwich",
        "10.1.0.1:80",
        "CONNECT 10.1.0.1:80 does not lead to this pod, whose addresses are [10.0.0.3]",
    ),
    (
        "sandwich",
        "192.0.2.1:80",
        "CONNECT 192.0.2.1:80 does not lead to this pod, whose addresses are [10.0.0.3]",
    ),
    // One that is told in a PROXY header judges for itself.
    (
        "told",
        "10.1.0.1:80",
        "10.0.0.4:80 at 10.0.0.4:15088 told 10.1.0.1:80",
    ),
    (
        "told",
        "192.0.2.1:80",
        "10.0.0.4:80 at 10.0.0.4:15088 told 192.0.2.1:80",
    ),
    (
        "moved",
        "10.0.0.5:80",
        "10.0.0.5:80 at 10.0.0.5:9000 told 10.0.0.5:80",
    ),
    (
        "moved",
        "10.1.0.1:80",
        "CONNECT 10.1.0.1:80 does not lead to this pod, whose addresses are [10.0.0.5]",
    ),
    (
        "trap",
        "10.0.0.6:80",
        "10.0.0.6:80 is a port of the proxy, where no application is reachable",
    ),
];

#[test]
fn tunnels_that_lead_to_this_pod() {
    for (uid, authority, expected) in ASKED {
        assert_eq!(endpoint(uid, authority), *expected, "{uid} {authority}");
    }
}

#[test]
fn peers_that_may_report_their_client() {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    for (uid, account, expected) in [
        // Its own waypoint, that of a service it backs, the gateway of its network.
        ("pod", "wp", true),
        ("pod", "canary", true),
        ("pod", "gw", true),
        ("pod", "pod", false),
        ("pod", "default", false),
        ("sandwich", "wp", false),
    ] {
        let workload = mesh.workload_by_uid(&Uid(uid.into())).unwrap();
        let peer = Identity::new("cluster.local", "default", account).unwrap();
        let found = may_report_client(&peer, workload, &mesh);
        assert_eq!(found, expected, "{account} for {uid}");
    }
    let workload = mesh.workload_by_uid(&Uid("pod".into())).unwrap();
    let elsewhere = Identity::new("other.domain", "default", "wp").unwrap();
    assert!(!may_report_client(&elsewhere, workload, &mesh));
}

#[test]
fn connections_with_a_proxy_header_are_delivered_on_loopback() {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let to = |uid: &str, destination: &str, on_loopback| {
        let workload = mesh.workload_by_uid(&Uid(uid.into())).unwrap();
        delivery_address(workload, destination.parse().unwrap(), on_loopback).to_string()
    };
    assert_eq!(to("told", "10.0.0.4:80", true), "127.0.0.1:15088");
    assert_eq!(to("told", "[fd00::4]:80", true), "[::1]:15088");
    assert_eq!(to("told", "10.0.0.4:80", false), "10.0.0.4:15088");
    // Nobody tells these who calls, so they are where they always were.
    assert_eq!(to("moved", "10.0.0.5:80", true), "10.0.0.5:9000");
    assert_eq!(to("pod", "10.0.0.2:80", true), "10.0.0.2:80");
}
