//! A partial snapshot (on-demand discovery): an unknown address is fetched before it is treated as
//! outside the mesh.

use super::{check_in, local};
use crate::Snapshot;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE, network: net }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, network: net }
- { uid: g, name: g, serviceAccount: g, workloadIps: ["10.0.1.2"], protocol: HBONE, network: net, waypoint: { destination: "net/10.0.9.9" } }
- { uid: named, name: named, hostname: named.example, network: net, services: { default/named.example: {} } }
- { uid: r, name: r, serviceAccount: r, workloadIps: ["10.2.0.9"], protocol: HBONE, network: net }
services:
- { name: kept, hostname: kept, vips: ["net/10.3.0.1"], loadBalancer: { mode: Passthrough } }
- { name: wide, hostname: wide, ranges: ["net/10.2.0.0/16"], loadBalancer: { mode: Passthrough } }
- { name: guarded, hostname: guarded, vips: ["net/10.1.0.1"], ports: { 80: 80 }, waypoint: { destination: default/wp } }
- { name: shared, hostname: shared, vips: ["net/10.1.0.3"], ports: { 80: 80 },
    weightedWaypoints: [{ destination: { destination: default/wp }, weight: 1 }, { destination: { destination: default/wp2 }, weight: 1 }] }
- { name: named, hostname: named.example, vips: ["net/10.1.0.2"], ports: { 80: 80 } }
- { name: hidden, namespace: other, hostname: hidden, vips: ["net/10.1.0.4"], ports: { 80: 80 }, visibility: Namespace }
"#;

fn mesh() -> Snapshot {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    mesh.partial()
}

#[test]
fn unknown_addresses_are_discovered_before_they_are_treated_as_outside() {
    check_in(
        mesh(),
        11,
        "
        src -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b
        src -> 10.0.7.7:80 => needs resource net/10.0.7.7
        src absent net/10.0.7.7 -> 10.0.7.7:80 => passthrough unknown 10.0.7.7:80
        src absent net/10.0.7.7 -> [::ffff:10.0.7.7]:80 => passthrough unknown 10.0.7.7:80
        # The absence of another address, or of this address in another network, does not count.
        src absent net/10.0.7.8 -> 10.0.7.7:80 => needs resource net/10.0.7.7
        src absent /10.0.7.7 -> 10.0.7.7:80 => needs resource net/10.0.7.7
        # Addresses that no workload or service can have.
        src -> 127.0.0.1:80 => passthrough unknown 127.0.0.1:80
        src -> 224.0.0.1:80 => passthrough unknown 224.0.0.1:80
        # A service that the source cannot see has the address: a workload may still have it.
        src -> 10.1.0.4:80 => needs resource net/10.1.0.4
        src absent net/10.1.0.4 -> 10.1.0.4:80 => passthrough unknown 10.1.0.4:80
        src here b -> 10.0.1.1:80 => direct b 10.0.1.1:80
        ",
    );
}

#[test]
fn the_workload_at_an_address_that_a_service_keeps_is_discovered_too() {
    check_in(
        mesh(),
        5,
        "
        src -> 10.3.0.1:80 => needs resource net/10.3.0.1
        src absent net/10.3.0.1 -> 10.3.0.1:80 => passthrough unknown 10.3.0.1:80 of kept
        src -> 10.2.0.9:80 => tunnel r@10.2.0.9:15008 for 10.2.0.9:80 as r
        src -> 10.2.0.8:80 => needs resource net/10.2.0.8
        src absent net/10.2.0.8 -> 10.2.0.8:80 => passthrough unknown 10.2.0.8:80 of wide
        ",
    );
}

#[test]
fn waypoints_and_resolved_host_names_are_discovered_too() {
    check_in(
        mesh(),
        8,
        "
        src -> 10.1.0.1:80 => needs resource default/wp
        src absent default/wp -> 10.1.0.1:80 => refused waypoint_unknown
        src -> 10.0.1.2:80 => needs resource net/10.0.9.9
        src absent net/10.0.9.9 -> 10.0.1.2:80 => refused waypoint_unknown
        # The next waypoint takes the share of an absent one.
        src absent default/wp -> 10.1.0.3:80 => needs resource default/wp2
        src -> 10.1.0.3:80 => needs resource default/wp
        src with named.example=10.0.7.7 -> 10.1.0.2:80 => needs resource net/10.0.7.7
        src with named.example=10.0.7.7 absent net/10.0.7.7 -> 10.1.0.2:80 => passthrough named 10.0.7.7:80 of named
        ",
    );
}
