//! An application with the PROXY protocol receives a PROXY header with the client's address and
//! identity before the first byte, on the configured port.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::net::{Host, World};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::identity;
use ztunnel_tests::proxy::{Mesh, Policy, Settings};
use ztunnel_tests::traffic::Stream;

use crate::connections::{canonical, connect, listen};

/// The PROXY protocol specification, section 2.2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The type of the field in which Istio's ztunnel sends the client's identity.
const IDENTITY: u8 = 0xd0;

#[derive(Debug)]
struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    /// Type and value of each additional field.
    fields: Vec<(u8, Vec<u8>)>,
}

fn read_header(mut stream: &Stream) -> Header {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).unwrap();
    assert_eq!(&fixed[..12], SIGNATURE);
    assert_eq!(fixed[12], 0x21, "version 2, command PROXY");
    let mut body = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut body).unwrap();
    let width = match fixed[13] {
        0x11 => 4,
        0x21 => 16,
        other => panic!("unexpected family and protocol {other:#x}"),
    };
    let (addresses, rest) = body.split_at(2 * width);
    let (ports, mut rest) = rest.split_at(4);
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    let mut fields = Vec::new();
    while let [kind, high, low, after @ ..] = rest {
        let (value, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        fields.push((*kind, value.to_vec()));
        rest = after;
    }
    assert!(rest.is_empty());
    Header {
        source: SocketAddr::new(address(&addresses[..width]), port(0)),
        destination: SocketAddr::new(address(&addresses[width..]), port(2)),
        fields,
    }
}

fn address(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap()).into(),
    }
}

/// Configures a pod's application to receive tunnelled connections on port 7777 with a PROXY
/// header.
fn enable_proxy_header(settings: &mut Settings, pod: &Host) {
    for workload in &mut settings.workloads {
        if workload.name == pod.name {
            let tunnel = json!({ "protocol": "PROXY", "port": 7777 });
            workload
                .extra
                .insert("applicationTunnel".to_owned(), tunnel);
        }
    }
}

// On one node, too: the proxy carries each connection that needs a header.
on_paths!(the_proxy_header_has_the_client_address_and_identity: tunnel, direct, auto);
fn the_proxy_header_has_the_client_address_and_identity(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _mesh = topology
        .mesh()
        .settings(|settings| enable_proxy_header(settings, server))
        .start()
        .unwrap();
    let listener = listen(server, 7777);
    for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
        let to = server.at(family, 8080);
        let mut near = topology.dial_once(client, to).unwrap();
        near.write_all(b"payload").unwrap();
        let mut far = topology.accept(&listener).unwrap();
        // Only the proxy can connect to the pod's loopback address.
        assert!(canonical(far.local_addr().unwrap()).ip().is_loopback());
        let header = read_header(&far);
        assert_eq!(header.source.ip(), client.address(family));
        assert_eq!(
            header.destination, to,
            "the address that the client dialled"
        );
        assert_eq!(header.fields, [(IDENTITY, identity(client).into_bytes())]);
        let mut payload = [0; 7];
        far.read_exact(&mut payload).unwrap();
        assert_eq!(&payload, b"payload");
        far.write_all(b"answer").unwrap();
        let mut answer = [0; 6];
        near.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }
}

on_paths!(policies_apply_to_the_port_of_the_application_tunnel: tunnel, direct);
fn policies_apply_to_the_port_of_the_application_tunnel(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let (client, server) = (topology.client(), topology.server());
    let port = |name, port: u16| {
        let rules = json!([[[{ "destinationPorts": [port] }]]]);
        Policy::namespace(name, "Allow", rules)
    };
    let mut mesh = topology
        .mesh()
        .settings(|settings| {
            enable_proxy_header(settings, server);
            settings.policies = vec![port("allow-tunnels", 7777)];
        })
        .start()
        .unwrap();
    let listener = listen(server, 7777);
    let to = server.at(Family::V4, 8080);
    let (mut near, mut far) = connect(client, to, &listener);
    assert_eq!(read_header(&far).destination, to);
    far.write_all(b"answer").unwrap();
    near.read_exact(&mut [0; 6]).unwrap();
    // Policies apply to the port of the application tunnel, for open and for new connections.
    mesh.change(|settings| settings.policies = vec![port("allow-dialled", 8080)])
        .unwrap();
    let refused = |mut end: Stream| {
        let error = end.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    refused(near);
    if let Ok(knocking) = topology.dial_once(client, to) {
        refused(knocking);
    }
}

on_paths!(an_application_without_the_setting_gets_no_header: tunnel, direct, joined, auto);
fn an_application_without_the_setting_gets_no_header(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for family in Family::BOTH {
        let to = topology.server().at(family, 8080);
        let (mut near, mut far) = topology.connect(to, &listener).unwrap();
        near.write_all(b"payload").unwrap();
        let mut first = [0; 7];
        far.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"payload");
    }
}

#[test]
fn plaintext_arrives_at_the_dialled_port_without_a_header() {
    let world = World::two_nodes().unwrap();
    let server = world.pod("b", 0);
    // Policies apply to the dialled port.
    let rules = json!([[[{ "destinationPorts": [8080] }]]]);
    let _mesh = Mesh::builder(&world)
        .settings(|settings| enable_proxy_header(settings, server))
        .policy(Policy::namespace("allow-dialled", "Allow", rules))
        .start()
        .unwrap();
    let listener = listen(server, 8080);
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let (mut near, mut far) = connect(world.outside(), to, &listener);
        assert_eq!(canonical(far.local_addr().unwrap()), to);
        near.write_all(b"payload").unwrap();
        let mut first = [0; 7];
        far.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"payload");
    }
}

#[test]
fn without_localhost_the_header_goes_to_the_pods_own_address() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _mesh = Mesh::builder(&world)
        .settings(|settings| enable_proxy_header(settings, server))
        .environment("LOCALHOST_APP_TUNNEL", "false")
        .start()
        .unwrap();
    let listener = listen(server, 7777);
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let (_near, far) = connect(client, to, &listener);
        let at = canonical(far.local_addr().unwrap());
        assert_eq!(at, server.at(family, 7777));
        assert_eq!(read_header(&far).destination, to);
    }
}
