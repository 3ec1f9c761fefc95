//! A node that is told everything by Istio's protocols: its environment is that of Istio's chart,
//! the mesh comes by delta ADS, certificates from the control plane, pods from the node agent.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::istio::{security, workload};
use serde_json::json;
use ztunnel_tests::control::{ControlPlane, NodeAgent, Resource};
use ztunnel_tests::net::{Family, Host, Node, World};
use ztunnel_tests::proxy::{Mesh, Settings};
use ztunnel_tests::traffic::Kind;

mod demand;
mod new_pods;

use crate::scene::{self, HTTP, LIMIT, answered, answered_soon, eventually, reset};

const CLUSTER: &str = "Kubernetes";

/// The uid that Kubernetes gives a pod, as the node agent names it.
fn pod_uid(pod: &Host) -> String {
    format!("uid-of-{}", pod.name)
}

fn hostname(pod: &Host) -> String {
    format!("{}.default.svc.cluster.local", pod.name)
}

fn workload(node: &Node, pod: &Host) -> workload::Workload {
    let port = workload::Port {
        service_port: 80,
        target_port: u32::from(HTTP),
        app_protocol: 0,
    };
    workload::Workload {
        uid: format!("{CLUSTER}//Pod/default/{}", pod.name),
        name: pod.name.clone(),
        namespace: "default".to_owned(),
        service_account: pod.name.clone(),
        addresses: vec![
            pod.v4.octets().to_vec().into(),
            pod.v6.octets().to_vec().into(),
        ],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        node: node.name().to_owned(),
        cluster_id: CLUSTER.to_owned(),
        services: [(
            format!("default/{}", hostname(pod)),
            workload::PortList { ports: vec![port] },
        )]
        .into(),
        ..workload::Workload::default()
    }
}

fn service(pod: &Host) -> workload::Service {
    let address = Mesh::service(pod);
    let vip = |address: Vec<u8>| workload::NetworkAddress {
        network: String::new(),
        address: address.into(),
        length: None,
    };
    workload::Service {
        name: pod.name.clone(),
        namespace: "default".to_owned(),
        hostname: hostname(pod),
        addresses: vec![
            vip(address.v4.octets().to_vec()),
            vip(address.v6.octets().to_vec()),
        ],
        ports: vec![workload::Port {
            service_port: 80,
            target_port: u32::from(HTTP),
            app_protocol: 0,
        }],
        ..workload::Service::default()
    }
}

/// Refuses one pod everything.
fn deny(pod: &Host) -> Resource {
    let principal = format!("cluster.local/ns/default/sa/{}", pod.name);
    let exact = security::string_match::MatchType::Exact(principal);
    Resource::Policy(Box::new(security::Authorization {
        name: "deny-one".to_owned(),
        namespace: "default".to_owned(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause {
                matches: vec![security::Match {
                    principals: vec![security::StringMatch {
                        match_type: Some(exact),
                    }],
                    ..security::Match::default()
                }],
            }],
        }],
        ..security::Authorization::default()
    }))
}

/// A mesh that nobody but the control plane and the node agents describe.
struct Cluster<'world> {
    mesh: Mesh<'world>,
    control: ControlPlane,
    agents: Vec<NodeAgent>,
}

impl<'world> Cluster<'world> {
    fn start(world: &'world World) -> Self {
        Self::start_with(world, &[])
    }

    /// With more variables in the environment.
    fn start_with(world: &'world World, environment: &[(&str, &str)]) -> Self {
        Self::start_as(world, environment, |_settings| {})
    }

    /// And with other settings.
    fn start_as(
        world: &'world World,
        environment: &[(&str, &str)],
        adjust: impl FnMut(&mut Settings) + 'world,
    ) -> Self {
        let control = ControlPlane::start(world).unwrap();
        for node in world.nodes() {
            for pod in &node.pods {
                let of_pod = Resource::Workload(Box::new(workload(node, pod)));
                control.state.put(&of_pod);
                control
                    .state
                    .put(&Resource::Service(Box::new(service(pod))));
            }
        }
        let bare = |settings: &mut Settings| {
            settings.cluster_id = CLUSTER.to_owned();
            settings.pods.clear();
            settings.workloads.clear();
            settings.services.clear();
            settings.ca = None;
            let socket = world
                .directory()
                .join(format!("agent-{}.sock", settings.node));
            settings
                .extra
                .insert("nodeAgent".to_owned(), json!({ "socket": socket }));
        };
        let mut builder = Mesh::builder(world).settings(bare).settings(adjust);
        for (name, value) in control.environment() {
            builder = builder.environment(&name, &value);
        }
        for (name, value) in environment {
            builder = builder.environment(name, value);
        }
        let mut mesh = builder.prepare().unwrap();
        let agents = world.nodes().iter().map(|node| {
            let name = format!("agent-{}.sock", node.name());
            NodeAgent::listen(&world.directory().join(name)).unwrap()
        });
        let mut agents: Vec<NodeAgent> = agents.collect();
        for (agent, node) in agents.iter_mut().zip(world.nodes()) {
            mesh.proxy(node.name()).launch().unwrap();
            agent.meet().unwrap();
            for pod in &node.pods {
                agent.add(pod, &pod_uid(pod)).unwrap();
            }
            agent.snapshot_sent().unwrap();
            mesh.proxy(node.name()).wait_ready().unwrap();
        }
        Self {
            mesh,
            control,
            agents,
        }
    }
}

#[test]
fn pods_talk_in_tunnels_and_by_service_addresses() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
        answered(client, Mesh::service(server).at(family, 80));
    }
    let line = cluster
        .mesh
        .proxy("b")
        .wait_for_log("connection complete", LIMIT)
        .unwrap();
    assert!(
        line.contains("spiffe://cluster.local/ns/default/sa/a-0"),
        "{line}"
    );
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn a_policy_that_is_pushed_counts_for_new_connections_and_cuts_open_ones() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let to = server.at(Family::V4, HTTP);
    answered(client, to);
    let open = |from: &Host| {
        let mut stream = from.enter(|| std::net::TcpStream::connect(to)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream
    };
    let (mut concerned, unconcerned) = (open(client), open(other));
    cluster.control.state.put(&deny(client));
    let cut = concerned.read(&mut [0; 1024]);
    assert!(
        matches!(&cut, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset),
        "{cut:?}"
    );
    reset(client, to);
    unconcerned
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let left_alone = (&unconcerned).read(&mut [0; 1024]);
    assert!(
        matches!(&left_alone, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "{left_alone:?}"
    );
    answered(other, to);
    cluster
        .mesh
        .proxy("b")
        .wait_for_log(
            "no longer allowed: denied by policy default/deny-one",
            LIMIT,
        )
        .unwrap();
    cluster.control.state.remove(&deny(client));
    answered_soon(client, to);
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn what_is_wrong_in_a_push_is_refused_by_name_and_the_rest_counts() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let garbage = Resource::Garbage("default/garbage".to_owned(), vec![0xff; 9]);
    cluster.control.state.put(&garbage);
    cluster.control.state.put(&deny(client));
    eventually("both nodes refuse the garbage by its name", || {
        let refusals = cluster.control.state.refusals();
        refusals
            .iter()
            .filter(|refusal| refusal.contains("default/garbage"))
            .count()
            >= 2
    });
    eventually("the policy behind it counts", || {
        scene::call(client, server.at(Family::V4, HTTP)).is_err()
    });
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn the_mesh_survives_without_its_control_plane() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    answered(client, server.at(Family::V4, HTTP));
    cluster.control.stop();
    for node in ["a", "b"] {
        cluster
            .mesh
            .proxy(node)
            .wait_for_log("the control plane", LIMIT)
            .unwrap();
    }
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
    }
    // Its certificate was fetched when it was enrolled.
    answered(world.pod("a", 1), server.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn a_pod_that_the_agent_deletes_leaves_and_one_that_it_adds_comes() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let enrolled = |cluster: &mut Cluster<'_>| {
        let metrics = cluster.mesh.proxy("a").metrics().unwrap();
        metrics.sum("istio_active_proxy_count_total", &[])
    };
    eventually("both pods are enrolled", || enrolled(&mut cluster) == 2.0);
    cluster.agents[0].delete(&pod_uid(client)).unwrap();
    eventually("one pod is left", || enrolled(&mut cluster) == 1.0);
    cluster.agents[0].add(client, &pod_uid(client)).unwrap();
    answered_soon(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}

/// As in a DaemonSet's rolling update: the new proxy hears of the mesh from the control plane, of
/// the pods from the agent when it has taken over, and has certificates of its own to get.
#[test]
fn no_request_fails_while_a_proxy_is_replaced_that_istio_tells_everything() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (here, there) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [here, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let ways = [(here, there), (there, here)];
    for (from, to) in ways {
        answered(from, to.at(Family::V4, HTTP));
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = ways.map(|(from, to)| {
            let over = &over;
            scope.spawn(move || {
                let mut answers = 0_u32;
                while !over.load(Ordering::Relaxed) {
                    answered(from, to.at(Family::V4, HTTP));
                    answers += 1;
                }
                answers
            })
        });
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (proxy, agent) = (cluster.mesh.proxy("a"), &mut cluster.agents[0]);
            let mut before = proxy.launch_heir().unwrap();
            agent.meet_heir().unwrap();
            for pod in &world.node("a").pods {
                agent.add(pod, &pod_uid(pod)).unwrap();
            }
            agent.snapshot_sent().unwrap();
            if let Err(error) = proxy.wait_taken_over() {
                let log = proxy.log();
                let lines: Vec<_> = log
                    .lines()
                    .filter(|line| !line.contains("\taccess\t"))
                    .collect();
                panic!("{error:#}\n{}", lines.join("\n"));
            }
            assert!(before.terminate(LIMIT).unwrap().success());
        }));
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let answers = client.join().unwrap();
            assert!(answers > 10, "only {answers} answers");
        }
        replaced.unwrap();
    });
    scene::unharmed(&mut cluster.mesh);
}

/// A process that was to take over dies before it serves. The one before is in charge again, has to be
/// told of its pods anew, and lets none of them out of capture meanwhile.
#[test]
fn who_is_in_charge_again_keeps_the_pods_of_the_agent() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (here, there) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [here, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    answered(here, there.at(Family::V4, HTTP));
    let (proxy, agent) = (cluster.mesh.proxy("a"), &mut cluster.agents[0]);
    let mut heir = proxy.launch_second(&["--take-over"]).unwrap();
    // It has taken charge, and is told of no pod.
    agent.meet_heir().unwrap();
    heir.kill().unwrap();
    proxy.wait_for_log("active again", LIMIT).unwrap();
    agent.meet_heir().unwrap();
    for _ in 0..20 {
        answered(here, there.at(Family::V4, HTTP));
        answered(there, here.at(Family::V4, HTTP));
    }
    for pod in &world.node("a").pods {
        agent.add(pod, &pod_uid(pod)).unwrap();
    }
    agent.snapshot_sent().unwrap();
    answered(there, here.at(Family::V6, HTTP));
    let log = cluster.mesh.proxy("a").log();
    assert!(!log.contains("pod left"), "{log}");
    scene::unharmed(&mut cluster.mesh);
}

/// Where a waypoint is told what was dialled.
const PROXY_PORT: u16 = 15088;

/// The service in front of a pod, behind a waypoint.
fn behind(pod: &Host, waypoint: &Host) -> workload::Service {
    let at = workload::NetworkAddress {
        network: String::new(),
        address: waypoint.v4.octets().to_vec().into(),
        length: None,
    };
    workload::Service {
        waypoint: Some(workload::GatewayAddress {
            destination: Some(workload::gateway_address::Destination::Address(at)),
            hbone_mtls_port: 15008,
        }),
        ..service(pod)
    }
}

/// Takes one connection, tells of the PROXY header it begins with, and answers by itself.
fn answer_as_a_waypoint(
    waypoint: &Host,
    told: std::sync::mpsc::Sender<Vec<u8>>,
) -> std::thread::JoinHandle<()> {
    let listener = waypoint
        .enter(|| std::net::TcpListener::bind(("::", PROXY_PORT)))
        .unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = vec![0; 16];
        stream.read_exact(&mut header).unwrap();
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(16 + rest, 0);
        stream.read_exact(&mut header[16..]).unwrap();
        told.send(header).unwrap();
        stream.write_all(b"from the waypoint").unwrap();
    })
}

#[test]
fn what_dials_a_service_with_a_waypoint_comes_to_the_waypoint() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server, waypoint) = (world.pod("a", 0), world.pod("b", 0), world.pod("b", 1));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let dialled = Mesh::service(server).at(Family::V4, 80);
    answered(client, dialled);

    // A waypoint whose tunnels the node's proxy ends: it is told by a PROXY header what was dialled.
    let (told, heard) = std::sync::mpsc::channel();
    let accepting = answer_as_a_waypoint(waypoint, told);
    let mut workload = workload(world.node("b"), waypoint);
    workload.application_tunnel = Some(workload::ApplicationTunnel {
        protocol: workload::application_tunnel::Protocol::Proxy.into(),
        port: u32::from(PROXY_PORT),
    });
    let state = &cluster.control.state;
    state.put(&Resource::Workload(Box::new(workload)));
    state.put(&Resource::Service(Box::new(behind(server, waypoint))));
    let knows_it = |cluster: &mut Cluster<'_>, node| {
        let dump = cluster.mesh.proxy(node).config_dump().unwrap();
        let services = dump["services"].as_array().cloned().unwrap_or_default();
        services
            .iter()
            .any(|service| !service["waypoint"].is_null())
    };
    for node in ["a", "b"] {
        eventually("the waypoint is known", || knows_it(&mut cluster, node));
    }

    let mut stream = client
        .enter(|| std::net::TcpStream::connect(dialled))
        .unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"from the waypoint");
    let header = heard.recv_timeout(LIMIT).unwrap();
    assert_eq!(header[12..14], [0x21, 0x11], "version 2, TCP over IPv4");
    let std::net::SocketAddr::V4(v4) = dialled else {
        unreachable!()
    };
    assert_eq!(header[20..24], v4.ip().octets(), "the service was dialled");
    assert_eq!(header[26..28], 80_u16.to_be_bytes());
    accepting.join().unwrap();
    // Dialled by its own address the pod is reached directly, as it has no waypoint of its own.
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}
