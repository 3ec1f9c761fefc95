//! An application says by SOCKS where it wants to go, and goes there as if it had been captured.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, MeshBuilder, Policy, SEARCH, identity, service_hostname};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{DNS, Resolver};

use crate::scene::{self, HTTP, LIMIT};

const SOCKS: u16 = 15080;
const NOBODY: u16 = 9999;
const FORBIDDEN: u16 = 9000;

fn with_socks(world: &World) -> MeshBuilder<'_> {
    Mesh::builder(world).settings(|settings| {
        let enabled = json!({ "enabled": true });
        settings.extra.insert("socks5".to_owned(), enabled);
    })
}

fn connected(pod: &Host, family: Family) -> io::Result<TcpStream> {
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

/// Greets and asks, and returns the connection and the code of the answer.
fn ask(pod: &Host, family: Family, request: &[u8]) -> (TcpStream, u8) {
    let mut stream = connected(pod, family).unwrap();
    stream.write_all(&[5, 2, 2, 0]).unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).unwrap();
    assert_eq!(chosen, [5, 0]);
    stream.write_all(request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!([reply[0], reply[2], reply[3]], [5, 0, 1]);
    (stream, reply[1])
}

/// What a server says to a request on a connection that is there.
fn served(mut stream: TcpStream) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn what_is_asked_for_is_reached_by_address_and_by_name() {
    let world = World::two_nodes().unwrap();
    let mut mesh = with_socks(&world).start().unwrap();
    let (client, far, near) = (world.pod("a", 0), world.pod("b", 0), world.pod("a", 1));
    let servers = [far, near, world.outside()].map(|host| host.serve(Kind::Http, HTTP).unwrap());
    let mut asked = 0;
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
            let (stream, code) = ask(client, family, &request);
            assert_eq!(code, 0, "{request:?}");
            let answer = served(stream);
            assert!(answer.starts_with("HTTP/1.1 200"), "{request:?}: {answer}");
            asked += 1;
        }
    }
    let accepted: u64 = servers.iter().map(|server| server.accepted()).sum();
    assert_eq!(accepted, asked);
    let mutual = [
        ("reporter", "source"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let opened = mesh.proxy("a").metrics().unwrap();
    // All but those inside the node and to the outside.
    let opened = opened.sum("istio_tcp_connections_opened_total", &mutual);
    assert_eq!(opened, 10.0);
    let line = format!("src.identity=\"{}\"", identity(client));
    mesh.proxy("b").wait_for_log(&line, LIMIT).unwrap();
    scene::unharmed(&mut mesh);
}

/// Short names are the pod's own, and no search domain of the proxy's container comes behind those
/// of others.
#[test]
fn a_name_means_what_the_pod_is_told_by_dns() {
    let world = World::two_nodes().unwrap();
    let outside = world.outside();
    let (at, answer) = (outside.at(Family::V4, DNS), outside.v4);
    let resolver = Resolver::serve(outside, at, answer, Duration::ZERO).unwrap();
    let mut mesh = with_socks(&world).resolver(at.ip()).start().unwrap();
    let (client, far) = (world.pod("a", 0), world.pod("b", 0));
    let servers = [far, outside].map(|host| host.serve(Kind::Http, HTTP).unwrap());
    let known = [
        far.name.clone(),
        format!("{}.default", far.name),
        format!("{}.default.svc", far.name),
        format!("{}.default.svc.cluster.local", service_hostname(far)),
    ];
    for name in &known {
        let (stream, code) = ask(client, Family::V4, &by_name(name, 80));
        assert_eq!(code, 0, "{name}");
        assert!(served(stream).starts_with("HTTP/1.1 200"), "{name}");
    }
    assert_eq!(servers[0].accepted(), 4);
    assert_eq!(resolver.asked(), [""; 0], "names of the mesh");
    let foreign = "www.example.com";
    let (stream, code) = ask(client, Family::V4, &by_name(foreign, HTTP));
    assert_eq!(code, 0);
    assert!(served(stream).starts_with("HTTP/1.1 200"));
    assert_eq!(servers[1].accepted(), 1);
    // Once for each family.
    let asked = resolver.asked();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|name| name == foreign),
        "{asked:?}, {SEARCH}"
    );
    scene::unharmed(&mut mesh);
}

#[test]
fn who_is_not_served_learns_why() {
    let world = World::two_nodes().unwrap();
    let ports = json!([[[{ "destinationPorts": [FORBIDDEN] }]]]);
    let mut mesh = with_socks(&world)
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
            (by_address(far.at(family, NOBODY)), 5),
            (by_address(near.at(family, NOBODY)), 5),
            (by_address(world.outside().at(family, NOBODY)), 5),
            (by_address(far.at(family, FORBIDDEN)), 2),
            (by_address(near.at(family, FORBIDDEN)), 2),
            (by_address(loopback), 2),
            (by_name(&service_hostname(far), NOBODY), 5),
            (by_name("nobody.invalid", 80), 4),
            (by_name("not a name", 80), 4),
            (vec![5, 2, 0, 1], 7),
            (vec![5, 3, 0, 1], 7),
            (vec![5, 1, 0, 9], 8),
        ];
        for (request, wanted) in cases {
            let (mut stream, code) = ask(client, family, &request);
            assert_eq!(code, wanted, "{request:?}");
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it is over");
        }
    }
    assert_eq!(forbidden.map(|server| server.accepted()), [0, 0]);
    scene::unharmed(&mut mesh);
}

#[test]
fn garbage_is_closed_and_others_are_served() {
    let world = World::two_nodes().unwrap();
    let mut mesh = with_socks(&world).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    // Somebody who never says anything keeps nobody waiting.
    let _silent = connected(client, Family::V4).unwrap();
    let answers: [(&[u8], &[u8]); 4] = [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (&[4, 1, 0, 80, 10, 0, 0, 1, 0], b""),
        (&[5, 1, 2], &[5, 0xff]),
        (&[5, 0], &[5, 0xff]),
    ];
    for (garbage, wanted) in answers {
        let mut stream = connected(client, Family::V4).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // Bytes that nobody wanted to read make it a reset.
        drop(stream.read_to_end(&mut answer));
        assert_eq!(answer, wanted, "{garbage:?}");
    }
    let (stream, code) = ask(client, Family::V4, &by_address(server.at(Family::V4, HTTP)));
    assert_eq!(code, 0);
    assert!(served(stream).starts_with("HTTP/1.1 200"));
    scene::unharmed(&mut mesh);
}

#[test]
fn nobody_listens_unless_it_is_wanted_and_nobody_from_elsewhere_gets_in() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let client = world.pod("a", 0);
    for family in Family::BOTH {
        let refused = connected(client, family).map_err(|error| error.kind());
        assert_eq!(refused.unwrap_err(), io::ErrorKind::ConnectionRefused);
    }
    scene::unharmed(&mut mesh);
    drop(mesh);
    let mut mesh = with_socks(&world).start().unwrap();
    for other in [world.pod("a", 1), world.pod("b", 0), world.outside()] {
        let call = scene::call(other, client.at(Family::V4, SOCKS));
        assert!(call.is_err(), "{}: {call:?}", other.name);
    }
    scene::unharmed(&mut mesh);
}
