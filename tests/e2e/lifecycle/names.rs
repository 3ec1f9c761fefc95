//! Names: a pod asks its resolver, by datagrams and on connections. What the mesh knows is answered
//! on the node, the rest by the resolver itself, and the pod cannot tell the difference.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Service, Settings, service_hostname};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Way};

use crate::scene::{self, HTTP, LIMIT, MARKER, answered, wait};

/// What the resolver answers to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const FLEET: &str = "fleet.default.svc.cluster.local";

/// The resolver outside. It has several addresses: an answer is to come from the one that was asked.
fn resolver(host: &Host, delay: Duration) -> Resolver {
    Resolver::serve(host, host.at(Family::V4, DNS), ELSEWHERE, delay).unwrap()
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
    let resolver = resolver(world.outside(), Duration::ZERO);
    let mut mesh = Mesh::builder(&world).settings(with_fleet).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    let service = vec![IpAddr::V4(Mesh::service(server).v4)];
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let mut fleet: Vec<IpAddr> = pods.map(|pod| pod.address(Family::V4)).collect();
    fleet.sort_unstable();
    for (number, way) in Way::ALL.into_iter().enumerate() {
        let told = |name: &str| dns::ask(client, at, way, name, LIMIT).unwrap();
        assert_eq!(told(&service_hostname(server)), service, "{way:?}");
        assert_eq!(told(&server.name), service, "{way:?}");
        assert_eq!(told(FLEET), fleet, "{way:?}");
        assert_eq!(resolver.asked().len(), number, "{way:?}");
        let foreign = format!("www{number}.example.com");
        assert_eq!(told(&foreign), [IpAddr::V4(ELSEWHERE)], "{way:?}");
        assert_eq!(resolver.asked().len(), number + 1, "{way:?}");
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
    let resolver = resolver(world.outside(), Duration::ZERO);
    let mut mesh = Mesh::builder(&world)
        .environment("ISTIO_META_DNS_CAPTURE", "false")
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    for way in [Way::Datagram, Way::ConnectedDatagram] {
        let told = wait(|| dns::ask(client, at, way, &server.name, LIMIT).ok());
        assert_eq!(told, Some(vec![IpAddr::V4(ELSEWHERE)]), "{way:?}");
    }
    assert_eq!(resolver.asked().len(), 2);
    let metrics = mesh.proxy("a").metrics().unwrap();
    assert_eq!(metrics.sum("istio_dns_requests_total", &[]), 0.0);
    scene::unharmed(&mut mesh);
}

/// How long the resolver takes while the proxy is replaced: many of its answers are on their way then.
const SLOW: Duration = Duration::from_millis(150);
/// An answer that has not come by then is lost. A resolver of the C library would ask again.
const LOST: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 4;

/// What became of all questions.
#[derive(Default)]
struct Questions {
    answered: AtomicU64,
    number: AtomicU64,
    stop: AtomicBool,
    lost: Mutex<BTreeMap<String, u64>>,
}

impl Questions {
    /// Asks one question after the other, each from a port of its own.
    fn ask(&self, from: &Host, (resolver, way): (SocketAddr, Way), known: Option<&str>) {
        from.enter(|| {
            while !self.stop.load(Ordering::Relaxed) {
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                let foreign = format!("www{number}.example.com");
                let name = known.unwrap_or(&foreign);
                match dns::ask_here(resolver, way, name, LOST) {
                    Ok(found) if found.len() == 1 => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    outcome => self.lose(way, known, format!("{outcome:?}")),
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
    }

    fn lose(&self, way: Way, known: Option<&str>, outcome: String) {
        let whose = known.map_or("the resolver", |_| "the mesh");
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost
            .entry(format!("{way:?}, of {whose}: {outcome}"))
            .or_default() += 1;
    }
}

/// Replaces the proxy while a connection keeps the one before from ending at once.
fn replace(mesh: &mut Mesh<'_>, client: &Host, echo: SocketAddr) {
    for round in 1..=ROUNDS {
        let mut open = client.enter(|| TcpStream::connect(echo)).unwrap();
        open.write_all(b"here").unwrap();
        open.read_exact(&mut [0; 4]).unwrap();
        thread::sleep(Duration::from_millis(500));
        let status = mesh.proxy("a").replace(2 * LIMIT).unwrap();
        assert!(status.success(), "round {round}: {status}");
    }
}

#[test]
fn no_question_is_lost_while_the_proxy_is_replaced() {
    let world = World::two_nodes().unwrap();
    let _resolver = resolver(world.outside(), SLOW);
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.set_deadline("1s"))
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, 9000).unwrap();
    let at = world.outside().at(Family::V4, DNS);
    let known = service_hostname(server);
    let questions = Questions::default();
    thread::scope(|scope| {
        let (questions, known) = (&questions, known.as_str());
        for way in Way::ALL {
            scope.spawn(move || questions.ask(client, (at, way), Some(known)));
            for _ in 0..5 {
                scope.spawn(move || questions.ask(client, (at, way), None));
            }
        }
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace(&mut mesh, client, server.at(Family::V4, 9000));
        }));
        questions.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = replaced {
            std::panic::resume_unwind(panic);
        }
    });
    let answered = questions.answered.load(Ordering::Relaxed);
    let lost = questions
        .lost
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let count: u64 = lost.values().sum();
    println!("{answered} questions answered, {count} lost: {lost:#?}");
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(answered > 1000, "{answered} are too few to say anything");
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
    let resolver = resolver(world.outside(), Duration::ZERO);
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
    for (number, way) in Way::ALL.into_iter().enumerate() {
        let told = |pod| dns::ask(pod, at, way, &server.name, LIMIT).unwrap();
        assert_eq!(told(client), [IpAddr::V4(ELSEWHERE)], "{way:?}");
        assert_eq!(resolver.asked().len(), number + 1, "{way:?}");
        assert_eq!(told(other), mesh_says);
    }
    scene::unharmed(&mut mesh);
}
