//! Pods of one node: no tunnel, unless the connection needs a waypoint.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { default/b: { 80: 8080 }, default/guarded: {}, default/wp: {} } }
- { uid: c, name: c, serviceAccount: c, workloadIps: ["10.0.1.2"], protocol: HBONE, services: { default/b: {} } }
- { uid: behind, name: behind, serviceAccount: x, workloadIps: ["10.0.1.3"], protocol: HBONE, waypoint: { destination: default/wps }, services: { default/open: {} } }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.2.1"], protocol: HBONE, nativeTunnel: true, services: { default/wps: { 15008: 15008, 80: 80 } } }
- { uid: told, name: told, serviceAccount: told, workloadIps: ["10.0.1.4"], protocol: HBONE, applicationTunnel: { protocol: PROXY } }
- { uid: name, name: name, hostname: name.example, services: { default/named: {} } }
services:
- { name: b, hostname: b, vips: ["/10.1.0.1"], ports: { 80: 80 } }
- { name: guarded, hostname: guarded, vips: ["/10.1.0.2"], ports: { 80: 80 }, waypoint: { destination: default/wps } }
- { name: open, hostname: open, vips: ["/10.1.0.3"], ports: { 80: 80 } }
- { name: wps, hostname: wps, vips: ["/10.1.0.4"], ports: { 15008: 15008, 80: 80 } }
- { name: named, hostname: named, vips: ["/10.1.0.5"], ports: { 80: 80 } }
"#;

#[test]
fn pods_of_one_node_need_no_tunnel() {
    check(
        MESH,
        16,
        "
        src here b -> 10.0.1.1:9999 => direct b 10.0.1.1:9999
        src here b -> 10.1.0.1:80 => direct b 10.0.1.1:8080 of b
        src here b -> 10.0.1.2:80 => tunnel c@10.0.1.2:15008 for 10.0.1.2:80 as c
        src here b roll 1 -> 10.1.0.1:80 => tunnel c@10.0.1.2:15008 for 10.0.1.2:80 as c of b
        src here b but 10.0.1.1:8080 -> 10.1.0.1:80 => tunnel c@10.0.1.2:15008 for 10.0.1.2:80 as c of b
        src here b,c but 10.0.1.1:8080 but 10.0.1.2:80 -> 10.1.0.1:80 => direct b 10.0.1.1:8080 of b
        # The proxy at the destination refuses its own ports and logs the attempt.
        src here b -> 10.0.1.1:15008 => tunnel b@10.0.1.1:15008 for 10.0.1.1:15008 as b
        # A waypoint on the same node still gets a tunnel: it terminates HBONE itself.
        src here b,wp -> 10.1.0.2:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.2:80 as wp of guarded
        src here behind,wp -> 10.0.1.3:80 => waypoint wp@10.0.2.1:15008 for 10.0.1.3:80 as wp
        src here behind -> 10.0.1.3:80 => waypoint wp@10.0.2.1:15008 for 10.0.1.3:80 as wp
        src here wp -> 10.0.2.1:80 => tunnel wp@10.0.2.1:15008 for 10.0.2.1:80 as wp
        # From the waypoint, and to a service without one, directly.
        wp here b -> 10.1.0.2:80 => direct b 10.0.1.1:80 of guarded
        wp here behind -> 10.0.1.3:80 => direct behind 10.0.1.3:80
        src here behind -> 10.1.0.3:80 => direct behind 10.0.1.3:80 of open
        # An application that expects a PROXY header.
        src here told -> 10.0.1.4:80 => tunnel told@10.0.1.4:15008 for 10.0.1.4:80 as told
        # A host name that resolves to a pod of this node.
        src here b with name.example=10.0.1.1 -> 10.1.0.5:80 => direct b 10.0.1.1:80 of named
        ",
    );
}
