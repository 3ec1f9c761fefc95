//! Several waypoints that share the connections to a service.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: old1, name: old1, serviceAccount: old, workloadIps: ["10.0.2.1"], protocol: HBONE, services: { default/old: {} } }
- { uid: old2, name: old2, serviceAccount: old, workloadIps: ["10.0.2.2"], protocol: HBONE, services: { default/old: {} } }
- { uid: new, name: new, serviceAccount: new, workloadIps: ["10.0.2.3"], protocol: HBONE, services: { default/new: {} } }
- { uid: one, name: one, serviceAccount: one, workloadIps: ["10.0.2.4"], protocol: HBONE, services: { default/one: {} } }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { default/shared: {}, default/drained: {}, default/nobody: {} } }
services:
- { name: old, hostname: old, ports: { 15008: 15008 } }
- { name: new, hostname: new, ports: { 15008: 15008 } }
- { name: one, hostname: one, ports: { 15008: 15008 } }
- { name: down, hostname: down, ports: { 15008: 15008 } }
- { name: shared, hostname: shared, vips: ["/10.1.0.1"], ports: { 80: 80 }, waypoint: { destination: default/one },
    weightedWaypoints: [{ destination: { destination: default/old }, weight: 3 }, { destination: { destination: default/new }, weight: 1 }] }
- { name: drained, hostname: drained, vips: ["/10.1.0.2"], ports: { 80: 80 }, waypoint: { destination: default/one },
    weightedWaypoints: [{ destination: { destination: default/old }, weight: 0 }, { destination: { destination: default/new }, weight: 5 }] }
- { name: nobody, hostname: nobody, vips: ["/10.1.0.3"], ports: { 80: 80 }, waypoint: { destination: default/one },
    weightedWaypoints: [{ destination: { destination: default/old }, weight: 0 }, { destination: { destination: default/new }, weight: 0 }] }
- { name: half, hostname: half, vips: ["/10.1.0.4"], ports: { 80: 80 },
    weightedWaypoints: [{ destination: { destination: default/down }, weight: 1 }, { destination: { destination: default/old }, weight: 0 }, { destination: { destination: default/new }, weight: 1 }] }
- { name: dead, hostname: dead, vips: ["/10.1.0.5"], ports: { 80: 80 },
    weightedWaypoints: [{ destination: { destination: default/down }, weight: 1 }, { destination: { destination: default/gone }, weight: 1 }, { destination: { destination: default/new }, weight: 0 }] }
- { name: single, hostname: single, vips: ["/10.1.0.6"], ports: { 80: 80 }, weightedWaypoints: [{ destination: { destination: "/10.0.2.4" }, weight: 4294967295 }] }
"#;

#[test]
fn weighted_waypoints_share_the_connections() {
    check(
        MESH,
        18,
        "
        # First a waypoint is chosen, then one of its instances.
        src rolls -> 10.1.0.1:80 => old1 old1 old1 new old2 old2 old2 new old1
        src -> 10.1.0.1:80 => waypoint old1@10.0.2.1:15008 for 10.1.0.1:80 as old of shared
        src roll 3 -> 10.1.0.1:80 => waypoint new@10.0.2.3:15008 for 10.1.0.1:80 as new of shared
        # A waypoint with weight 0 is never chosen; with only such waypoints the connection is refused.
        src rolls -> 10.1.0.2:80 => new new new
        src -> 10.1.0.3:80 => refused no_waypoint_weight: service default/nobody is behind 2 waypoints, all with weight 0
        # A waypoint without instances leaves its share to the next one, but never to one with weight 0.
        src rolls -> 10.1.0.4:80 => new new new
        src -> 10.1.0.5:80 => refused waypoint_unavailable: default/down
        src roll 1 -> 10.1.0.5:80 => refused waypoint_unknown: default/gone
        src -> 10.1.0.6:80 => waypoint one@10.0.2.4:15008 for 10.1.0.6:80 as one of single
        src roll 18446744073709551615 -> 10.1.0.6:80 => waypoint one@10.0.2.4:15008 for 10.1.0.6:80 as one of single
        # Connections of each of the waypoints skip it, also of one with weight 0.
        old1 -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of shared
        new -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of shared
        old2 -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of drained
        new -> 10.1.0.3:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of nobody
        # The single waypoint, which the weighted ones replace, is an ordinary client.
        one -> 10.1.0.1:80 => waypoint old1@10.0.2.1:15008 for 10.1.0.1:80 as old of shared
        one -> 10.1.0.2:80 => waypoint new@10.0.2.3:15008 for 10.1.0.2:80 as new of drained
        # A workload has no weighted waypoints.
        src -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b
        old1 -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b
        ",
    );
}
