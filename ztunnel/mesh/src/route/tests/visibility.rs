//! Services that are visible in their own namespace only.

use super::*;
use crate::Snapshot;
use crate::{Change, NetworkRange};

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
fn a_private_service_is_not_visible_in_other_namespaces() {
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
        # Its backend is visible.
        src -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as other/b
        # A private waypoint works: the destination names it, the source does not dial it.
        own -> 10.1.0.3:80 => waypoint wp@10.0.2.1:15008 for 10.1.0.3:80 as wp of guarded
        src -> 10.1.0.3:80 => passthrough unknown 10.1.0.3:80
        wp -> 10.1.0.3:80 => passthrough unknown 10.1.0.3:80
        ",
    );
}

const SHARED: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: own, name: own, namespace: other, workloadIps: ["10.0.0.2"], protocol: HBONE }
- { uid: far, name: far, namespace: far, workloadIps: ["10.0.0.3"], protocol: HBONE }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { default/mine: {}, other/hidden: {}, third/shown: {}, fourth/plain: {}, third/wide: {}, third/kept: {} } }
services:
- { name: mine, hostname: mine, ports: { 80: 80 } }
- { name: shown, namespace: third, hostname: shown, ports: { 80: 80 }, canonical: true }
- { name: plain, namespace: fourth, hostname: plain, ports: { 80: 80 } }
- { name: hidden, namespace: other, hostname: hidden, ports: { 80: 80 }, visibility: Namespace }
- { name: wide, namespace: third, hostname: wide, ports: { 80: 80 } }
- { name: kept, namespace: third, hostname: kept, ports: { 80: 80 }, loadBalancer: { mode: Passthrough } }
"#;

/// A mesh of services (`namespace/hostname`) with these addresses or ranges.
fn sharing(addresses: &[(&str, &str)]) -> Snapshot {
    let mut mesh = local::parse(SHARED).unwrap().into_snapshot();
    for (name, at) in addresses {
        let ResourceKey::Service(name) = key(name) else {
            panic!("{name} is no service");
        };
        let mut service = (**mesh.service(&name).unwrap()).clone();
        let network: Arc<str> = "".into();
        match at.parse() {
            Ok(range) => service.ranges.push(NetworkRange { network, range }),
            Err(_single) => service.vips.push(NetworkAddress {
                network,
                address: at.parse().unwrap(),
            }),
        }
        mesh.apply(Change::Service(Box::new(service)));
    }
    mesh
}

#[test]
fn of_several_services_with_one_address_the_clients_own_or_the_canonical_one_is_chosen() {
    let mesh = sharing(&[
        ("default/mine", "10.1.0.1"),
        ("third/shown", "10.1.0.1"),
        ("fourth/plain", "10.1.0.1"),
        ("other/hidden", "10.1.0.1"),
        // The service that was added last is private, and hides no other.
        ("fourth/plain", "10.1.0.2"),
        ("other/hidden", "10.1.0.2"),
        ("third/wide", "10.1.1.0/24"),
        ("other/hidden", "10.1.1.1"),
    ]);
    check_in(
        mesh,
        7,
        "
        src -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of mine
        own -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of hidden
        far -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of shown
        src -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of plain
        own -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of hidden
        # If the service with the exact address is not visible, the range around it applies.
        src -> 10.1.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of wide
        own -> 10.1.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b of hidden
        ",
    );
}

#[test]
fn a_workload_inside_a_services_range_is_not_reached_in_plaintext() {
    check_in(
        sharing(&[("third/kept", "10.0.1.0/24")]),
        2,
        "
        src -> 10.0.1.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:80 as b
        src -> 10.0.1.2:80 => passthrough unknown 10.0.1.2:80 of kept
        ",
    );
}
