//! An application that asks for the PROXY protocol is told who called, before the first byte of
//! the connection, on the port it asked for.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::net::{Host, World};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::identity;
use ztunnel_tests::proxy::{Mesh, Policy, Settings};
use ztunnel_tests::traffic::End;

use crate::ends::{canonical, connect, listen};

/// The PROXY protocol specification, section 2.2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The type that Istio's ztunnel gives the client's identity.
const IDENTITY: u8 = 0xd0;

#[derive(Debug)]
struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    /// Type and value of each further field.
    fields: Vec<(u8, Vec<u8>)>,
}

fn read_header(mut stream: &End) -> Header {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).unwrap();
    assert_eq!(&fixed[..12], SIGNATURE);
    assert_eq!(fixed[12], 0x21, "version 2, command PROXY");
    let mut body = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut body).unwrap();
    let width = match fixed[13] {
        0x11 => 4,
        0x21 => 16,
        other => panic!("family and protocol {other:#x}"),
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

/// A pod's application takes what comes in tunnels on port 7777, with a header.
fn wants_to_be_told(settings: &mut Settings, pod: &Host) {
    for workload in &mut settings.workloads {
        if workload.name == pod.name {
            let tunnel = json!({ "protocol": "PROXY", "port": 7777 });
            workload
                .extra
                .insert("applicationTunnel".to_owned(), tunnel);
        }
    }
}

// On one node too: what needs a header needs the proxy, each time.
on_lanes!(the_header_tells_address_and_identity_on_the_port_that_was_asked_for: tunnel, direct, auto);
fn the_header_tells_address_and_identity_on_the_port_that_was_asked_for(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _mesh = scene
        .mesh()
        .settings(|settings| wants_to_be_told(settings, server))
        .start()
        .unwrap();
    let listener = listen(server, 7777);
    for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
        let to = server.at(family, 8080);
        let mut near = scene.knock(client, to).unwrap();
        near.write_all(b"payload").unwrap();
        let mut far = scene.accept(&listener).unwrap();
        // Where nobody but the proxy gets.
        assert!(canonical(far.local_addr().unwrap()).ip().is_loopback());
        let header = read_header(&far);
        assert_eq!(header.source.ip(), client.address(family));
        assert_eq!(header.destination, to, "what the client called");
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

on_lanes!(policies_judge_the_port_of_the_tunnel: tunnel, direct);
fn policies_judge_the_port_of_the_tunnel(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let (client, server) = (scene.client(), scene.server());
    let port = |name, port: u16| {
        let rules = json!([[[{ "destinationPorts": [port] }]]]);
        Policy::namespace(name, "Allow", rules)
    };
    let mut mesh = scene
        .mesh()
        .settings(|settings| {
            wants_to_be_told(settings, server);
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
    // The port that was called does not count, for what is open and for what comes.
    mesh.change(|settings| settings.policies = vec![port("allow-called", 8080)])
        .unwrap();
    let refused = |mut end: End| {
        let error = end.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    refused(near);
    if let Ok(knocking) = scene.knock(client, to) {
        refused(knocking);
    }
}

on_lanes!(nobody_else_gets_a_header: tunnel, direct, joined, auto);
fn nobody_else_gets_a_header(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for family in Family::BOTH {
        let to = scene.server().at(family, 8080);
        let (mut near, mut far) = scene.connect(to, &listener).unwrap();
        near.write_all(b"payload").unwrap();
        let mut first = [0; 7];
        far.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"payload");
    }
}

#[test]
fn plaintext_goes_where_it_was_sent_as_it_is() {
    let world = World::two_nodes().unwrap();
    let server = world.pod("b", 0);
    // It is judged so, too.
    let rules = json!([[[{ "destinationPorts": [8080] }]]]);
    let _mesh = Mesh::builder(&world)
        .settings(|settings| wants_to_be_told(settings, server))
        .policy(Policy::namespace("allow-called", "Allow", rules))
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
fn a_header_goes_to_the_pods_own_address_where_loopback_is_not_wanted() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _mesh = Mesh::builder(&world)
        .settings(|settings| wants_to_be_told(settings, server))
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
