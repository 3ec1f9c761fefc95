//! Names: a pod asks its resolver, by datagrams and on connections. What the mesh knows is answered
//! on the node, the rest by the resolver itself, and the pod cannot tell the difference.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Service, Settings, service_hostname};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, MARKER, answered, wait};

/// What the resolver answers to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const DNS: u16 = 53;
const FLEET: &str = "fleet.default.svc.cluster.local";

/// How a pod asks.
#[derive(Debug, Clone, Copy)]
enum Way {
    Datagram,
    ConnectedDatagram,
    Connection,
}

const WAYS: [Way; 3] = [Way::Datagram, Way::ConnectedDatagram, Way::Connection];

/// A query for IPv4 addresses.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The addresses of a response of records whose names are pointers, if it is one to the query.
fn addresses(query: &[u8], response: &[u8]) -> Vec<IpAddr> {
    assert_eq!(response[..2], query[..2], "the id");
    assert_eq!(response[2..4].first().map(|flags| flags & 0x80), Some(0x80));
    assert_eq!(response[3] & 0x0f, 0, "the response code");
    assert_eq!(response[12..query.len()], query[12..], "the question");
    let count = usize::from(response[7]);
    let records = response[query.len()..].chunks_exact(16).take(count);
    let found = records.map(|record| <[u8; 4]>::try_from(&record[12..]).unwrap().into());
    let mut found: Vec<IpAddr> = found.collect();
    found.sort_unstable();
    found
}

/// The resolver outside: it answers one address to everything and counts.
fn resolver(host: &Host) -> Arc<AtomicUsize> {
    // It has several addresses: an answer is to come from the one that was asked.
    let at = host.at(Family::V4, DNS);
    let open = || (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
    let (udp, tcp) = host.enter(open);
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = |asked: &AtomicUsize, query: &[u8]| {
        asked.fetch_add(1, Ordering::Relaxed);
        let mut answer = query.to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ELSEWHERE.octets());
        answer
    };
    let count = asked.clone();
    thread::spawn(move || {
        let mut room = [0; 1024];
        while let Ok((length, client)) = udp.recv_from(&mut room) {
            udp.send_to(&answer(&count, &room[..length]), client).ok();
        }
    });
    let count = asked.clone();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            if let Ok(query) = read_frame(&mut stream) {
                write_frame(&mut stream, &answer(&count, &query)).ok();
            }
        }
    });
    asked
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], message].concat())
}

/// What a pod is told about a name.
fn ask(from: &Host, resolver: SocketAddr, way: Way, name: &str) -> io::Result<Vec<IpAddr>> {
    let query = query(0x1234, name);
    from.enter(|| {
        let response = match way {
            Way::Connection => {
                let mut stream = TcpStream::connect(resolver)?;
                stream.set_read_timeout(Some(LIMIT))?;
                write_frame(&mut stream, &query)?;
                read_frame(&mut stream)?
            }
            Way::Datagram | Way::ConnectedDatagram => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(LIMIT))?;
                if matches!(way, Way::ConnectedDatagram) {
                    socket.connect(resolver)?;
                    socket.send(&query)?;
                } else {
                    socket.send_to(&query, resolver)?;
                }
                let mut room = vec![0; 1024];
                let (length, source) = socket.recv_from(&mut room)?;
                assert_eq!(source, resolver, "the answer comes from whom was asked");
                room.truncate(length);
                room
            }
        };
        Ok(addresses(&query, &response))
    })
}

/// A service without an address of its own, with every pod behind it.
fn with_fleet(settings: &mut Settings) {
    settings.services.push(Service {
        name: "fleet".to_owned(),
        namespace: "default".to_owned(),
        hostname: FLEET.to_owned(),
        vips: Vec::new(),
        ports: [(80, 8080)].into(),
        extra: [].into(),
    });
    for workload in &mut settings.workloads {
        let key = format!("default/{FLEET}");
        workload.services.insert(key, [].into());
    }
}

#[test]
fn names_of_the_mesh_are_answered_on_the_node_and_others_by_the_resolver() {
    let world = World::two_nodes().unwrap();
    let asked = resolver(world.outside());
    let mut mesh = Mesh::builder(&world).settings(with_fleet).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    let service = vec![IpAddr::V4(Mesh::service(server).v4)];
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let mut fleet: Vec<IpAddr> = pods.map(|pod| pod.address(Family::V4)).collect();
    fleet.sort_unstable();
    for (number, way) in WAYS.into_iter().enumerate() {
        let told = |name: &str| ask(client, at, way, name).unwrap();
        assert_eq!(told(&service_hostname(server)), service, "{way:?}");
        assert_eq!(told(&server.name), service, "{way:?}");
        assert_eq!(told(FLEET), fleet, "{way:?}");
        assert_eq!(asked.load(Ordering::Relaxed), number, "{way:?}");
        let foreign = format!("www{number}.example.com");
        assert_eq!(told(&foreign), [IpAddr::V4(ELSEWHERE)], "{way:?}");
        assert_eq!(asked.load(Ordering::Relaxed), number + 1, "{way:?}");
    }
    let metrics = mesh.proxy("a").metrics().unwrap();
    let of = |name, protocol| metrics.sum(name, &[("request_protocol", protocol)]);
    assert_eq!(of("istio_dns_requests_total", "udp"), 8.0);
    assert_eq!(of("istio_dns_requests_total", "tcp"), 4.0);
    assert_eq!(of("istio_dns_upstream_requests_total", "udp"), 2.0);
    assert_eq!(of("istio_dns_upstream_requests_total", "tcp"), 1.0);
    scene::unharmed(&mut mesh);
}

#[test]
fn dns_is_left_alone_where_the_settings_say_so() {
    let world = World::two_nodes().unwrap();
    let asked = resolver(world.outside());
    let mut mesh = Mesh::builder(&world)
        .environment("ISTIO_META_DNS_CAPTURE", "false")
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    for way in [Way::Datagram, Way::ConnectedDatagram] {
        let told = wait(|| ask(client, at, way, &server.name).ok());
        assert_eq!(told, Some(vec![IpAddr::V4(ELSEWHERE)]), "{way:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let metrics = mesh.proxy("a").metrics().unwrap();
    assert_eq!(metrics.sum("istio_dns_requests_total", &[]), 0.0);
    scene::unharmed(&mut mesh);
}

/// A process of the pod that has a port of the proxy's before the pod is enrolled, until it is
/// dropped.
fn squat(pod: &Host, port: u16) -> TcpListener {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    pod.enter(|| TcpListener::bind(at)).unwrap()
}

/// What is missing then is names, not the mesh.
#[test]
fn a_pod_in_which_a_port_for_names_or_socks_is_taken_is_served_without() {
    let world = World::two_nodes().unwrap();
    let asked = resolver(world.outside());
    let (client, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _taken = [15053, 15080].map(|port| squat(client, port));
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            let socks5 = ("socks5".to_owned(), json!({ "enabled": true }));
            settings.extra.extend([socks5]);
        })
        .start()
        .unwrap();
    for port in ["port=15053", "port=15080"] {
        let line = mesh.proxy("a").wait_for_log(port, LIMIT).unwrap();
        assert!(line.contains("\twarn\t"), "{line}");
        assert!(line.contains(&client.name), "{line}");
    }
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
    }
    thread::sleep(SETTLE);
    assert_eq!(sniffer.finish().unwrap().hits, 0, "in the clear");
    // Its questions go to whom it asks, and the neighbour's are answered on the node.
    let at = world.outside().at(Family::V4, DNS);
    let mesh_says = vec![IpAddr::V4(Mesh::service(server).v4)];
    for (number, way) in WAYS.into_iter().enumerate() {
        let told = ask(client, at, way, &server.name).unwrap();
        assert_eq!(told, [IpAddr::V4(ELSEWHERE)], "{way:?}");
        assert_eq!(asked.load(Ordering::Relaxed), number + 1, "{way:?}");
        assert_eq!(ask(other, at, way, &server.name).unwrap(), mesh_says);
    }
    scene::unharmed(&mut mesh);
}
