//! New pods: the node agent announces a pod, its application begins at once, and the control plane
//! pushes its workload a moment later. What comes in between waits for the workload, by both
//! captures, whether the whole mesh is subscribed or what is asked for.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::control::Resource;
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, Settings, Workload};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Way};

use super::{CLUSTER, Cluster, hostname, pod_uid, workload};
use crate::scene::{self, HTTP, LIMIT, answered, eventually, listed, reset};

/// How long the control plane takes to push the workload.
const LATE: Duration = Duration::from_millis(1500);
/// A wait that no test sees the end of.
const LONG: &str = "60s";
const WAITS: &str = "ztunnel_workload_waits_total";
/// What the resolver outside answers to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// How pods are captured, and what is subscribed.
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
        about_to_come(world, &self.environment(), wait)
    }
}

/// A cluster in which the first pod of node a is about to come: no agent has announced it, and the
/// control plane does not know it. Only node b does, by its settings: it opens tunnels to it. What
/// comes too early waits for so long.
fn about_to_come<'world>(
    world: &'world World,
    environment: &[(&str, &str)],
    wait: &'static str,
) -> Cluster<'world> {
    let new = world.pod("a", 0);
    let known = Workload {
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
            settings.workloads.push(known.clone());
        }
        let new_pods = json!({ "workloadWait": wait });
        settings.extra.insert("newPods".to_owned(), new_pods);
    };
    let mut cluster = Cluster::start_as(world, environment, settings);
    cluster.agents[0].delete(&pod_uid(new)).unwrap();
    cluster.control.state.remove(&resource(world, new));
    eventually("node a has forgotten the pod", || {
        let known = listed(cluster.mesh.proxy("a"), "workloads");
        !known.contains(&new.name)
    });
    cluster
}

fn resource(world: &World, new: &Host) -> Resource {
    Resource::Workload(Box::new(workload(world.node("a"), new)))
}

fn waits(cluster: &mut Cluster<'_>, labels: &[(&str, &str)]) -> f64 {
    let metrics = cluster.mesh.proxy("a").metrics().unwrap();
    metrics.sum(WAITS, labels)
}

#[track_caller]
fn eventually_counted(cluster: &mut Cluster<'_>, labels: &[(&str, &str)], number: f64) {
    eventually(&format!("{number} waits of {labels:?}"), || {
        waits(cluster, labels) >= number
    });
}

/// Has node a hold a service: on demand, names of others are the resolver's.
fn hold_service(neighbour: &Host, server: &Host) {
    answered(neighbour, Mesh::service(server).at(Family::V4, 80));
}

/// A call by name, as `curl http://server/`: the name first, and then its address.
fn call_by_name(from: &Host, server: &Host, (resolver, way): (SocketAddr, Way)) {
    let told = dns::ask(from, resolver, way, &hostname(server), LIMIT).unwrap();
    assert_eq!(told, [IpAddr::V4(Mesh::service(server).v4)], "{way:?}");
    answered(from, SocketAddr::new(told[0], 80));
}

/// Everything at once that a pod does first and that is done with it first.
fn what_comes_first_waits(mode: Mode) {
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
        for way in Way::ALL {
            first.push(scope.spawn(move || call_by_name(new, far, (resolver, way))));
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
                first.push(scope.spawn(move || drop(answered(from, to.at(family, HTTP)))));
            }
        }
        thread::sleep(LATE);
        cluster.control.state.put(&resource(&world, new));
        for one in first {
            one.join().unwrap();
        }
    });
    for kind in ["outbound", "inbound", "dns"] {
        let counted = waits(&mut cluster, &[("kind", kind), ("outcome", "known")]);
        assert!(counted > 0.0, "{mode:?}: nothing {kind} has waited");
    }
    let all = waits(&mut cluster, &[]);
    assert_eq!(
        waits(&mut cluster, &[("outcome", "known")]),
        all,
        "{mode:?}"
    );
    let identity = format!(
        "src.identity=\"spiffe://cluster.local/ns/default/sa/{}\"",
        far.name
    );
    eventually("a tunnel has come to the new pod", || {
        let log = cluster.mesh.proxy("a").log();
        let mut lines = log.lines();
        lines.any(|line| line.contains(&identity) && line.contains("direction=\"inbound\""))
    });
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn what_a_new_pod_does_first_waits_for_its_workload() {
    what_comes_first_waits(Mode::Programs);
}

#[test]
fn what_a_new_pod_does_first_waits_for_its_workload_by_rules() {
    what_comes_first_waits(Mode::Rules);
}

#[test]
fn what_a_new_pod_does_first_waits_for_its_workload_on_demand() {
    what_comes_first_waits(Mode::ProgramsOnDemand);
}

#[test]
fn what_a_new_pod_does_first_waits_for_its_workload_by_rules_on_demand() {
    what_comes_first_waits(Mode::RulesOnDemand);
}

/// A workload that never comes: an error that says what was awaited, and for how long.
fn without_the_workload(mode: Mode) {
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
        for (from, to) in [(new, far), (outside, new), (far, new), (neighbour, new)] {
            reset(from, to.at(family, HTTP));
        }
    }
    for way in Way::ALL {
        let told = dns::ask(new, outside.at(Family::V4, DNS), way, &hostname(far), LIMIT);
        let error = told.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{way:?}: {error}");
    }
    for kind in ["outbound", "inbound", "dns"] {
        eventually_counted(&mut cluster, &[("kind", kind), ("outcome", "expired")], 2.0);
    }
    let proxy = cluster.mesh.proxy("a");
    let awaited = format!(
        "workload {CLUSTER}//Pod/default/{} is not in the mesh",
        new.name
    );
    let line = proxy.wait_for_log(&awaited, LIMIT).unwrap();
    for part in ["within 300ms", "newPods.workloadWait", "clusterId"] {
        assert!(line.contains(part), "{line}");
    }
    // It comes after all.
    cluster.control.state.put(&resource(&world, new));
    scene::answered_soon(new, far.at(Family::V4, HTTP));
    scene::answered_soon(neighbour, new.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn a_pod_whose_workload_never_comes_is_refused_with_a_reason() {
    without_the_workload(Mode::Programs);
}

#[test]
fn a_pod_whose_workload_never_comes_is_refused_with_a_reason_by_rules_on_demand() {
    without_the_workload(Mode::RulesOnDemand);
}

#[test]
fn without_time_to_wait_a_new_pod_is_refused_at_once() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, "0s");
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let _http = far.serve(Kind::Http, HTTP).unwrap();
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    reset(new, far.at(Family::V4, HTTP));
    cluster.control.state.put(&resource(&world, new));
    scene::answered_soon(new, far.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn names_that_are_not_of_the_mesh_do_not_wait() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, outside) = (world.pod("a", 0), world.outside());
    let at = outside.at(Family::V4, DNS);
    let _resolver = Resolver::serve(outside, at, ELSEWHERE, Duration::ZERO).unwrap();
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    for way in Way::ALL {
        for name in [
            "www.example.com",
            "www.example.com.default.svc.cluster.local",
        ] {
            let told = dns::ask(new, at, way, name, LIMIT).unwrap();
            assert_eq!(told, [IpAddr::V4(ELSEWHERE)], "{way:?}");
        }
    }
    assert_eq!(waits(&mut cluster, &[]), 0.0);
    scene::unharmed(&mut cluster.mesh);
}

/// The questions of a pod that may wait at one time.
const MOST_QUESTIONS: u16 = 256;
/// And some more.
const ASKED: u16 = MOST_QUESTIONS + 24;

/// The response code and the id of what comes next.
fn next(socket: &UdpSocket) -> (u8, u16) {
    let mut room = [0; 1024];
    let length = socket.recv(&mut room).unwrap();
    assert!(length >= 12, "{length} bytes");
    (room[3] & 0x0f, u16::from_be_bytes([room[0], room[1]]))
}

#[test]
fn of_the_questions_of_a_new_pod_so_many_wait_and_no_more() {
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
    for id in 0..ASKED {
        socket.send(&dns::query(id, &hostname(far))).unwrap();
        // The server's socket holds fewer than all of them.
        if id % 32 == 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let mut ids = Vec::new();
    for _ in MOST_QUESTIONS..ASKED {
        let (code, id) = next(&socket);
        assert_eq!(code, 2, "question {id} is refused at once");
        ids.push(id);
    }
    let too_many = [("kind", "dns"), ("outcome", "too_many")];
    assert_eq!(
        waits(&mut cluster, &too_many),
        f64::from(ASKED - MOST_QUESTIONS)
    );
    cluster.control.state.put(&resource(&world, new));
    for _ in 0..MOST_QUESTIONS {
        let (code, id) = next(&socket);
        assert_eq!(code, 0, "question {id} has waited");
        ids.push(id);
    }
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..ASKED), "each is answered once");
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn a_client_that_goes_away_gives_its_place_back() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, far, outside) = (world.pod("a", 0), world.pod("b", 0), world.outside());
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    // Outbound, inbound in the clear, and towards a tunnel.
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
    scene::unharmed(&mut cluster.mesh);
}

/// What waits, and is to end although nothing has come.
fn waiting(cluster: &Cluster<'_>, new: &Host, far: &Host) -> TcpStream {
    cluster.agents[0].add(new, &pod_uid(new)).unwrap();
    let to = far.at(Family::V4, HTTP);
    let stream = new.enter(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[track_caller]
fn is_reset(mut stream: TcpStream) {
    let ended = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
}

#[test]
fn what_waits_is_reset_when_the_pod_leaves() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Mode::Programs.cluster(&world, LONG);
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let stream = waiting(&cluster, new, far);
    cluster.agents[0].delete(&pod_uid(new)).unwrap();
    is_reset(stream);
    eventually_counted(&mut cluster, &[("outcome", "leaving")], 1.0);
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn what_waits_does_not_keep_a_proxy_from_ending() {
    let world = World::two_nodes().unwrap();
    let environment = [("CONNECTION_TERMINATION_DEADLINE", LONG)];
    let mut cluster = about_to_come(&world, &environment, LONG);
    let (new, far) = (world.pod("a", 0), world.pod("b", 0));
    let stream = waiting(&cluster, new, far);
    let status = cluster.mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    is_reset(stream);
}
