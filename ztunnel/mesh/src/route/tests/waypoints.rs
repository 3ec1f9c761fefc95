//! Which connections go through which waypoint.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, serviceAccount: src, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, node: n1 }
- { uid: out, name: out, workloadIps: ["10.0.0.2"] }
- { uid: wp1, name: wp1, serviceAccount: wp, workloadIps: ["10.0.2.1", "fd00::21"], protocol: HBONE, node: n2, services: { default/wp: { 15008: 15008 }, default/wpnamed: { 15008: 16000 } } }
- { uid: wp2, name: wp2, serviceAccount: wp, workloadIps: ["10.0.2.2"], protocol: HBONE, node: n3, capacity: 2, services: { default/wp: {} } }
- { uid: wpsick, name: wpsick, serviceAccount: wp, workloadIps: ["10.0.2.3"], protocol: HBONE, status: Unhealthy, services: { default/wp: {}, default/wpdown: {} } }
- { uid: alone, name: alone, serviceAccount: alone, workloadIps: ["10.0.2.4"], protocol: HBONE }
- { uid: plainwp, name: plainwp, serviceAccount: plainwp, workloadIps: ["10.0.2.5"], services: { default/plainwp: {} } }
- { uid: told, name: told, serviceAccount: told, workloadIps: ["10.0.2.6"], protocol: HBONE, applicationTunnel: { protocol: PROXY, port: 15088 }, services: { default/sandwich: {} } }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, services: { default/b: {}, default/open: {}, default/byvip: {}, default/through: {} }, waypoint: { destination: default/wpod } }
- { uid: c, name: c, serviceAccount: c, workloadIps: ["10.0.1.2", "fd00::12"], protocol: HBONE, waypoint: { destination: default/wp } }
- { uid: d, name: d, serviceAccount: d, workloadIps: ["10.0.1.3"], protocol: HBONE, waypoint: { destination: "/10.0.2.4" } }
- { uid: e, name: e, workloadIps: ["10.0.1.4"], protocol: HBONE, waypoint: { destination: "/10.1.9.1" } }
- { uid: f, name: f, workloadIps: ["10.0.1.5"], waypoint: { destination: default/wp } }
- { uid: g, name: g, workloadIps: ["10.0.1.6"], protocol: HBONE, waypoint: { destination: default/nobody } }
- { uid: h, name: h, workloadIps: ["10.0.1.7"], protocol: HBONE, waypoint: { destination: "/10.0.2.99" } }
- { uid: i, name: i, workloadIps: ["10.0.1.8"], protocol: HBONE, waypoint: { destination: default/wp, hboneMtlsPort: 15009 } }
- { uid: j, name: j, serviceAccount: j, workloadIps: ["10.0.1.9"], protocol: HBONE, waypoint: { destination: "/10.0.2.4", hboneMtlsPort: 16008 } }
- { uid: pod, name: pod, serviceAccount: pod, workloadIps: ["10.0.2.7"], protocol: HBONE, services: { default/wpod: {} } }
services:
- { name: wp, hostname: wp, vips: ["/10.1.9.1"], ports: { 15008: 15008 }, subjectAltNames: ["spiffe://cluster.local/ns/x/sa/wp"] }
- { name: wpnamed, hostname: wpnamed, vips: ["/10.1.9.2"], ports: { 15008: 0 } }
- { name: wpdown, hostname: wpdown, vips: ["/10.1.9.3"], ports: { 15008: 15008 } }
- { name: wpempty, hostname: wpempty, vips: ["/10.1.9.4"], ports: { 15008: 15008 } }
- { name: plainwp, hostname: plainwp, ports: { 15008: 15008 } }
- { name: sandwich, hostname: sandwich, ports: { 80: 80 } }
- { name: wpod, hostname: wpod, ports: { 15008: 15008 } }
- { name: near, hostname: near, ports: { 15008: 15008 } }
- { name: b, hostname: b, vips: ["/10.1.0.1", "/fd01::1"], ports: { 80: 8080 }, waypoint: { destination: default/wp } }
- { name: open, hostname: open, vips: ["/10.1.0.2"], ports: { 80: 8080 } }
- { name: byvip, hostname: byvip, vips: ["/10.1.0.3", "/fd01::3"], ports: { 80: 8080 }, waypoint: { destination: "/10.1.9.1" } }
- { name: named, hostname: named, vips: ["/10.1.0.4"], ports: { 80: 8080 }, waypoint: { destination: default/wpnamed } }
- { name: down, hostname: down, vips: ["/10.1.0.5"], ports: { 80: 8080 }, waypoint: { destination: default/wpdown } }
- { name: gone, hostname: gone, vips: ["/10.1.0.6"], ports: { 80: 8080 }, waypoint: { destination: default/gone-wp } }
- { name: empty, hostname: empty, vips: ["/10.1.0.7"], ports: { 80: 8080 }, waypoint: { destination: default/wpempty } }
- { name: plain, hostname: plain, vips: ["/10.1.0.8"], ports: { 80: 8080 }, waypoint: { destination: default/plainwp } }
- { name: told, hostname: told, vips: ["/10.1.0.9"], ports: { 80: 8080 }, waypoint: { destination: default/sandwich } }
- { name: through, hostname: through, vips: ["/10.1.0.10"], ports: { 80: 80 }, waypoint: { destination: default/wp }, loadBalancer: { mode: Passthrough } }
- { name: bypod, hostname: bypod, vips: ["/10.1.0.11"], ports: { 80: 80 }, waypoint: { destination: "/10.0.2.4" } }
- { name: other, namespace: other, hostname: other, vips: ["/10.1.0.12"], ports: { 80: 80 }, waypoint: { destination: other/wp } }
- { name: ranges, hostname: ranges, vips: ["/10.1.0.13"], ports: { 80: 80 }, waypoint: { destination: "net/10.1.9.1" } }
"#;

#[test]
fn connections_go_through_the_waypoint_of_the_dialled_object() {
    check(
        MESH,
        23,
        "
        # A service through its own waypoint: the authority is the dialled address.
        src -> 10.1.0.1:80 => waypoint wp1@10.0.2.1:15008 for 10.1.0.1:80 as wp,x/wp of b
        src roll 1 -> 10.1.0.1:80 => waypoint wp2@10.0.2.2:15008 for 10.1.0.1:80 as wp,x/wp of b
        src rolls -> 10.1.0.1:80 => wp1 wp2 wp2 wp1
        # Also on a port that the service does not have: the waypoint decides.
        src -> 10.1.0.1:9999 => waypoint wp1@10.0.2.1:15008 for 10.1.0.1:9999 as wp,x/wp of b
        # A waypoint named by its service is reached in the dialled family, one named by an address in its own.
        src -> [fd01::1]:80 => waypoint wp1@[fd00::21]:15008 for [fd01::1]:80 as wp,x/wp of b
        src -> [fd01::3]:80 => waypoint wp1@10.0.2.1:15008 for [fd01::3]:80 as wp,x/wp of byvip
        src -> 10.1.0.3:80 => waypoint wp1@10.0.2.1:15008 for 10.1.0.3:80 as wp,x/wp of byvip
        src -> 10.1.0.11:80 => waypoint alone@10.0.2.4:15008 for 10.1.0.11:80 as alone of bypod
        # Ports of the waypoint's service are translated as those of any service.
        src -> 10.1.0.4:80 => waypoint wp1@10.0.2.1:16000 for 10.1.0.4:80 as wp of named
        # A waypoint gets HBONE regardless of the protocol of its workload.
        src -> 10.1.0.8:80 => waypoint plainwp@10.0.2.5:15008 for 10.1.0.8:80 as plainwp of plain
        # A waypoint with an application tunnel needs no target port.
        src -> 10.1.0.9:80 => waypoint told@10.0.2.6:15008 for 10.1.0.9:80 as told of told
        # The waypoint applies to a service that keeps the dialled address, too.
        src -> 10.1.0.10:80 => waypoint wp1@10.0.2.1:15008 for 10.1.0.10:80 as wp,x/wp of through
        # The waypoint of a backend does not apply to a connection that dials the service.
        src -> 10.1.0.2:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:8080 as b of open
        # A workload through its own waypoint, on any port; the waypoint of its service does not apply.
        src -> 10.0.1.1:80 => waypoint pod@10.0.2.7:15008 for 10.0.1.1:80 as pod
        src -> 10.0.1.2:80 => waypoint wp1@10.0.2.1:15008 for 10.0.1.2:80 as wp,x/wp
        src -> [fd00::12]:80 => waypoint wp1@[fd00::21]:15008 for [fd00::12]:80 as wp,x/wp
        src -> [::ffff:10.0.1.2]:80 => waypoint wp1@10.0.2.1:15008 for 10.0.1.2:80 as wp,x/wp
        src -> 10.0.1.3:9 => waypoint alone@10.0.2.4:15008 for 10.0.1.3:9 as alone
        src -> 10.0.1.4:80 => waypoint wp1@10.0.2.1:15008 for 10.0.1.4:80 as wp,x/wp
        src -> 10.0.1.9:80 => waypoint alone@10.0.2.4:16008 for 10.0.1.9:80 as alone
        # A workload outside the mesh may have a waypoint.
        src -> 10.0.1.5:80 => waypoint wp1@10.0.2.1:15008 for 10.0.1.5:80 as wp,x/wp
        # The same from a source outside the mesh, and from the workload itself.
        out -> 10.1.0.1:80 => waypoint wp1@10.0.2.1:15008 for 10.1.0.1:80 as wp,x/wp of b
        c -> 10.0.1.2:80 => waypoint wp1@10.0.2.1:15008 for 10.0.1.2:80 as wp,x/wp
        ",
    );
}

#[test]
fn connections_from_the_waypoint_skip_it_and_a_missing_waypoint_is_an_error() {
    check(
        MESH,
        20,
        "
        # Connections of any instance of the waypoint skip it, healthy or not, named by service or address.
        wp1 -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:8080 as b of b
        wp2 -> 10.1.0.1:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:8080 as b of b
        wpsick -> 10.1.0.3:80 => tunnel b@10.0.1.1:15008 for 10.0.1.1:8080 as b of byvip
        wp1 -> 10.0.1.2:80 => tunnel c@10.0.1.2:15008 for 10.0.1.2:80 as c
        alone -> 10.0.1.3:80 => tunnel d@10.0.1.3:15008 for 10.0.1.3:80 as d
        wp1 -> 10.0.1.5:80 => passthrough f 10.0.1.5:80
        wp1 -> 10.1.0.10:80 => passthrough unknown 10.1.0.10:80 of through
        wp1 -> 10.1.0.1:81 => refused no_such_port: service default/b has no port 81
        # The waypoint of a service dials a backend with a waypoint of its own: that one is skipped, too.
        wp1 -> 10.0.1.1:8080 => tunnel b@10.0.1.1:15008 for 10.0.1.1:8080 as b
        # The waypoint of another destination is an ordinary client.
        alone -> 10.1.0.1:80 => waypoint wp1@10.0.2.1:15008 for 10.1.0.1:80 as wp,x/wp of b
        wp1 -> 10.0.1.3:80 => waypoint alone@10.0.2.4:15008 for 10.0.1.3:80 as alone
        # A missing waypoint: refused, never bypassed.
        src -> 10.1.0.5:80 => refused waypoint_unavailable: service default/down is behind the waypoint default/wpdown, which cannot be used: service default/wpdown has no healthy backend for port 15008: none of its 1 endpoints
        src -> 10.1.0.7:80 => refused waypoint_unavailable: none of its 0 endpoints
        src -> 10.1.0.6:80 => refused waypoint_unknown: service default/gone is behind the waypoint default/gone-wp, and the mesh has no service or workload with that name or address: refused until it is deployed or the reference to it is removed
        src -> 10.0.1.6:80 => refused waypoint_unknown: workload g is behind the waypoint default/nobody
        src -> 10.0.1.7:80 => refused waypoint_unknown: workload h is behind the waypoint /10.0.2.99
        # The same name in another namespace, the same address in another network.
        src -> 10.1.0.12:80 => refused waypoint_unknown: other/wp
        src -> 10.1.0.13:80 => refused waypoint_unknown: net/10.1.9.1
        # A port that the waypoint does not have.
        src -> 10.0.1.8:80 => refused waypoint_unavailable: refused, because a bypass of the waypoint would bypass its policies
        # A waypoint that is dialled itself is an ordinary workload.
        src -> 10.0.2.1:15008 => tunnel wp1@10.0.2.1:15008 for 10.0.2.1:15008 as wp
        ",
    );
}
