//! Other networks: through their gateways, with a tunnel inside the tunnel.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, network: n1, clusterId: c1, locality: { region: r1 } }
- { uid: abroad, name: abroad, workloadIps: ["10.0.0.1"], protocol: HBONE, network: n2 }
- { uid: near, name: near, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE, network: n1, locality: { region: r1 },
    networkGateway: { destination: n1/10.8.0.1 }, services: { default/both.example: {}, default/near.example: {}, default/strict.example: {}, default/heavy.example: {} } }
- { uid: split, name: split, protocol: HBONE, network: n2, capacity: 4, networkGateway: { destination: n2/10.9.0.1, hboneMtlsPort: 15008 },
    services: { default/both.example: {}, default/far.example: {}, default/near.example: {}, default/unspoken.example: {}, default/heavy.example: {}, default/wpfar: {} } }
- { uid: pod2, name: pod2, serviceAccount: p, workloadIps: ["10.0.5.1"], protocol: HBONE, network: n2, networkGateway: { destination: gw/east }, services: { default/pods.example: {}, default/pods6.example: {} } }
- { uid: plain2, name: plain2, workloadIps: ["10.0.5.2"], network: n2, networkGateway: { destination: gw/east }, services: { default/plainfar.example: {} } }
- { uid: cut, name: cut, serviceAccount: c, workloadIps: ["10.0.5.3"], protocol: HBONE, network: n3, services: { default/cut.example: {}, default/partly.example: {}, default/strict.example: {} } }
- { uid: wrong, name: wrong, protocol: HBONE, network: n4, networkGateway: { destination: n4/10.99.0.1 }, services: { default/wrong.example: {} } }
- { uid: noname, name: noname, protocol: HBONE, network: n4, networkGateway: { destination: gw/none }, services: { default/noname.example: {} } }
- { uid: dead, name: dead, protocol: HBONE, network: n4, networkGateway: { destination: gw/dead }, services: { default/dead.example: {} } }
- { uid: sick, name: sick, protocol: HBONE, network: n2, status: Unhealthy, networkGateway: { destination: n2/10.9.0.1 }, services: { default/sick.example: {} } }
- { uid: gw2, name: gw2, serviceAccount: gw2, workloadIps: ["10.9.0.1"], network: n2, protocol: HBONE }
- { uid: e1, name: e1, namespace: gw, serviceAccount: east, workloadIps: ["10.9.1.1", "fd00::91"], network: n2, protocol: HBONE, services: { gw/east: {} } }
- { uid: e2, name: e2, namespace: gw, serviceAccount: east, workloadIps: ["10.9.1.2"], network: n2, protocol: HBONE, services: { gw/east: { 15008: 31008 } } }
- { uid: named, name: named, serviceAccount: named, hostname: gw.example, network: n2, protocol: HBONE, services: { gw/cloud: {} } }
- { uid: pc, name: pc, serviceAccount: pc, protocol: HBONE, network: n2, networkGateway: { destination: gw/cloud }, services: { default/cloud.example: {} } }
- { uid: wploc, name: wploc, serviceAccount: wp, workloadIps: ["10.0.2.1"], network: n1, protocol: HBONE, services: { default/wpmix: {} } }
- { uid: wp2, name: wp2, serviceAccount: wp2, workloadIps: ["10.0.6.1"], network: n2, protocol: HBONE, networkGateway: { destination: n2/10.9.0.1 }, services: { default/wpmix: {} } }
- { uid: behind, name: behind, workloadIps: ["10.0.1.2"], network: n1, protocol: HBONE, waypoint: { destination: default/wpfar } }
- { uid: behind2, name: behind2, workloadIps: ["10.0.1.3"], network: n1, protocol: HBONE, waypoint: { destination: n2/10.0.6.1 } }
services:
- { name: both, hostname: both.example, vips: ["n1/10.1.0.1", "n2/10.2.0.1"], ports: { 80: 8080 }, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/b", "spiffe://cluster.local/ns/default/sa/b2"] }
- { name: far, hostname: far.example, vips: ["n1/10.1.0.2", "n1/fd01::2"], ports: { 80: 8080, 443: 8443 }, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/f"] }
- { name: near, hostname: near.example, vips: ["n1/10.1.0.3"], ports: { 80: 8080 }, loadBalancer: { mode: Failover, routingPreferences: [Network] } }
- { name: unspoken, hostname: unspoken.example, vips: ["n1/10.1.0.4"], ports: { 80: 8080 } }
- { name: pods, hostname: pods.example, vips: ["n1/10.1.0.5", "n1/fd01::5"], ports: { 80: 8080 } }
- { name: plainfar, hostname: plainfar.example, vips: ["n1/10.1.0.6"], ports: { 80: 8080 } }
- { name: cut, hostname: cut.example, vips: ["n1/10.1.0.7"], ports: { 80: 8080 } }
- { name: partly, hostname: partly.example, vips: ["n1/10.1.0.8"], ports: { 80: 8080 } }
- { name: strict, hostname: strict.example, vips: ["n1/10.1.0.9"], ports: { 80: 8080 }, loadBalancer: { mode: Strict, routingPreferences: [Network] } }
- { name: wrong, hostname: wrong.example, vips: ["n1/10.1.0.10"], ports: { 80: 8080 } }
- { name: noname, hostname: noname.example, vips: ["n1/10.1.0.11"], ports: { 80: 8080 } }
- { name: dead, hostname: dead.example, vips: ["n1/10.1.0.12"], ports: { 80: 8080 } }
- { name: sick, hostname: sick.example, vips: ["n1/10.1.0.13"], ports: { 80: 8080 } }
- { name: heavy, hostname: heavy.example, vips: ["n1/10.1.0.14"], ports: { 80: 8080 } }
- { name: cloud, hostname: cloud.example, vips: ["n1/10.1.0.15"], ports: { 80: 8080 } }
- { name: guarded, hostname: guarded.example, vips: ["n1/10.1.0.16"], ports: { 80: 8080 }, waypoint: { destination: default/wpfar } }
- { name: mixed, hostname: mixed.example, vips: ["n1/10.1.0.17"], ports: { 80: 8080 }, waypoint: { destination: default/wpmix } }
- { name: byaddress, hostname: byaddress.example, vips: ["n1/10.1.0.18"], ports: { 80: 8080 }, waypoint: { destination: n2/10.0.6.1 } }
- { name: pods6, hostname: pods6.example, vips: ["n1/fd01::6"], ports: { 80: 8080 } }
- { name: wpfar, hostname: wpfar, ports: { 15008: 15008 }, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/wpfar"] }
- { name: wpmix, hostname: wpmix, ports: { 15008: 15008 } }
- { name: east, namespace: gw, hostname: east, ports: { 15008: 15008 }, subjectAltNames: ["spiffe://cluster.local/ns/gw/sa/spare"] }
- { name: cloud, namespace: gw, hostname: cloud, ports: { 15008: 15008 } }
- { name: dead, namespace: gw, hostname: dead, ports: { 15008: 15008 } }
"#;

#[test]
fn remote_backends_are_reached_through_their_network_gateway() {
    check(
        MESH,
        33,
        "
        # Both tunnels name the host name and the dialled port; the service lists the identities.
        src -> 10.1.0.2:80 => gateway gw2@10.9.0.1:15008 for far.example:80 as gw2 then f of far
        src -> 10.1.0.2:443 => gateway gw2@10.9.0.1:15008 for far.example:443 as gw2 then f of far
        src -> [fd01::2]:80 => gateway gw2@10.9.0.1:15008 for far.example:80 as gw2 then f of far
        # Without such a list: the identity of the workload in the other network.
        src -> 10.1.0.4:80 => gateway gw2@10.9.0.1:15008 for unspoken.example:80 as gw2 then default of unspoken
        # A gateway named by its service: one of its instances, in the dialled family, on its own port.
        src -> 10.1.0.5:80 => gateway e1@10.9.1.1:15008 for pods.example:80 as gw/east,gw/spare then p of pods
        src roll 1 -> 10.1.0.5:80 => gateway e2@10.9.1.2:31008 for pods.example:80 as gw/east,gw/spare then p of pods
        src -> [fd01::6]:80 => gateway e1@[fd00::91]:15008 for pods6.example:80 as gw/east,gw/spare then p of pods6
        # A plaintext workload in the other network is reached through a tunnel, too.
        src -> 10.1.0.6:80 => gateway e1@10.9.1.1:15008 for plainfar.example:80 as gw/east,gw/spare then default of plainfar
        # Backends of both networks: by capacity; a remote one counts for all that it represents.
        src rolls -> 10.1.0.1:80 => near gw2 gw2 gw2 gw2 near
        src -> 10.1.0.1:80 => tunnel near@10.0.1.1:15008 for 10.0.1.1:8080 as b,b2 of both
        src roll 1 -> 10.1.0.1:80 => gateway gw2@10.9.0.1:15008 for both.example:80 as gw2 then b,b2 of both
        src but 10.0.1.1:8080 rolls -> 10.1.0.1:80 => gw2 gw2 gw2
        # A preference for the own network keeps connections there while it has a backend.
        src rolls -> 10.1.0.3:80 => near near near
        src rolls -> 10.1.0.9:80 => near near
        # The network gateway of a backend in the own network is not used.
        src -> 10.0.1.1:80 => tunnel near@10.0.1.1:15008 for 10.0.1.1:80 as b
        # From the other network the roles swap, and the same addresses belong to other workloads.
        abroad -> 10.2.0.1:80 => refused network_gateway_unknown: service default/both.example is behind the network gateway n1/10.8.0.1
        # A workload that represents a network has no address, so that network itself cannot reach it.
        abroad roll 1 -> 10.2.0.1:80 => refused network_gateway_unknown: n1/10.8.0.1
        abroad -> 10.1.0.1:80 => passthrough unknown 10.1.0.1:80
        # No gateway leads to the network.
        src -> 10.1.0.7:80 => refused no_network_gateway: the backends of service default/cut.example are in network \"n3\", the source is in \"n1\", and no backend names a network gateway that leads there
        src -> 10.0.5.3:80 => passthrough unknown 10.0.5.3:80
        src -> 10.1.0.10:80 => refused network_gateway_unknown: n4/10.99.0.1
        src -> 10.1.0.11:80 => refused network_gateway_unknown: gw/none
        src -> 10.1.0.12:80 => refused network_gateway_unavailable: service default/dead.example is behind the network gateway gw/dead
        src -> 10.1.0.13:80 => refused no_healthy_backend
        src -> 10.1.0.8:80 => refused no_network_gateway
        # A gateway may have a host name (cloud load balancer).
        src -> 10.1.0.15:80 => resolve gw.example
        src with gw.example=203.0.113.5 -> 10.1.0.15:80 => gateway named@203.0.113.5:15008 for cloud.example:80 as named then pc of cloud
        # A waypoint in another network: the gateway leads to it, with the host name of the dialled service.
        src -> 10.1.0.16:80 => gateway gw2@10.9.0.1:15008 for guarded.example:80 as gw2 then default,wpfar of guarded
        src roll 1 -> 10.1.0.17:80 => waypoint wploc@10.0.2.1:15008 for 10.1.0.17:80 as wp of mixed
        src -> 10.1.0.17:80 => gateway gw2@10.9.0.1:15008 for mixed.example:80 as gw2 then wp2 of mixed
        src -> 10.1.0.18:80 => gateway gw2@10.9.0.1:15008 for byaddress.example:80 as gw2 then wp2 of byaddress
        # The address of a workload has no meaning in another network.
        src -> 10.0.1.2:80 => refused waypoint_elsewhere: workload behind is behind the waypoint default/wpfar, which is in another network: only services are reachable there, so dial a service instead
        src -> 10.0.1.3:80 => refused waypoint_elsewhere: n2/10.0.6.1
        ",
    );
}
