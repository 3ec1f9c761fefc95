//! Pods are enrolled and removed while a node runs, without effects on other pods.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Settings, Workload, workload_uid};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream};

use crate::assertions::{self, HTTP, LIMIT, MARKER, expect_answer, wait_for_answer};

/// The marker of the other pods, for which the sniffer does not search.
const QUIET: &str = "undisturbed";

/// Sends requests in both families. Returns the number of packets with the marker between the
/// nodes.
fn marker_packets_between_nodes(world: &World, client: &Host, server: &Host) -> u64 {
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        let answer = expect_answer(client, server.at(family, HTTP));
        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
    }
    thread::sleep(SETTLE);
    sniffer.finish().unwrap().marker_packets
}

/// Removes a pod from the mesh. Returns the previous settings, for adding it again.
fn remove_pod(mesh: &mut Mesh<'_>, pod: &Host) -> Vec<Settings> {
    let mut before = Vec::new();
    let uid = workload_uid(pod);
    mesh.change(|settings| {
        before.push(settings.clone());
        settings.pods.retain(|entry| entry.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    })
    .unwrap();
    for proxy in mesh.proxies() {
        assertions::eventually("the change of workloads", || {
            !assertions::listed(proxy, "workloads").contains(&pod.name)
        });
    }
    mesh.proxy("a").wait_for_log("pod left", LIMIT).unwrap();
    before
}

fn active(mesh: &mut Mesh<'_>) -> f64 {
    mesh.proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_active_proxy_count_total", &[])
}

#[test]
fn removing_and_adding_a_pod_does_not_affect_others() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (leaver, stayer, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [leaver, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures = thread::scope(|scope| {
        let load: Vec<_> = Family::BOTH
            .into_iter()
            .flat_map(|family| {
                [load_with_new_connections as Load, load_on_one_connection]
                    .map(|load| (load, family))
            })
            .map(|(load, family)| {
                let (stop, answers) = (&stop, &answers);
                scope.spawn(move || load(stayer, server.at(family, HTTP), stop, answers))
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            remove_and_add_twice(&world, &mut mesh, leaver, &answers);
        }));
        stop.store(true, Ordering::Relaxed);
        let failures: Vec<_> = load
            .into_iter()
            .filter_map(|one| one.join().unwrap().err())
            .collect();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        failures
    });
    assert!(
        failures.is_empty(),
        "requests of the other pod failed: {failures:?}"
    );
    assertions::assert_all_running(&mut mesh);
}

/// Twice: the removed pod must not leave anything that prevents its return.
fn remove_and_add_twice(world: &World, mesh: &mut Mesh<'_>, leaver: &Host, answers: &AtomicU64) {
    let server = world.pod("b", 0);
    for round in 0..2 {
        assert_eq!(
            marker_packets_between_nodes(world, leaver, server),
            0,
            "round {round}"
        );
        assert_eq!(active(mesh), 2.0);
        let before = remove_pod(mesh, leaver);
        assert!(
            marker_packets_between_nodes(world, leaver, server) >= 2,
            "round {round}: still captured"
        );
        // The pod is not reached through the mesh, either.
        expect_answer(server, leaver.at(Family::V4, HTTP));
        assert_eq!(active(mesh), 1.0);
        let mut before = before.into_iter();
        mesh.change(|settings| *settings = before.next().unwrap())
            .unwrap();
        assertions::eventually("the pod's return", || active(mesh) == 2.0);
        assertions::eventually("the workload's return", || {
            assertions::listed(mesh.proxy("b"), "workloads").contains(&leaver.name)
        });
        wait_for_answer(server, leaver.at(Family::V6, HTTP));
        let wanted = answers.load(Ordering::Relaxed) + 20;
        assertions::eventually("twenty answers to the other pod", || {
            answers.load(Ordering::Relaxed) >= wanted
        });
    }
    assert_eq!(marker_packets_between_nodes(world, leaver, server), 0);
}

type Load = fn(&Host, std::net::SocketAddr, &AtomicBool, &AtomicU64) -> std::io::Result<()>;

fn load_with_new_connections(
    from: &Host,
    to: std::net::SocketAddr,
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> std::io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let answer = from.enter(|| traffic::get(to, QUIET, LIMIT))?;
        assert_eq!(
            answer.peer.ip().to_canonical(),
            answer.client_local.ip().to_canonical()
        );
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn load_on_one_connection(
    from: &Host,
    to: std::net::SocketAddr,
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> std::io::Result<()> {
    let mut stream = from.enter(|| Stream::connect(to, IoMode::Blocking, LIMIT))?;
    while !stop.load(Ordering::Relaxed) {
        traffic::get_over(&mut stream, QUIET, LIMIT)?;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_pod_without_its_namespace_is_retried_while_others_are_served() {
    let world = World::two_nodes().unwrap();
    let (late, early, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let path = world.directory().join("late");
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            for pod in &mut settings.pods {
                if pod.workload == workload_uid(late) {
                    path.clone_into(&mut pod.netns);
                }
            }
        })
        .start()
        .unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let line = mesh
        .proxy("a")
        .wait_for_log("cannot enroll the pod", LIMIT)
        .unwrap();
    assert!(
        line.contains(&workload_uid(late)) && line.contains("late"),
        "{line}"
    );
    for family in Family::BOTH {
        expect_answer(early, server.at(family, HTTP));
    }
    assert_eq!(marker_packets_between_nodes(&world, early, server), 0);
    let pending = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_pending_proxy_count_total", &[]);
    assert_eq!(pending, 1.0);

    // The namespace is created later, as by a container runtime, and the proxy finds it without a
    // notification.
    symlink(late.namespace.path(), &path).unwrap();
    assertions::eventually("the late pod's enrolment", || active(&mut mesh) == 2.0);
    assert_eq!(marker_packets_between_nodes(&world, late, server), 0);
    let pending = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_pending_proxy_count_total", &[]);
    assert_eq!(pending, 0.0);
    assertions::assert_all_running(&mut mesh);
}

/// A pod that cannot be captured is not served, and the reason is logged. A pod that was captured
/// before stays captured, and its connections are refused.
#[test]
fn a_pod_with_an_occupied_capture_port_is_retried_while_others_are_served() {
    let world = World::two_nodes().unwrap();
    let (pod, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    expect_answer(pod, server.at(Family::V4, HTTP));
    for port in [15001, 15006, 15008] {
        mesh.proxy("a").terminate(LIMIT).unwrap();
        let taken = pod.serve(Kind::Http, port).unwrap();
        mesh.proxy("a").start().unwrap();
        let line = mesh
            .proxy("a")
            .wait_for_log(&format!(":{port} in the pod's network namespace"), LIMIT)
            .unwrap();
        assert!(
            line.contains("\terror\t") && line.contains(&workload_uid(pod)),
            "{line}"
        );
        assert_eq!(active(&mut mesh), 1.0, "{port}");
        for family in Family::BOTH {
            expect_answer(other, server.at(family, HTTP));
        }
        // Captured connections lead to port 15001, which the other process occupies in the first
        // round.
        if port != 15001 {
            let outcome = assertions::call(pod, server.at(Family::V6, HTTP));
            assert!(assertions::is_refused(&outcome), "{port}: {outcome:?}");
        }
        drop(taken);
        assertions::eventually("the pod's enrolment", || active(&mut mesh) == 2.0);
        assert_eq!(
            marker_packets_between_nodes(&world, pod, server),
            0,
            "{port}"
        );
    }
    assertions::assert_all_running(&mut mesh);
}

/// A captured gateway or waypoint: it terminates tunnels itself, and its outbound connections are
/// captured.
#[test]
fn a_pod_that_terminates_hbone_keeps_its_port() {
    let world = World::two_nodes().unwrap();
    let (gateway, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let own = gateway.serve(Kind::Http, 15008).unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            let speaks = |workload: &&mut Workload| workload.uid == workload_uid(gateway);
            if let Some(workload) = settings.workloads.iter_mut().find(speaks) {
                let native = ("nativeTunnel".to_owned(), true.into());
                workload.extra.extend([native]);
            }
        })
        .start()
        .unwrap();
    assert_eq!(active(&mut mesh), 2.0);
    for family in Family::BOTH {
        for client in [world.outside(), &world.node("a").host] {
            expect_answer(client, gateway.at(family, 15008));
        }
        for client in [gateway, other] {
            expect_answer(client, server.at(family, HTTP));
        }
    }
    assert_eq!(own.accepted(), 4);
    assert_eq!(marker_packets_between_nodes(&world, gateway, server), 0);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_path_that_is_not_a_namespace_does_not_affect_other_pods() {
    let world = World::two_nodes().unwrap();
    let (broken, fine, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let path = world.directory().join("no-namespace");
    std::fs::write(&path, "no namespace").unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            for pod in &mut settings.pods {
                if pod.workload == workload_uid(broken) {
                    path.clone_into(&mut pod.netns);
                }
            }
        })
        .start()
        .unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    mesh.proxy("a")
        .wait_for_log("cannot enroll the pod", LIMIT)
        .unwrap();
    for family in Family::BOTH {
        expect_answer(fine, server.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}
