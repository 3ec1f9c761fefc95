//! A node that is configured by Istio's protocols only: the environment of Istio's chart, the mesh
//! over delta ADS, certificates from the control plane, pods from the node agent.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::istio::{security, workload};
use serde_json::json;
use ztunnel_tests::control::{ControlPlane, NodeAgent, Resource};
use ztunnel_tests::net::{Family, Host, Node, World};
use ztunnel_tests::proxy::{Mesh, Settings};
use ztunnel_tests::traffic::Kind;

mod dynamic_enrollment;
mod new_pods;
mod on_demand;
mod rules_beside_programs;

use crate::assertions::{self, HTTP, LIMIT, eventually, expect_answer, reset, wait_for_answer};

const CLUSTER: &str = "Kubernetes";

/// The Kubernetes uid of a pod, as the node agent sends it.
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

/// A policy that denies all connections of one pod.
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

/// A mesh that is configured only by a control plane and node agents.
struct Cluster<'world> {
    mesh: Mesh<'world>,
    control: ControlPlane,
    agents: Vec<NodeAgent>,
}

impl<'world> Cluster<'world> {
    fn start(world: &'world World) -> Self {
        Self::start_with(world, &[])
    }

    /// Starts with additional environment variables.
    fn start_with(world: &'world World, environment: &[(&str, &str)]) -> Self {
        Self::start_as(world, environment, |_settings| {})
    }

    /// Starts with additional environment variables and changed settings.
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
            // By default programs need a BPF file system of the node; these proxies mount their own.
            let by = json!("programs");
            settings.capture.extra.insert("by".to_owned(), by);
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
            agent.accept_proxy().unwrap();
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
fn pods_communicate_in_tunnels_and_by_service_addresses() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
        expect_answer(client, Mesh::service(server).at(family, 80));
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
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn a_pushed_policy_denies_new_connections_and_terminates_open_ones() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let to = server.at(Family::V4, HTTP);
    expect_answer(client, to);
    let open = |from: &Host| {
        let mut stream = from.enter(|| std::net::TcpStream::connect(to)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream
    };
    let (mut affected, unaffected) = (open(client), open(other));
    cluster.control.state.put(&deny(client));
    let outcome = affected.read(&mut [0; 1024]);
    assert!(
        matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset),
        "{outcome:?}"
    );
    reset(client, to);
    unaffected
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let left_alone = (&unaffected).read(&mut [0; 1024]);
    assert!(
        matches!(&left_alone, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "{left_alone:?}"
    );
    expect_answer(other, to);
    cluster
        .mesh
        .proxy("b")
        .wait_for_log(
            "no longer allowed: denied by policy default/deny-one",
            LIMIT,
        )
        .unwrap();
    cluster.control.state.remove(&deny(client));
    wait_for_answer(client, to);
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn invalid_resources_of_a_push_are_refused_and_the_others_are_applied() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let garbage = Resource::Invalid("default/garbage".to_owned(), vec![0xff; 9]);
    cluster.control.state.put(&garbage);
    cluster.control.state.put(&deny(client));
    eventually("both nodes refuse the invalid resource by its name", || {
        let refusals = cluster.control.state.refusals();
        refusals
            .iter()
            .filter(|refusal| refusal.contains("default/garbage"))
            .count()
            >= 2
    });
    eventually("the policy after it is enforced", || {
        assertions::call(client, server.at(Family::V4, HTTP)).is_err()
    });
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn the_mesh_works_while_the_control_plane_is_down() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    cluster.control.stop();
    for node in ["a", "b"] {
        cluster
            .mesh
            .proxy(node)
            .wait_for_log("the control plane", LIMIT)
            .unwrap();
    }
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
    }
    // Its certificate was fetched when the pod was enrolled.
    expect_answer(world.pod("a", 1), server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn pods_are_enrolled_and_removed_by_the_node_agent() {
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
    eventually("one pod is still enrolled", || {
        enrolled(&mut cluster) == 1.0
    });
    cluster.agents[0].add(client, &pod_uid(client)).unwrap();
    wait_for_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}

/// As in a rolling update of a DaemonSet: the new proxy gets the mesh from the control plane, the
/// pods from the agent after it has taken over, and its own certificates.
#[test]
fn no_request_fails_during_an_upgrade_with_istios_protocols() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (here, there) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [here, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let ways = [(here, there), (there, here)];
    for (from, to) in ways {
        expect_answer(from, to.at(Family::V4, HTTP));
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = ways.map(|(from, to)| {
            let over = &over;
            scope.spawn(move || {
                let mut answers = 0_u32;
                while !over.load(Ordering::Relaxed) {
                    expect_answer(from, to.at(Family::V4, HTTP));
                    answers += 1;
                }
                answers
            })
        });
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (proxy, agent) = (cluster.mesh.proxy("a"), &mut cluster.agents[0]);
            let mut before = proxy.launch_standby().unwrap();
            agent.accept_standby().unwrap();
            for pod in &world.node("a").pods {
                agent.add(pod, &pod_uid(pod)).unwrap();
            }
            agent.snapshot_sent().unwrap();
            if let Err(error) = proxy.wait_for_takeover() {
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
    assertions::assert_all_running(&mut cluster.mesh);
}

/// A standby is killed before it serves. The previous proxy is active again, receives its pods from
/// the agent again, and keeps all of them captured in the meantime.
#[test]
fn a_proxy_that_is_active_again_keeps_the_pods_of_the_agent() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (here, there) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [here, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    expect_answer(here, there.at(Family::V4, HTTP));
    let (proxy, agent) = (cluster.mesh.proxy("a"), &mut cluster.agents[0]);
    let mut standby = proxy.launch_another(&["--take-over"]).unwrap();
    // The standby has taken over and has no pods yet.
    agent.accept_standby().unwrap();
    standby.kill().unwrap();
    proxy.wait_for_log("active again", LIMIT).unwrap();
    agent.accept_standby().unwrap();
    for _ in 0..20 {
        expect_answer(here, there.at(Family::V4, HTTP));
        expect_answer(there, here.at(Family::V4, HTTP));
    }
    for pod in &world.node("a").pods {
        agent.add(pod, &pod_uid(pod)).unwrap();
    }
    agent.snapshot_sent().unwrap();
    expect_answer(there, here.at(Family::V6, HTTP));
    let log = cluster.mesh.proxy("a").log();
    assert!(!log.contains("pod left"), "{log}");
    assertions::assert_all_running(&mut cluster.mesh);
}

/// The port on which the waypoint receives the PROXY header with the dialled address.
const PROXY_PORT: u16 = 15088;

/// The service of a pod, behind a waypoint.
fn service_with_waypoint(pod: &Host, waypoint: &Host) -> workload::Service {
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

/// Accepts one connection, returns the PROXY header at its beginning, and sends its own answer.
fn serve_as_waypoint(
    waypoint: &Host,
    sender: std::sync::mpsc::Sender<Vec<u8>>,
) -> std::thread::JoinHandle<()> {
    let bind = || std::net::TcpListener::bind(("::", PROXY_PORT));
    let listener = waypoint.enter(bind).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = vec![0; 16];
        stream.read_exact(&mut header).unwrap();
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(16 + rest, 0);
        stream.read_exact(&mut header[16..]).unwrap();
        sender.send(header).unwrap();
        stream.write_all(b"from the waypoint").unwrap();
    })
}

#[test]
fn connections_to_a_service_with_a_waypoint_go_to_the_waypoint() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server, waypoint) = (world.pod("a", 0), world.pod("b", 0), world.pod("b", 1));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let dialled = Mesh::service(server).at(Family::V4, 80);
    expect_answer(client, dialled);

    // A waypoint whose tunnels the node's proxy terminates. A PROXY header contains the dialled
    // address.
    let (sender, headers) = std::sync::mpsc::channel();
    let accepting = serve_as_waypoint(waypoint, sender);
    let mut workload = workload(world.node("b"), waypoint);
    workload.application_tunnel = Some(workload::ApplicationTunnel {
        protocol: workload::application_tunnel::Protocol::Proxy.into(),
        port: u32::from(PROXY_PORT),
    });
    let state = &cluster.control.state;
    state.put(&Resource::Workload(Box::new(workload)));
    state.put(&Resource::Service(Box::new(service_with_waypoint(
        server, waypoint,
    ))));
    let has_waypoint = |cluster: &mut Cluster<'_>, node| {
        let dump = cluster.mesh.proxy(node).config_dump().unwrap();
        let services = dump["services"].as_array().cloned().unwrap_or_default();
        services
            .iter()
            .any(|service| !service["waypoint"].is_null())
    };
    for node in ["a", "b"] {
        eventually("the waypoint has arrived", || {
            has_waypoint(&mut cluster, node)
        });
    }

    let mut stream = client
        .enter(|| std::net::TcpStream::connect(dialled))
        .unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"from the waypoint");
    let header = headers.recv_timeout(LIMIT).unwrap();
    assert_eq!(header[12..14], [0x21, 0x11], "version 2, TCP over IPv4");
    let std::net::SocketAddr::V4(v4) = dialled else {
        unreachable!()
    };
    assert_eq!(
        header[20..24],
        v4.ip().octets(),
        "the address of the service"
    );
    assert_eq!(header[26..28], 80_u16.to_be_bytes());
    accepting.join().unwrap();
    // Connections to the pod's own address do not use the waypoint, which is the service's.
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}
