//! Backends that have a name instead of an address.

use super::{check, choose_address};

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: web, name: web, hostname: web.example, services: { default/web.example: {}, default/mixed.example: {} } }
- { uid: fixed, name: fixed, hostname: fixed.example, workloadIps: ["192.0.2.8"], services: { default/mixed.example: {}, default/fixed.example: {} } }
- { uid: mesh, name: mesh, serviceAccount: m, hostname: mesh.example, protocol: HBONE, services: { default/mesh.example: {} } }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE }
- { uid: wp, name: wp, serviceAccount: wp, hostname: wp.example, protocol: HBONE, services: { default/wp: {} } }
- { uid: only6, name: only6, hostname: only6.example, workloadIps: ["fd00::6"], services: { default/only4.example: {} } }
services:
- { name: web, hostname: web.example, vips: ["/240.240.0.1", "/2001:2::1"], ports: { 443: 443 }, subjectAltNames: ["web.example"] }
- { name: mixed, hostname: mixed.example, vips: ["/240.240.0.2"], ports: { 443: 443 } }
- { name: fixed, hostname: fixed.example, vips: ["/240.240.0.3"], ports: { 443: 8443 } }
- { name: mesh, hostname: mesh.example, vips: ["/240.240.0.4"], ports: { 443: 443 } }
- { name: guarded, hostname: guarded.example, vips: ["/240.240.0.5"], ports: { 443: 443 }, waypoint: { destination: default/wp } }
- { name: wp, hostname: wp, ports: { 15008: 15008 } }
- { name: only4, hostname: only4.example, vips: ["/240.240.0.6"], ports: { 443: 443 }, ipFamilies: IPv4Only }
- { name: wild, hostname: "*.example.org", vips: ["/240.240.0.7"], ports: { 443: 443 }, loadBalancer: { mode: Passthrough } }
"#;

#[test]
fn names_are_resolved_on_demand() {
    check(
        MESH,
        15,
        "
        src -> 240.240.0.1:443 => resolve web.example
        src with web.example=192.0.2.7 -> 240.240.0.1:443 => passthrough web 192.0.2.7:443 of web
        src with web.example=2001:db8::7 -> 240.240.0.1:443 => passthrough web [2001:db8::7]:443 of web
        # The answer to another question is none to this.
        src with other.example=192.0.2.7 -> 240.240.0.1:443 => resolve web.example
        # Who has an address is not looked up.
        src -> 240.240.0.3:443 => passthrough fixed 192.0.2.8:8443 of fixed
        src rolls -> 240.240.0.2:443 => fixed web.example fixed web.example
        src but 192.0.2.8:443 rolls -> 240.240.0.2:443 => web.example web.example
        # Neither is who has addresses of a family that the service does not allow.
        src -> 240.240.0.6:443 => refused no_address
        src -> 240.240.0.4:443 => resolve mesh.example
        src with mesh.example=192.0.2.9 -> 240.240.0.4:443 => tunnel mesh@192.0.2.9:15008 for 192.0.2.9:443 as m of mesh
        # What turns out to be a workload of the mesh is not reached in the clear.
        src with web.example=10.0.1.1 -> 240.240.0.1:443 => tunnel b@10.0.1.1:15008 for 10.0.1.1:443 as b of web
        # A waypoint may have a name, too.
        src -> 240.240.0.5:443 => resolve wp.example
        src with wp.example=192.0.2.10 -> 240.240.0.5:443 => waypoint wp@192.0.2.10:15008 for 240.240.0.5:443 as wp of guarded
        # A wildcard has no backends to resolve: its addresses are kept.
        src -> 240.240.0.7:443 => passthrough unknown 240.240.0.7:443 of wild
        src -> 240.240.0.1:80 => refused no_such_port
        ",
    );
}

#[test]
fn one_of_many_addresses() {
    let addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
    let like = |text: &str| text.parse().unwrap();
    let chosen = |random, to| {
        choose_address(&addresses, like(to), random)
            .unwrap()
            .to_string()
    };
    assert_eq!(chosen(0, "10.0.0.1"), "192.0.2.1");
    assert_eq!(chosen(1, "10.0.0.1"), "192.0.2.2");
    assert_eq!(chosen(2, "10.0.0.1"), "192.0.2.1");
    assert_eq!(chosen(u64::MAX, "fd00::1"), "2001:db8::1");
    // Another family is better than none.
    let found = choose_address(&addresses[..1], like("fd00::1"), 7);
    assert_eq!(found, Some(addresses[0]));
    assert_eq!(choose_address(&[], like("fd00::1"), 7), None);
}
