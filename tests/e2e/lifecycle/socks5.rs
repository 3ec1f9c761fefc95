//! An application names its destination over SOCKS5, and the connection is handled as if it had
//! been captured.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, MeshBuilder, Policy, SEARCH, identity, service_hostname};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{DNS, Resolver};

use crate::assertions::{self, HTTP, LIMIT};

const SOCKS: u16 = 15080;
const CLOSED: u16 = 9999;
const FORBIDDEN: u16 = 9000;

fn mesh_with_socks(world: &World) -> MeshBuilder<'_> {
    Mesh::builder(world).settings(|settings| {
        let enabled = json!({ "enabled": true });
        settings.extra.insert("socks5".to_owned(), enabled);
    })
}

fn connect_to_socks(pod: &Host, family: Family) -> io::Result<TcpStream> {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let stream = pod.enter(|| TcpStream::connect((loopback, SOCKS)))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn by_address(to: SocketAddr) -> Vec<u8> {
    let mut request = vec![5, 1, 0];
    match to.ip() {
        IpAddr::V4(v4) => request.extend([&[1][..], &v4.octets()].concat()),
        IpAddr::V6(v6) => request.extend([&[4][..], &v6.octets()].concat()),
    }
    request.extend(to.port().to_be_bytes());
    request
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[5, 1, 0, 3, length], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// Sends the greeting and the request. Returns the connection and the code of the reply.
fn send_request(pod: &Host, family: Family, request: &[u8]) -> (TcpStream, u8) {
    let mut stream = connect_to_socks(pod, family).unwrap();
    stream.write_all(&[5, 2, 2, 0]).unwrap();
    let mut wait_for_acceleration = [0; 2];
    stream.read_exact(&mut wait_for_acceleration).unwrap();
    assert_eq!(wait_for_acceleration, [5, 0]);
    stream.write_all(request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!([reply[0], reply[2], reply[3]], [5, 0, 1]);
    (stream, reply[1])
}

/// The server's response to an HTTP request on an open connection.
fn response_of(mut stream: TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn socks_destinations_are_reached_by_address_and_by_name() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_socks(&world).start().unwrap();
    let (client, far, near) = (world.pod("a", 0), world.pod("b", 0), world.pod("a", 1));
    let servers = [far, near, world.outside()].map(|host| host.serve(Kind::Http, HTTP).unwrap());
    let mut sent = 0;
    for family in Family::BOTH {
        let requests = [
            by_address(far.at(family, HTTP)),
            by_address(near.at(family, HTTP)),
            by_address(world.outside().at(family, HTTP)),
            by_address(Mesh::service(far).at(family, 80)),
            by_name(&service_hostname(far), 80),
            by_name(&service_hostname(far).to_uppercase(), 80),
            by_name(&far.address(family).to_string(), HTTP),
        ];
        for request in requests {
            let (stream, code) = send_request(client, family, &request);
            assert_eq!(code, 0, "{request:?}");
            let answer = response_of(stream);
            assert!(answer.starts_with("HTTP/1.1 200"), "{request:?}: {answer}");
            sent += 1;
        }
    }
    let accepted: u64 = servers.iter().map(|server| server.accepted()).sum();
    assert_eq!(accepted, sent);
    let mutual = [
        ("reporter", "source"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let opened = mesh.proxy("a").metrics().unwrap();
    // All requests except those inside the node and to the outside.
    let opened = opened.sum("istio_tcp_connections_opened_total", &mutual);
    assert_eq!(opened, 10.0);
    let line = format!("src.identity=\"{}\"", identity(client));
    mesh.proxy("b").wait_for_log(&line, LIMIT).unwrap();
    assertions::assert_all_running(&mut mesh);
}

/// Short names are resolved as in the pod; the search domains of the proxy's container are not
/// appended to other names.
#[test]
fn names_are_resolved_as_by_dns_in_the_pod() {
    let world = World::two_nodes().unwrap();
    let outside = world.outside();
    let (at, answer) = (outside.at(Family::V4, DNS), outside.v4);
    let resolver = Resolver::serve(outside, at, answer, Duration::ZERO).unwrap();
    let mut mesh = mesh_with_socks(&world).resolver(at.ip()).start().unwrap();
    let (client, far) = (world.pod("a", 0), world.pod("b", 0));
    let servers = [far, outside].map(|host| host.serve(Kind::Http, HTTP).unwrap());
    let mesh_names = [
        far.name.clone(),
        format!("{}.default", far.name),
        format!("{}.default.svc", far.name),
        format!("{}.default.svc.cluster.local", service_hostname(far)),
    ];
    for name in &mesh_names {
        let (stream, code) = send_request(client, Family::V4, &by_name(name, 80));
        assert_eq!(code, 0, "{name}");
        assert!(response_of(stream).starts_with("HTTP/1.1 200"), "{name}");
    }
    assert_eq!(servers[0].accepted(), 4);
    assert_eq!(resolver.queries(), [""; 0], "names of the mesh");
    let foreign = "www.example.com";
    let (stream, code) = send_request(client, Family::V4, &by_name(foreign, HTTP));
    assert_eq!(code, 0);
    assert!(response_of(stream).starts_with("HTTP/1.1 200"));
    assert_eq!(servers[1].accepted(), 1);
    // Once for each family.
    let queries = resolver.queries();
    assert!(!queries.is_empty());
    assert!(
        queries.iter().all(|name| name == foreign),
        "{queries:?}, {SEARCH}"
    );
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn refused_requests_are_answered_with_a_code() {
    let world = World::two_nodes().unwrap();
    let ports = json!([[[{ "destinationPorts": [FORBIDDEN] }]]]);
    let mut mesh = mesh_with_socks(&world)
        .policy(Policy::namespace("deny-port", "Deny", ports))
        .start()
        .unwrap();
    let (client, far, near) = (world.pod("a", 0), world.pod("b", 0), world.pod("a", 1));
    let forbidden = [far, near].map(|host| host.serve(Kind::Http, FORBIDDEN).unwrap());
    for family in Family::BOTH {
        let loopback = match family {
            Family::V4 => SocketAddr::from(([127, 0, 0, 1], HTTP)),
            Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, 15001)),
        };
        let cases = [
            (by_address(far.at(family, CLOSED)), 5),
            (by_address(near.at(family, CLOSED)), 5),
            (by_address(world.outside().at(family, CLOSED)), 5),
            (by_address(far.at(family, FORBIDDEN)), 2),
            (by_address(near.at(family, FORBIDDEN)), 2),
            (by_address(loopback), 2),
            (by_name(&service_hostname(far), CLOSED), 5),
            (by_name("absent.invalid", 80), 4),
            (by_name("not a name", 80), 4),
            (vec![5, 2, 0, 1], 7),
            (vec![5, 3, 0, 1], 7),
            (vec![5, 1, 0, 9], 8),
        ];
        for (request, wanted) in cases {
            let (mut stream, code) = send_request(client, family, &request);
            assert_eq!(code, wanted, "{request:?}");
            assert_eq!(
                stream.read(&mut [0]).unwrap(),
                0,
                "the connection is closed"
            );
        }
    }
    assert_eq!(forbidden.map(|server| server.accepted()), [0, 0]);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn invalid_messages_close_the_connection_and_others_are_served() {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_with_socks(&world).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    // An idle connection does not delay others.
    let _silent = connect_to_socks(client, Family::V4).unwrap();
    let answers: [(&[u8], &[u8]); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (&[4, 1, 0, 80, 10, 0, 0, 1, 0], b""),
        (&[5, 1, 2], &[5, 0xff]),
        (&[5, 0], &[5, 0xff]),
    ];
    for (garbage, wanted) in answers {
        let mut stream = connect_to_socks(client, Family::V4).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // Unread bytes turn the close into a reset.
        drop(stream.read_to_end(&mut answer));
        assert_eq!(answer, wanted, "{garbage:?}");
    }
    let (stream, code) = send_request(client, Family::V4, &by_address(server.at(Family::V4, HTTP)));
    assert_eq!(code, 0);
    assert!(response_of(stream).starts_with("HTTP/1.1 200"));
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn the_socks_port_is_open_only_if_enabled_and_only_inside_the_pod() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let client = world.pod("a", 0);
    for family in Family::BOTH {
        let refused = connect_to_socks(client, family).map_err(|error| error.kind());
        assert_eq!(refused.unwrap_err(), io::ErrorKind::ConnectionRefused);
    }
    assertions::assert_all_running(&mut mesh);
    drop(mesh);
    let mut mesh = mesh_with_socks(&world).start().unwrap();
    for other in [world.pod("a", 1), world.pod("b", 0), world.outside()] {
        let call = assertions::call(other, client.at(Family::V4, SOCKS));
        assert!(call.is_err(), "{}: {call:?}", other.name);
    }
    assertions::assert_all_running(&mut mesh);
}
