//! DNS: queries of a pod over UDP and TCP. Names of the mesh are answered on the node, others by
//! the pod's resolver; the pod cannot see a difference.

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
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Transport};

use crate::assertions::{self, HTTP, LIMIT, MARKER, expect_answer, wait};

/// The resolver's answer to every query.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const HEADLESS: &str = "headless.default.svc.cluster.local";

/// The resolver on the host outside. The host has several addresses, and an answer must come from
/// the address that was queried.
fn resolver(host: &Host, delay: Duration) -> Resolver {
    Resolver::serve(host, host.at(Family::V4, DNS), ELSEWHERE, delay).unwrap()
}

/// Adds a headless service with every pod as backend.
fn add_headless_service(settings: &mut Settings) {
    settings.services.push(Service {
        name: "headless".to_owned(),
        namespace: "default".to_owned(),
        hostname: HEADLESS.to_owned(),
        vips: Vec::new(),
        ports: [(80, 8080)].into(),
        extra: [].into(),
    });
    for workload in &mut settings.workloads {
        let key = format!("default/{HEADLESS}");
        workload.services.insert(key, [].into());
    }
}

#[test]
fn mesh_names_are_answered_on_the_node_and_others_by_the_resolver() {
    let world = World::two_nodes().unwrap();
    let resolver = resolver(world.outside(), Duration::ZERO);
    let mut mesh = Mesh::builder(&world)
        .settings(add_headless_service)
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    let service = vec![IpAddr::V4(Mesh::service(server).v4)];
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let mut headless: Vec<IpAddr> = pods.map(|pod| pod.address(Family::V4)).collect();
    headless.sort_unstable();
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let resolve = |name: &str| dns::resolve(client, at, transport, name, LIMIT).unwrap();
        assert_eq!(resolve(&service_hostname(server)), service, "{transport:?}");
        assert_eq!(resolve(&server.name), service, "{transport:?}");
        assert_eq!(resolve(HEADLESS), headless, "{transport:?}");
        assert_eq!(resolver.queries().len(), number, "{transport:?}");
        let foreign = format!("www{number}.example.com");
        assert_eq!(resolve(&foreign), [IpAddr::V4(ELSEWHERE)], "{transport:?}");
        assert_eq!(resolver.queries().len(), number + 1, "{transport:?}");
    }
    let metrics = mesh.proxy("a").metrics().unwrap();
    let of = |name, protocol| metrics.sum(name, &[("request_protocol", protocol)]);
    assert_eq!(of("istio_dns_requests_total", "udp"), 8.0);
    assert_eq!(of("istio_dns_requests_total", "tcp"), 4.0);
    assert_eq!(of("istio_dns_upstream_requests_total", "udp"), 2.0);
    assert_eq!(of("istio_dns_upstream_requests_total", "tcp"), 1.0);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn dns_is_not_captured_if_disabled() {
    let world = World::two_nodes().unwrap();
    let resolver = resolver(world.outside(), Duration::ZERO);
    let mut mesh = Mesh::builder(&world)
        .environment("ISTIO_META_DNS_CAPTURE", "false")
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let at = world.outside().at(Family::V4, DNS);
    for transport in [Transport::Datagram, Transport::ConnectedDatagram] {
        let resolved = wait(|| dns::resolve(client, at, transport, &server.name, LIMIT).ok());
        assert_eq!(resolved, Some(vec![IpAddr::V4(ELSEWHERE)]), "{transport:?}");
    }
    assert_eq!(resolver.queries().len(), 2);
    let metrics = mesh.proxy("a").metrics().unwrap();
    assert_eq!(metrics.sum("istio_dns_requests_total", &[]), 0.0);
    assertions::assert_all_running(&mut mesh);
}

/// The delay of the resolver's answers while the proxy is replaced, so that many answers are
/// pending.
const SLOW: Duration = Duration::from_millis(150);
/// The time after which a query counts as lost. A resolver of the C library would retry.
const LOST: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 4;

/// The results of all queries.
#[derive(Default)]
struct Queries {
    answered: AtomicU64,
    number: AtomicU64,
    stop: AtomicBool,
    lost: Mutex<BTreeMap<String, u64>>,
}

impl Queries {
    /// Sends one query after the other, each from a new port.
    fn send_repeatedly(
        &self,
        from: &Host,
        (resolver, transport): (SocketAddr, Transport),
        mesh_name: Option<&str>,
    ) {
        from.enter(|| {
            while !self.stop.load(Ordering::Relaxed) {
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                let foreign = format!("www{number}.example.com");
                let name = mesh_name.unwrap_or(&foreign);
                match dns::resolve_here(resolver, transport, name, LOST) {
                    Ok(found) if found.len() == 1 => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    outcome => self.record_loss(transport, mesh_name, format!("{outcome:?}")),
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
    }

    fn record_loss(&self, transport: Transport, mesh_name: Option<&str>, outcome: String) {
        let whose = mesh_name.map_or("the resolver", |_| "the mesh");
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost
            .entry(format!("{transport:?}, of {whose}: {outcome}"))
            .or_default() += 1;
    }
}

/// Replaces the proxy while an open connection keeps the previous one from ending at once.
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
fn no_query_is_lost_while_the_proxy_is_replaced() {
    let world = World::two_nodes().unwrap();
    let _resolver = resolver(world.outside(), SLOW);
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.set_deadline("1s"))
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, 9000).unwrap();
    let at = world.outside().at(Family::V4, DNS);
    let mesh_name = service_hostname(server);
    let queries = Queries::default();
    thread::scope(|scope| {
        let (queries, mesh_name) = (&queries, mesh_name.as_str());
        for transport in Transport::ALL {
            scope.spawn(move || queries.send_repeatedly(client, (at, transport), Some(mesh_name)));
            for _ in 0..5 {
                scope.spawn(move || queries.send_repeatedly(client, (at, transport), None));
            }
        }
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace(&mut mesh, client, server.at(Family::V4, 9000));
        }));
        queries.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = replaced {
            std::panic::resume_unwind(panic);
        }
    });
    let answered = queries.answered.load(Ordering::Relaxed);
    let lost = queries.lost.lock().unwrap_or_else(PoisonError::into_inner);
    let count: u64 = lost.values().sum();
    println!("{answered} queries answered, {count} lost: {lost:#?}");
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(
        answered > 1000,
        "{answered} answers are too few for this test"
    );
    assertions::assert_all_running(&mut mesh);
}

/// A process of the pod occupies a port of the proxy before the pod is enrolled, until it is
/// dropped.
fn occupy_port(pod: &Host, port: u16) -> TcpListener {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    pod.enter(|| TcpListener::bind(at)).unwrap()
}

/// The pod is served without the feature of the port.
#[test]
fn a_pod_with_an_occupied_dns_or_socks_port_is_served_without_that_feature() {
    let world = World::two_nodes().unwrap();
    let resolver = resolver(world.outside(), Duration::ZERO);
    let (client, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _taken = [15053, 15080].map(|port| occupy_port(client, port));
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
        expect_answer(client, server.at(family, HTTP));
    }
    thread::sleep(SETTLE);
    assert_eq!(
        sniffer.finish().unwrap().marker_packets,
        0,
        "plaintext crossed the link"
    );
    // Its queries go to the resolver, and those of the neighbour are answered on the node.
    let at = world.outside().at(Family::V4, DNS);
    let mesh_address = vec![IpAddr::V4(Mesh::service(server).v4)];
    for (number, transport) in Transport::ALL.into_iter().enumerate() {
        let resolve = |pod| dns::resolve(pod, at, transport, &server.name, LIMIT).unwrap();
        assert_eq!(resolve(client), [IpAddr::V4(ELSEWHERE)], "{transport:?}");
        assert_eq!(resolver.queries().len(), number + 1, "{transport:?}");
        assert_eq!(resolve(other), mesh_address);
    }
    assertions::assert_all_running(&mut mesh);
}
