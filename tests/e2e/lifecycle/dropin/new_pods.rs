//! New pods: the node agent announces a pod, its application starts at once, and the control plane
//! pushes the pod's workload a moment later. Connections and queries in between wait for the
//! workload, with both kinds of capture, with a full and with an on-demand subscription.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::control::Resource;
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, Settings, Workload};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Transport};

use super::{CLUSTER, Cluster, hostname, pod_uid, workload};
use crate::assertions::{self, HTTP, LIMIT, eventually, expect_answer, listed, reset};

/// The delay until the control plane pushes the workload.
const LATE: Duration = Duration::from_millis(1500);
/// A wait that is longer than any test.
const LONG: &str = "60s";
const WAITS: &str = "ztunnel_workload_waits_total";
/// The answer of the resolver outside to every query.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// The capture and the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Programs,
    Rules,
    ProgramsOnDemand,
    RulesOnDemand,
}

impl Mode {
    fn environment(self) -> Vec<(&'static str, &'static str)> {
        let rules = matches!(self, Self::Rules | Self::RulesOnDemand);
        let on_demand = matches!(self, Self::ProgramsOnDemand | Self::RulesOnDemand);
        let rules = rules.then_some(("ZTUNNEL_CAPTURE_BY", "rules"));
        let on_demand = on_demand.then_some(("XDS_ON_DEMAND", "true"));
        rules.into_iter().chain(on_demand).collect()
    }

    fn cluster<'world>(self, world: &'world World, wait: &'static str) -> Cluster<'world> {
        if matches!(self, Self::Rules | Self::RulesOnDemand) {
            for pod in world.nodes().iter().flat_map(|node| &node.pods) {
                Rules::IptablesNft.install(pod).unwrap();
            }
        }
        cluster_with_future_pod(world, &self.environment(), wait)
    }
}

/// A cluster into which the first pod of node a comes later: no agent has announced it, and the
/// control plane does not have it. Only node b has it in its settings and opens tunnels to it.
/// Early connections wait for up to `wait`.
fn cluster_with_future_pod<'world>(
    world: &'world World,
    environment: &[(&str, &str)],
    wait: &'static str,
) -> Cluster<'world> {
    let new = world.pod("a", 0);
    let held = Workload {
        uid: format!("{CLUSTER}//Pod/default/{}", new.name),
        name: new.name.clone(),
        namespace: "default".to_owned(),
        service_account: new.name.clone(),
        workload_ips: vec![new.v4.into(), new.v6.into()],
        protocol: "HBONE".to_owned(),
        node: "a".to_owned(),
        services: [].into(),
        authorization_policies: Vec::new(),
        extra: [].into(),
    };
    let settings = move |settings: &mut Settings| {
        if settings.node == "b" {
            settings.workloads.push(held.clone());
        }
        let new_pods = json!({ "workloadWait": wait });
        settings.extra.insert("newPods".to_owned(), new_pods);
    };
    let mut cluster = Cluster::start_as(world, environment, settings);
    cluster.agents[0].delete(&pod_uid(new)).unwrap();
    cluster.control.state.remove(&resource(world, new));
    eventually("node a has removed the pod", || {
        let held = listed(cluster.mesh.proxy("a"), "workloads");
        !held.contains(&new.name)
    });
    cluster
}

fn resource(world: &World, new: &Host) -> Resource {
    Resource::Workload(Box::new(workload(world.node("a"), new)))
}

fn wait_count(cluster: &mut Cluster<'_>, labels: &[(&str, &str)]) -> f64 {
    let metrics = cluster.mesh.proxy("a").metrics().unwrap();
    metrics.sum(WAITS, labels)
}

#[track_caller]
fn eventually_counted(cluster: &mut Cluster<'_>, labels: &[(&str, &str)], number: f64) {
    eventually(&format!("{number} waits of {labels:?}"), || {
        wait_count(cluster, labels) >= number
    });
}

/// Makes node a hold a service. On demand, queries for unknown names go to the resolver.
fn hold_service(neighbour: &Host, server: &Host) {
    expect_answer(neighbour, Mesh::service(server).at(Family::V4, 80));
}

/// Resolves a name and sends a request, as `curl http://server/` does.
fn request_by_name(from: &Host, server: &Host, (resolver, transport): (SocketAddr, Transport)) {
    let addresses = dns::resolve(from, resolver, transport, &hostname(server), LIMIT).unwrap();
    assert_eq!(
        addresses,
        [IpAddr::V4(Mesh::service(server).v4)],
        "{transport:?}"
    );
    expect_answer(from, SocketAddr::new(addresses[0], 80));
}

/// The first connections from and to a new pod, and its first queries, all at once.
fn first_connections_wait(mode: Mode) {
    let world = World::two_nodes().unwrap();
    let mut cluster = mode.cluster(&world, "12s");
    let (new, neighbour, far) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let outside = world.outside();
    let _servers = [new, far, outside].map(|host| host.serve(Kind::Http, HTTP).unwrap());
    let resolver = outside.at(Family::V4, DNS);
    hold_service(neighbour, far);

    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    thread::scope(|scope| {
        let mut first = Vec::new();
        for transport in Transport::ALL {
            first.push(scope.spawn(move || request_by_name(new, far, (resolver, transport))));
        }
        for family in Family::BOTH {
            let pairs = [
                (new, far),
                (new, outside),
                (outside, new),
                (far, new),
                (neighbour, new),
            ];
            for (from, to) in pairs {
                first.push(scope.spawn(move || drop(expect_answer(from, to.at(family, HTTP)))));
            }
        }
        thread::sleep(LATE);
        cluster.control.state.put(&resource(&world, new));
        for one in first {
            one.join().unwrap();
        }
    });
    for kind in ["outbound", "inbound", "dns"] {
        let counted = wait_count(&mut cluster, &[("kind", kind), ("outcome", "known")]);
        assert!(counted > 0.0, "{mode:?}: nothing {kind} has waited");
    }
    let all = wait_count(&mut cluster, &[]);
    assert_eq!(
        wait_count(&mut cluster, &[("outcome", "known")]),
        all,
        "{mode:?}"
    );
    let identity = format!(
        "src.identity=\"spiffe://cluster.local/ns/default/sa/{}\"",
        far.name
    );
    eventually("a tunnel to the new pod was opened", || {
        let log = cluster.mesh.proxy("a").log();
        let mut lines = log.lines();
        lines.any(|line| line.contains(&identity) && line.contains("direction=\"inbound\""))
    });
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn connections_and_queries_of_a_new_pod_wait_for_its_workload() {
    first_connections_wait(Mode::Programs);
}

#[test]
fn connections_and_queries_of_a_new_pod_wait_for_its_workload_with_rules() {
    first_connections_wait(Mode::Rules);
}

#[test]
fn connections_and_queries_of_a_new_pod_wait_for_its_workload_on_demand() {
    first_connections_wait(Mode::ProgramsOnDemand);
}

#[test]
fn connections_and_queries_of_a_new_pod_wait_for_its_workload_with_rules_on_demand() {
    first_connections_wait(Mode::RulesOnDemand);
}

/// A workload that never arrives: the pod's own connections and queries go on with the identity that
/// the node agent has announced. Connections to it are refused, because its policies are not known;
/// the error contains what was awaited and for how long.
fn workload_never_arrives(mode: Mode) {
    let world = World::two_nodes().unwrap();
    let mut cluster = mode.cluster(&world, "300ms");
    let (new, neighbour, far) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let outside = world.outside();
    let _servers = [new, far].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    hold_service(neighbour, far);
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    let ready = cluster.mesh.proxy("a").readiness().unwrap();
    assert_eq!(ready.0, 200, "readiness does not wait: {ready:?}");
    for family in Family::BOTH {
        for (from, to) in [(outside, new), (far, new), (neighbour, new)] {
            reset(from, to.at(family, HTTP));
        }
        expect_answer(new, far.at(family, HTTP));
    }
    let resolver = outside.at(Family::V4, DNS);
    for transport in Transport::ALL {
        request_by_name(new, far, (resolver, transport));
    }
    let identity = format!("sa/{}", new.name);
    eventually("the announced identity reaches the destination", || {
        let log = cluster.mesh.proxy("b").log();
        log.lines()
            .any(|line| line.contains(&identity) && line.contains("inbound"))
    });
    eventually_counted(
        &mut cluster,
        &[("kind", "inbound"), ("outcome", "expired")],
        2.0,
    );
    // One after another, the calls wait once on each of the workers.
    let labels = [("kind", "outbound"), ("outcome", "expired")];
    let expired = wait_count(&mut cluster, &labels);
    assert!((1.0..=4.0).contains(&expired), "{expired}");
    let proxy = cluster.mesh.proxy("a");
    let awaited = format!(
        "workload {CLUSTER}//Pod/default/{} is not in the mesh",
        new.name
    );
    let line = proxy.wait_for_log(&awaited, LIMIT).unwrap();
    for part in ["within 300ms", "newPods.workloadWait", "clusterId"] {
        assert!(line.contains(part), "{line}");
    }
    // The workload arrives after all.
    cluster.control.state.put(&resource(&world, new));
    assertions::wait_for_answer(new, far.at(Family::V4, HTTP));
    assertions::wait_for_answer(neighbour, new.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn a_pod_without_a_workload_is_a_client_and_no_server() {
    workload_never_arrives(Mode::Programs);
}

#[test]
fn a_pod_without_a_workload_is_a_client_and_no_server_with_rules_on_demand() {
    workload_never_arrives(Mode::RulesOnDemand);
}

#[test]
fn with_a_wait_of_zero_a_new_pod_is_a_client_at_once_and_no_server() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, "0s");
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let _http = far.serve(Kind::Http, HTTP).unwrap();
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    let _server = new.serve(Kind::Http, HTTP).unwrap();
    expect_answer(new, far.at(Family::V4, HTTP));
    reset(far, new.at(Family::V4, HTTP));
    cluster.control.state.put(&resource(&world, new));
    assertions::wait_for_answer(far, new.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn queries_for_names_outside_the_mesh_do_not_wait() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, outside) = (world.pod("a", 0), world.outside());
    let at = outside.at(Family::V4, DNS);
    let _resolver = Resolver::serve(outside, at, ELSEWHERE, Duration::ZERO).unwrap();
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    for transport in Transport::ALL {
        for name in [
            "www.example.com",
            "www.example.com.default.svc.cluster.local",
        ] {
            let addresses = dns::resolve(new, at, transport, name, LIMIT).unwrap();
            assert_eq!(addresses, [IpAddr::V4(ELSEWHERE)], "{transport:?}");
        }
    }
    assert_eq!(wait_count(&mut cluster, &[]), 0.0);
    assertions::assert_all_running(&mut cluster.mesh);
}

/// The largest number of waiting queries of a pod.
const MAX_WAITING_QUERIES: u16 = 256;
/// The number of queries that the test sends.
const QUERIES: u16 = MAX_WAITING_QUERIES + 24;

/// The response code and the id of the next response.
fn next(socket: &UdpSocket) -> (u8, u16) {
    let mut room = [0; 1024];
    let length = socket.recv(&mut room).unwrap();
    assert!(length >= 12, "{length} bytes");
    (room[3] & 0x0f, u16::from_be_bytes([room[0], room[1]]))
}

#[test]
fn the_number_of_waiting_queries_of_a_pod_is_limited() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    let at = world.outside().at(Family::V4, DNS);
    let socket = new.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(at).unwrap();
        socket
    });
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    for id in 0..QUERIES {
        socket.send(&dns::query(id, &hostname(far))).unwrap();
        // The receive queue of the server's socket is smaller than that.
        if id % 32 == 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let mut ids = Vec::new();
    for _ in MAX_WAITING_QUERIES..QUERIES {
        let (code, id) = next(&socket);
        assert_eq!(code, 2, "query {id} is refused at once");
        ids.push(id);
    }
    let too_many = [("kind", "dns"), ("outcome", "too_many")];
    assert_eq!(
        wait_count(&mut cluster, &too_many),
        f64::from(QUERIES - MAX_WAITING_QUERIES)
    );
    cluster.control.state.put(&resource(&world, new));
    for _ in 0..MAX_WAITING_QUERIES {
        let (code, id) = next(&socket);
        assert_eq!(code, 0, "query {id} has waited");
        ids.push(id);
    }
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..QUERIES), "each is answered once");
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn a_closed_client_frees_its_place_among_the_waiting() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, far, outside) = (world.pod("a", 0), world.pod("b", 0), world.outside());
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    // Outbound, inbound plaintext, and inbound tunnel.
    let calls = [
        (new, far.at(Family::V4, HTTP), "outbound", 1.0),
        (outside, new.at(Family::V4, HTTP), "inbound", 1.0),
        (outside, new.at(Family::V6, 15008), "inbound", 2.0),
    ];
    for (from, to, kind, number) in calls {
        drop(from.enter(|| TcpStream::connect(to)).unwrap());
        let gone = [("kind", kind), ("outcome", "client_gone")];
        eventually_counted(&mut cluster, &gone, number);
    }
    assertions::assert_all_running(&mut cluster.mesh);
}

/// A connection that waits and must end although no workload has arrived.
fn waiting(cluster: &Cluster<'_>, new: &Host, far: &Host) -> TcpStream {
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    let to = far.at(Family::V4, HTTP);
    let stream = new.enter(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[track_caller]
fn assert_reset(mut stream: TcpStream) {
    let ended = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
}

#[test]
fn waiting_connections_are_reset_when_the_pod_is_removed() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let stream = waiting(&cluster, new, far);
    cluster.agents[0].delete(&pod_uid(new)).unwrap();
    assert_reset(stream);
    eventually_counted(&mut cluster, &[("outcome", "leaving")], 1.0);
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn waiting_connections_do_not_delay_the_end_of_a_proxy() {
    let world = World::two_nodes().unwrap();
    let environment = [("CONNECTION_TERMINATION_DEADLINE", LONG)];
    let mut cluster = cluster_with_future_pod(&world, &environment, LONG);
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let stream = waiting(&cluster, new, far);
    let status = cluster.mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    assert_reset(stream);
}
