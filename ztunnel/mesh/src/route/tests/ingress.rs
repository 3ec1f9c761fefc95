//! Captured gateways that speak HBONE themselves.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: ingress, name: ingress, serviceAccount: in, workloadIps: ["10.0.0.2"], protocol: HBONE, nativeTunnel: true }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.2.1"], protocol: HBONE, nativeTunnel: true, services: { default/wp: {} } }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { default/b: {}, default/asked: {} }, waypoint: { destination: default/wp } }
services:
- { name: wp, hostname: wp, vips: ["/10.1.9.1"], ports: { 15008: 15008 } }
- { name: b, hostname: b, vips: ["/10.1.0.1"], ports: { 80: 80 }, waypoint: { destination: default/wp } }
- { name: asked, hostname: asked, vips: ["/10.1.0.2"], ports: { 80: 80 }, waypoint: { destination: default/wp }, ingressUseWaypoint: true }
- { name: shared, hostname: shared, vips: ["/10.1.0.3"], ports: { 80: 80 }, ingressUseWaypoint: true,
    weightedWaypoints: [{ destination: { destination: default/wp }, weight: 1 }] }
"#;

#[test]
fn gateways_skip_the_waypoint_unless_the_service_demands_it() {
    check(
        MESH,
        13,
        "
        ingress -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of b
        ingress -> 10.1.0.2:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.2:80 as wp of asked
        ingress -> 10.1.0.3:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.3:80 as wp of shared
        ingress -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b
        # Other sources go through the waypoint, regardless of ingressUseWaypoint.
        src -> 10.1.0.1:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.1:80 as wp of b
        src -> 10.1.0.2:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.2:80 as wp of asked
        # The waypoint itself never goes through it again.
        wp -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of asked
        # A tunnel of the gateway itself is passed through, regardless of its destination.
        ingress -> 10.0.1.1:15008 => passthrough unknown 10.0.1.1:15008
        ingress -> 10.1.9.1:15008 => passthrough unknown 10.1.9.1:15008
        wp -> 10.0.1.1:15008 => passthrough unknown 10.0.1.1:15008
        wp -> 192.0.2.1:15008 => passthrough unknown 192.0.2.1:15008
        # From other sources the destination refuses that port.
        src -> 10.0.1.1:15008 => waypoint wp@10.0.2.1:15008 for 10.0.1.1:15008 as wp
        src -> 10.1.9.1:15008 => tunnel wp@10.0.2.1:15008 for 10.0.2.1:15008 as wp of wp
        ",
    );
}
