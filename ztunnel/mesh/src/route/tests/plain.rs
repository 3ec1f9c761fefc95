//! Routes without waypoints and network gateways.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, serviceAccount: src, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, node: node-a }
- { uid: b1, name: b1, serviceAccount: b, workloadIps: ["10.0.0.2", "fd00::2"], protocol: HBONE, node: node-b,
    services: { default/b: { 80: 8080 }, default/named: { 80: 9090 }, default/spoken: {}, default/partly: { 80: 9000 } } }
- { uid: sick, name: sick, serviceAccount: b, workloadIps: ["10.0.0.4"], protocol: HBONE, status: Unhealthy, services: { default/sick: {} } }
- { uid: zero, name: zero, workloadIps: ["10.0.0.5"], protocol: HBONE, capacity: 0, services: { default/zero: {} } }
- { uid: plain, name: plain, workloadIps: ["10.0.0.6"], services: { default/plain: { 80: 8081 } } }
- { uid: host, name: host, workloadIps: ["10.0.0.7"], protocol: HBONE, networkMode: HostNetwork, services: { default/hosts: {} } }
- { uid: native, name: native, serviceAccount: native, workloadIps: ["10.0.0.8"], protocol: HBONE, nativeTunnel: true, services: { default/native: {} } }
- { uid: told, name: told, workloadIps: ["10.0.0.9"], protocol: HBONE, applicationTunnel: { protocol: PROXY, port: 15088 }, services: { default/told: {} } }
- { uid: far, name: far, workloadIps: ["10.0.9.2"], protocol: HBONE, network: remote }
- { uid: nowhere, name: nowhere, protocol: HBONE, services: { default/nowhere: {} } }
- { uid: foreign, name: foreign, serviceAccount: f, trustDomain: other.org, workloadIps: ["10.0.0.10"], protocol: HBONE }
services:
- { name: b, hostname: b, vips: ["/10.1.0.1", "/fd01::1"], ports: { 80: 80, 81: 8181 } }
- { name: spoken, hostname: spoken, vips: ["/10.1.0.2"], ports: { 80: 80 },
    subjectAltNames: ["spiffe://cluster.local/ns/x/sa/other", "spiffe://cluster.local/ns/default/sa/b", "no identity"] }
- { name: named, hostname: named, vips: ["/10.1.0.3"], ports: { 80: 0, 81: 0 } }
- { name: partly, hostname: partly, vips: ["/10.1.0.4"], ports: { 80: 0 } }
- { name: sick, hostname: sick, vips: ["/10.1.0.5"], ports: { 80: 80 } }
- { name: zero, hostname: zero, vips: ["/10.1.0.6"], ports: { 80: 80 } }
- { name: plain, hostname: plain, vips: ["/10.1.0.7"], ports: { 80: 80 } }
- { name: through, hostname: through, vips: ["/10.1.0.8"], ports: { 80: 80 }, loadBalancer: { mode: Passthrough } }
- { name: empty, hostname: empty, vips: ["/10.1.0.9"], ports: { 80: 80 } }
- { name: nowhere, hostname: nowhere, vips: ["/10.1.0.10"], ports: { 80: 80 } }
- { name: headless, hostname: headless, ports: { 80: 80 } }
- { name: hosts, hostname: hosts, vips: ["/10.1.0.11"], ports: { 80: 80 } }
- { name: native, hostname: native, vips: ["/10.1.0.12"], ports: { 80: 80 } }
- { name: told, hostname: told, vips: ["/10.1.0.13"], ports: { 80: 80 } }
- { name: elsewhere, hostname: elsewhere, vips: ["remote/10.1.0.14"], ports: { 80: 80 } }
"#;

#[test]
fn the_dialled_address_decides() {
    check(
        MESH,
        39,
        "
        # Outside the mesh.
        src -> 192.0.2.1:443 => passthrough unknown 192.0.2.1:443
        src -> [2001:db8::1]:443 => passthrough unknown [2001:db8::1]:443
        # In another network a workload has this address.
        src -> 10.0.9.2:80 => passthrough unknown 10.0.9.2:80
        src -> 10.1.0.14:80 => passthrough unknown 10.1.0.14:80
        # A workload by its own address: any port, and healthy or not.
        src -> 10.0.0.2:9999 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:9999 as b
        src -> [fd00::2]:80 => tunnel b1@[fd00::2]:15008 for [fd00::2]:80 as b
        src -> [::ffff:10.0.0.2]:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:80 as b
        src -> 10.0.0.4:80 => tunnel sick@10.0.0.4:15008 for 10.0.0.4:80 as b
        src -> 10.0.0.5:80 => tunnel zero@10.0.0.5:15008 for 10.0.0.5:80 as default
        src -> 10.0.0.10:80 => tunnel foreign@10.0.0.10:15008 for 10.0.0.10:80 as other.org/ns/default/sa/f
        src -> 10.0.0.1:80 => tunnel src@10.0.0.1:15008 for 10.0.0.1:80 as src
        # Without HBONE, or on its node's network: plaintext.
        src -> 10.0.0.6:80 => passthrough plain 10.0.0.6:80
        src -> 10.0.0.7:80 => passthrough host 10.0.0.7:80
        src -> 10.1.0.11:80 => passthrough host 10.0.0.7:80 of hosts
        # A workload that terminates HBONE itself or has an application tunnel: a tunnel as well.
        src -> 10.0.0.8:80 => tunnel native@10.0.0.8:15008 for 10.0.0.8:80 as native
        src -> 10.1.0.12:80 => tunnel native@10.0.0.8:15008 for 10.0.0.8:80 as native of native
        src -> 10.1.0.13:80 => tunnel told@10.0.0.9:15008 for 10.0.0.9:80 as default of told
        # The proxy at the destination refuses its own ports.
        src -> 10.0.0.2:15001 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:15001 as b
        src -> 10.0.0.2:15006 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:15006 as b
        src -> 10.0.0.2:15008 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:15008 as b
        # A service: the endpoint's own target port takes precedence over the service's.
        src -> 10.1.0.1:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:8080 as b of b
        src -> 10.1.0.1:81 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:8181 as b of b
        src -> [fd01::1]:80 => tunnel b1@[fd00::2]:15008 for [fd00::2]:8080 as b of b
        src -> [::ffff:10.1.0.1]:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:8080 as b of b
        src -> 10.1.0.3:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:9090 as b of named
        src -> 10.1.0.4:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:9000 as b of partly
        src -> 10.1.0.7:80 => passthrough plain 10.0.0.6:8081 of plain
        # The endpoint's identity, and those in the service's subjectAltNames.
        src -> 10.1.0.2:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:80 as b,x/other of spoken
        # A service that keeps the dialled address, on any port.
        src -> 10.1.0.8:80 => passthrough unknown 10.1.0.8:80 of through
        src -> 10.1.0.8:1234 => passthrough unknown 10.1.0.8:1234 of through
        # The same rules hold for a source outside the mesh.
        plain -> 10.0.0.2:80 => tunnel b1@10.0.0.2:15008 for 10.0.0.2:80 as b
        # Errors.
        src -> 10.1.0.1:82 => refused no_such_port: service default/b has no port 82
        src -> 10.1.0.3:81 => refused no_healthy_backend: none of its 1 endpoints
        src -> 10.1.0.5:80 => refused no_healthy_backend: service default/sick has no healthy backend for port 80: none of its 1 endpoints is healthy and has a capacity, a target port and the locality that the service demands
        src -> 10.1.0.6:80 => refused no_healthy_backend: service default/zero
        src -> 10.1.0.9:80 => refused no_healthy_backend: none of its 0 endpoints
        src -> 10.1.0.10:80 => refused no_address: no backend of service default/nowhere has a host name or an address
        # From another network the same virtual addresses belong to other services.
        far -> 10.1.0.1:80 => passthrough unknown 10.1.0.1:80
        far -> 10.1.0.14:80 => refused no_healthy_backend: service default/elsewhere
        ",
    );
}
