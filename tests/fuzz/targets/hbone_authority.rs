//! The authority of a CONNECT, and where it leads in a pod: never anywhere but to the pod, and
//! never into the proxy.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::hbone::in_a_request;
use ztunnel::fuzzing::path::target;
use ztunnel::hbone::Authority;
use ztunnel::mesh::{Snapshot, local};

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

static MESH_OF_ONE: LazyLock<Snapshot> =
    LazyLock::new(|| local::parse(MESH).unwrap().into_snapshot());

fuzz_target!(|text: &str| {
    let Ok(authority) = text.parse::<Authority>() else {
        return;
    };
    let printed = authority.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(&authority));
    assert_eq!(in_a_request(&authority).unwrap().as_str(), printed);
    assert_ne!(authority.port(), 0);

    let mesh = &*MESH_OF_ONE;
    for (uid, at) in [("pod", "10.0.0.1"), ("waypoint", "10.0.0.9")] {
        let at = at.parse().unwrap();
        let uid = ztunnel::mesh::Uid(format!("c//v1/Pod/a/{uid}").as_str().into());
        let workload = mesh.workload_by_uid(&uid).unwrap();
        let Some((to, asked)) = target(&authority, workload, (&[at], at), mesh) else {
            continue;
        };
        assert!(
            to.ip() == at || workload.workload_ips.contains(&to.ip()),
            "{to}"
        );
        assert!(!ztunnel::pods::PROXY_PORTS.contains(&to.port()), "{to}");
        assert_ne!(to.port(), 0);
        match &authority {
            Authority::Address(address) => assert_eq!(asked, *address),
            Authority::Host(_, port) => assert_eq!(asked.port(), *port),
        }
    }
});
