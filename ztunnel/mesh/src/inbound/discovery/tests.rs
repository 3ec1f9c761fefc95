//! What a pod's proxy asks for before it judges a peer, by example.

use super::*;
use crate::{Uid, local};

const MESH: &str = r#"
workloads:
- { uid: pod, name: pod, workloadIps: ["10.0.0.2"], protocol: HBONE, waypoint: { destination: default/wp },
    services: { default/s.example: { 80: 8080 }, default/t.example: {}, default/known: {} } }
- { uid: told, name: told, workloadIps: ["10.0.0.4"], protocol: HBONE, applicationTunnel: { protocol: PROXY, port: 15088 } }
- { uid: plain, name: plain, workloadIps: ["10.0.0.5"], protocol: HBONE }
- { uid: guarded, name: guarded, workloadIps: ["10.0.0.6"], protocol: HBONE, waypoint: { destination: "/10.0.0.9" } }
services:
- { name: known, hostname: known, vips: ["/10.1.0.1"], ports: { 80: 80 }, waypoint: { destination: default/wp2 } }
"#;

/// Everything that is asked for, if each answer is "absent".
fn endpoint(uid: &str, authority: &str, on_behalf: bool, mesh: &Snapshot) -> Vec<String> {
    let workload = mesh.workload_by_uid(&Uid(uid.into())).unwrap();
    let endpoint = LocalEndpoint {
        workload,
        addresses: &workload.workload_ips,
        at: workload.workload_ips[0],
    };
    let authority = authority.parse().unwrap();
    let mut absent = Vec::new();
    while let Some(key) = next_key(&authority, on_behalf, endpoint, mesh, &absent) {
        assert!(absent.len() < 20, "it never ends");
        absent.push(key);
    }
    absent.iter().map(ToString::to_string).collect()
}

const TABLE: &[(&str, &str, bool, &[&str])] = &[
    ("pod", "10.0.0.2:80", false, &[]),
    // By name: the service of that name.
    ("pod", "s.example:80", false, &["default/s.example"]),
    ("pod", "other.example:80", false, &[]),
    ("pod", "known:80", false, &[]),
    // On somebody's behalf: whoever may say so.
    (
        "pod",
        "10.0.0.2:80",
        true,
        &[
            "default/s.example",
            "default/t.example",
            "default/wp",
            "default/wp2",
        ],
    ),
    // Somebody else's address: whether this is a waypoint.
    ("plain", "10.0.7.7:80", false, &["/10.0.7.7"]),
    ("plain", "10.0.0.6:80", false, &["/10.0.0.9"]),
    ("plain", "10.1.0.1:80", false, &["default/wp2"]),
    ("told", "10.0.7.7:80", false, &[]),
];

#[test]
fn only_what_authorization_needs_is_discovered() {
    let mesh = local::parse(MESH).unwrap().into_snapshot().partial();
    for (uid, authority, on_behalf, expected) in TABLE {
        let found = endpoint(uid, authority, *on_behalf, &mesh);
        assert_eq!(found, *expected, "{uid} asked for {authority}");
    }
    let whole = local::parse(MESH).unwrap().into_snapshot();
    for (uid, authority, on_behalf, _) in TABLE {
        let found = endpoint(uid, authority, *on_behalf, &whole);
        assert_eq!(found, Vec::<String>::new());
    }
}
