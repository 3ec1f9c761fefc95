//! Services that exist only for their own namespace.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: own, name: own, namespace: other, workloadIps: ["10.0.0.2"], protocol: HBONE }
- { uid: b, name: b, namespace: other, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { other/private: {}, other/public: {}, other/guarded: {} } }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.2.1"], protocol: HBONE, services: { default/wp: {} } }
services:
- { name: private, namespace: other, hostname: private, vips: ["/10.1.0.1"], ports: { 80: 80 }, visibility: Namespace }
- { name: public, namespace: other, hostname: public, vips: ["/10.1.0.2"], ports: { 80: 80 }, visibility: Public }
- { name: guarded, namespace: other, hostname: guarded, vips: ["/10.1.0.3"], ports: { 80: 80 }, visibility: Namespace, waypoint: { destination: default/wp } }
- { name: wp, hostname: wp, ports: { 15008: 15008 }, visibility: Namespace }
"#;

#[test]
fn a_private_service_is_unknown_elsewhere() {
    check(
        MESH,
        10,
        "
        own -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as other/b of private
        src -> 10.1.0.1:80 => passthrough unknown 10.1.0.1:80
        # Also on a port that it does not have.
        own -> 10.1.0.1:81 => refused no_such_port
        src -> 10.1.0.1:81 => passthrough unknown 10.1.0.1:81
        own -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as other/b of public
        src -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as other/b of public
        # Its backend is nobody's secret.
        src -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as other/b
        # A waypoint is named by the destination, not dialled by the source.
        own -> 10.1.0.3:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.3:80 as wp of guarded
        src -> 10.1.0.3:80 => passthrough unknown 10.1.0.3:80
        wp -> 10.1.0.3:80 => passthrough unknown 10.1.0.3:80
        ",
    );
}
