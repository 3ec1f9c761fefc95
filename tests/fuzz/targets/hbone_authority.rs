//! The authority of a CONNECT request, and the address in a pod that it leads to: always an address
//! of the pod, and never a port of the proxy.
#![no_main]

use std::sync::LazyLock;

use mesh::inbound::{LocalEndpoint, target};
use mesh::{Authority, PROXY_PORTS, Snapshot, Uid, local};
use tunnel::hbone::to_http;
use ztunnel_fuzz::fuzz_target;

const MESH: &str = r#"
workloads:
- {uid: c//v1/Pod/a/pod, name: pod, namespace: a, workloadIps: [10.0.0.1, "fd00::1"],
   protocol: HBONE, services: {a/one.example: {80: 8080, 81: 15008}, b/two.example: {83: 8083}}}
- {uid: c//v1/Pod/a/waypoint, name: waypoint, namespace: a, workloadIps: [10.0.0.9],
   protocol: HBONE}
- {uid: c//v1/Pod/a/behind, name: behind, namespace: a, workloadIps: [10.0.0.5],
   protocol: HBONE, waypoint: {destination: /10.0.0.9, hboneMtlsPort: 15008}}
services:
- {name: one, namespace: a, hostname: one.example, vips: [/10.1.0.1], ports: {80: 80, 82: 82}}
- {name: two, namespace: b, hostname: two.example, vips: [/10.1.0.2], ports: {80: 8081}}
"#;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| local::parse(MESH).unwrap().into_snapshot());

fuzz_target!(|text: &str| {
    let Ok(authority) = text.parse::<Authority>() else {
        return;
    };
    let printed = authority.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&authority));
    assert_eq!(to_http(&authority).unwrap().as_str(), printed);
    assert_ne!(authority.port(), 0);

    let mesh = &*SNAPSHOT;
    for (name, address) in [("pod", "10.0.0.1"), ("waypoint", "10.0.0.9")] {
        let address = address.parse().unwrap();
        let uid = Uid(format!("c//v1/Pod/a/{name}").as_str().into());
        let workload = mesh.workload_by_uid(&uid).unwrap();
        let pod = LocalEndpoint {
            workload,
            addresses: &[address],
            at: address,
        };
        let Ok(found) = target(&authority, pod, mesh) else {
            continue;
        };
        let destination = found.destination;
        assert!(pod.owns(destination.ip()), "{destination}");
        assert!(!PROXY_PORTS.contains(&destination.port()), "{destination}");
        assert_ne!(destination.port(), 0);
        match &authority {
            Authority::Address(address) => assert_eq!(found.dialled, *address),
            Authority::Host(_, port) => assert_eq!(found.dialled.port(), *port),
        }
    }
});
