//! Which backend of a service is chosen: capacity, health and locality.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE, node: n1, clusterId: c1, locality: { region: r1, zone: z1, subzone: s1 } }
- { uid: lost, name: lost, workloadIps: ["10.0.0.9"], protocol: HBONE, node: n9, clusterId: c9, locality: { region: r9, zone: z9, subzone: s9 } }
- { uid: n1, name: n1, workloadIps: ["10.0.1.1"], protocol: HBONE, node: n1, clusterId: c1, locality: { region: r1, zone: z1, subzone: s1 },
    services: { default/even: {}, default/near: {}, default/onnode: {}, default/strict: {}, default/cluster: {}, default/swapped: {} } }
- { uid: s1, name: s1, workloadIps: ["10.0.1.2"], protocol: HBONE, node: n2, clusterId: c1, locality: { region: r1, zone: z1, subzone: s1 }, capacity: 3,
    services: { default/even: {}, default/near: {}, default/onnode: {}, default/strict: {}, default/cluster: {}, default/zonal: {}, default/swapped: {} } }
- { uid: z1, name: z1, workloadIps: ["10.0.1.3"], protocol: HBONE, node: n3, clusterId: c1, locality: { region: r1, zone: z1, subzone: s2 },
    services: { default/far: {}, default/zonal: {}, default/near: {} } }
- { uid: r1, name: r1, workloadIps: ["10.0.1.4"], protocol: HBONE, node: n4, clusterId: c2, locality: { region: r1, zone: z2, subzone: s1 },
    services: { default/far: {}, default/regional: {}, default/near: {}, default/cluster: {} } }
- { uid: x, name: x, workloadIps: ["10.0.1.5"], protocol: HBONE, node: n5, clusterId: c2, locality: { region: r2, zone: z1, subzone: s1 },
    services: { default/near: {}, default/regional: {}, default/strict: {}, default/abroad: {} } }
- { uid: bad, name: bad, workloadIps: ["10.0.1.6"], protocol: HBONE, status: Unhealthy, node: n1, clusterId: c1, locality: { region: r1, zone: z1, subzone: s1 },
    services: { default/even: {}, default/near: {}, default/all: {}, default/allnear: {}, default/onlybad: {} } }
- { uid: good, name: good, workloadIps: ["10.0.1.7"], protocol: HBONE, node: n7, clusterId: c1, locality: { region: r2 },
    services: { default/all: {}, default/allnear: {} } }
- { uid: none, name: none, workloadIps: ["10.0.1.8"], protocol: HBONE, capacity: 0, services: { default/even: {}, default/all: {} } }
- { uid: outside, name: outside, workloadIps: ["10.0.1.9"], services: { default/mixed: {} } }
- { uid: inside, name: inside, workloadIps: ["10.0.1.10"], protocol: HBONE, services: { default/mixed: {}, default/partly: { 80: 8080 } } }
- { uid: portless, name: portless, workloadIps: ["10.0.1.11"], protocol: HBONE, services: { default/partly: {} } }
services:
- { name: even, hostname: even, vips: ["/10.1.0.1"], ports: { 80: 80 } }
- { name: near, hostname: near, vips: ["/10.1.0.2"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Region, Zone, Subzone, Node] } }
- { name: far, hostname: far, vips: ["/10.1.0.3"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Region, Zone, Subzone, Node] } }
- { name: onnode, hostname: onnode, vips: ["/10.1.0.4"], ports: { 80: 80 }, loadBalancer: { mode: Strict, routingPreferences: [Node] } }
- { name: strict, hostname: strict, vips: ["/10.1.0.5"], ports: { 80: 80 }, loadBalancer: { mode: Strict, routingPreferences: [Region, Zone] } }
- { name: cluster, hostname: cluster, vips: ["/10.1.0.6"], ports: { 80: 80 }, loadBalancer: { mode: Strict, routingPreferences: [Cluster] } }
- { name: zonal, hostname: zonal, vips: ["/10.1.0.7"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Zone] } }
- { name: regional, hostname: regional, vips: ["/10.1.0.8"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Region] } }
- { name: all, hostname: all, vips: ["/10.1.0.9"], ports: { 80: 80 }, loadBalancer: { healthPolicy: AllowAll } }
- { name: allnear, hostname: allnear, vips: ["/10.1.0.10"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Region], healthPolicy: AllowAll } }
- { name: onlybad, hostname: onlybad, vips: ["/10.1.0.11"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Node] } }
- { name: mixed, hostname: mixed, vips: ["/10.1.0.12"], ports: { 80: 80 } }
- { name: partly, hostname: partly, vips: ["/10.1.0.13"], ports: { 80: 0 } }
- { name: abroad, hostname: abroad, vips: ["/10.1.0.14"], ports: { 80: 80 }, loadBalancer: { mode: Strict, routingPreferences: [Region] } }
- { name: swapped, hostname: swapped, vips: ["/10.1.0.15"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Node, Region] } }
"#;

#[test]
fn backends_are_chosen_by_capacity_health_and_locality() {
    check(
        MESH,
        25,
        "
        # By capacity; the unhealthy backend and the one without a capacity are never chosen.
        src rolls -> 10.1.0.1:80 => n1 s1 s1 s1 n1 s1 s1 s1
        lost rolls -> 10.1.0.1:80 => n1 s1 s1 s1
        src roll 18446744073709551615 -> 10.1.0.1:80 => tunnel s1@10.0.1.2:15008 for 10.0.1.2:80 as default of even
        # A backend that the kernel could have chosen is chosen only if there is no other.
        src but 10.0.1.2:80 rolls -> 10.1.0.1:80 => n1 n1 n1
        src but 10.0.1.1:80 rolls -> 10.1.0.1:80 => s1 s1 s1
        src but 10.0.1.1:80 but 10.0.1.2:80 rolls -> 10.1.0.1:80 => n1 s1 s1 s1
        # Failover: the longest prefix of the preferences that matches.
        src rolls -> 10.1.0.2:80 => n1 n1 n1
        lost rolls -> 10.1.0.2:80 => n1 r1 s1 s1 s1 x z1
        src rolls -> 10.1.0.3:80 => z1 z1 z1
        # A zone of that name in another region is still a zone of that name.
        src rolls -> 10.1.0.7:80 => s1 s1 s1 z1
        src rolls -> 10.1.0.8:80 => r1 r1
        lost rolls -> 10.1.0.8:80 => r1 x
        # The longest matching prefix decides, not the number of matches.
        src rolls -> 10.1.0.15:80 => n1 n1
        # The kernel could have chosen the nearest backend; it is still better than a farther one.
        src but 10.0.1.1:80 rolls -> 10.1.0.2:80 => n1 n1
        # Strict: only backends that match all preferences.
        src rolls -> 10.1.0.4:80 => n1 n1
        lost -> 10.1.0.4:80 => refused no_healthy_backend: the locality that the service demands
        src rolls -> 10.1.0.5:80 => n1 s1 s1 s1
        src rolls -> 10.1.0.6:80 => n1 s1 s1 s1
        lost -> 10.1.0.6:80 => refused no_healthy_backend
        src -> 10.1.0.14:80 => refused no_healthy_backend
        # With AllowAll unhealthy backends are chosen too, but none without a capacity.
        src rolls -> 10.1.0.9:80 => bad good bad good
        src rolls -> 10.1.0.10:80 => bad bad
        src -> 10.1.0.11:80 => refused no_healthy_backend
        # Inside and outside the mesh, with and without a target port.
        src rolls -> 10.1.0.12:80 => inside outside
        src rolls -> 10.1.0.13:80 => inside inside
        ",
    );
}
