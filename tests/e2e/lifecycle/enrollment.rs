//! Pods come and go while a node runs: the others do not notice.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Settings, Workload, workload_uid};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::{self, End, Kind, Manner};

use crate::scene::{self, HTTP, LIMIT, MARKER, answered, answered_soon};

/// What the undisturbed say: other words than the sniffer looks for.
const QUIET: &str = "undisturbed";

/// Calls in both families; returns how often the link between the nodes showed the request.
fn crossings(world: &World, client: &Host, server: &Host) -> u64 {
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        let answer = answered(client, server.at(family, HTTP));
        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
    }
    thread::sleep(SETTLE);
    sniffer.finish().unwrap().hits
}

/// Takes a pod out of the mesh, or puts it in again as it was.
fn leave(mesh: &mut Mesh<'_>, pod: &Host) -> Vec<Settings> {
    let mut before = Vec::new();
    let uid = workload_uid(pod);
    mesh.change(|settings| {
        before.push(settings.clone());
        settings.pods.retain(|entry| entry.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    })
    .unwrap();
    for proxy in mesh.proxies() {
        scene::eventually("the change of workloads", || {
            !scene::listed(proxy, "workloads").contains(&pod.name)
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
fn a_pod_leaves_and_comes_back_and_the_others_do_not_notice() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (leaver, stayer, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [leaver, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures = thread::scope(|scope| {
        let load: Vec<_> = Family::BOTH
            .into_iter()
            .flat_map(|family| {
                [load_anew as Load, load_on_one_connection].map(|load| (load, family))
            })
            .map(|(load, family)| {
                let (stop, answers) = (&stop, &answers);
                scope.spawn(move || load(stayer, server.at(family, HTTP), stop, answers))
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            story(&world, &mut mesh, leaver, &answers);
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
    assert!(failures.is_empty(), "the other pod noticed: {failures:?}");
    scene::unharmed(&mut mesh);
}

/// Twice: what a pod leaves behind must not hinder it when it comes back.
fn story(world: &World, mesh: &mut Mesh<'_>, leaver: &Host, answers: &AtomicU64) {
    let server = world.pod("b", 0);
    for round in 0..2 {
        assert_eq!(crossings(world, leaver, server), 0, "round {round}");
        assert_eq!(active(mesh), 2.0);
        let before = leave(mesh, leaver);
        assert!(
            crossings(world, leaver, server) >= 2,
            "round {round}: still captured"
        );
        // Nor is it called through the mesh.
        answered(server, leaver.at(Family::V4, HTTP));
        assert_eq!(active(mesh), 1.0);
        let mut before = before.into_iter();
        mesh.change(|settings| *settings = before.next().unwrap())
            .unwrap();
        scene::eventually("the pod's return", || active(mesh) == 2.0);
        scene::eventually("the workload's return", || {
            scene::listed(mesh.proxy("b"), "workloads").contains(&leaver.name)
        });
        answered_soon(server, leaver.at(Family::V6, HTTP));
        let wanted = answers.load(Ordering::Relaxed) + 20;
        scene::eventually("twenty answers to the other pod", || {
            answers.load(Ordering::Relaxed) >= wanted
        });
    }
    assert_eq!(crossings(world, leaver, server), 0);
}

type Load = fn(&Host, std::net::SocketAddr, &AtomicBool, &AtomicU64) -> std::io::Result<()>;

fn load_anew(
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
    let mut stream = from.enter(|| End::connect(to, Manner::Blocking, LIMIT))?;
    while !stop.load(Ordering::Relaxed) {
        traffic::get_over(&mut stream, QUIET, LIMIT)?;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_pod_whose_namespace_is_missing_is_tried_again_and_the_others_are_served() {
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
        answered(early, server.at(family, HTTP));
    }
    assert_eq!(crossings(&world, early, server), 0);
    let pending = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_pending_proxy_count_total", &[]);
    assert_eq!(pending, 1.0);

    // It appears, as a container runtime would make it, and nobody has to say so.
    symlink(late.namespace.path(), &path).unwrap();
    scene::eventually("the late pod's enrolment", || active(&mut mesh) == 2.0);
    assert_eq!(crossings(&world, late, server), 0);
    let pending = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_pending_proxy_count_total", &[]);
    assert_eq!(pending, 0.0);
    scene::unharmed(&mut mesh);
}

/// A pod that cannot be captured is not served, and that is said; one that was captured before stays
/// so, and refused.
#[test]
fn a_pod_in_which_a_port_of_capture_is_taken_is_tried_again_and_the_others_are_served() {
    let world = World::two_nodes().unwrap();
    let (pod, other, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    answered(pod, server.at(Family::V4, HTTP));
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
            answered(other, server.at(family, HTTP));
        }
        // Captured connections end at 15001, which is the taker's in the first round.
        if port != 15001 {
            let outcome = scene::call(pod, server.at(Family::V6, HTTP));
            assert!(scene::is_refused(&outcome), "{port}: {outcome:?}");
        }
        drop(taken);
        scene::eventually("the pod's enrolment", || active(&mut mesh) == 2.0);
        assert_eq!(crossings(&world, pod, server), 0, "{port}");
    }
    scene::unharmed(&mut mesh);
}

/// A gateway or waypoint that is captured too: tunnels to it are its own, what it opens is captured.
#[test]
fn a_pod_that_speaks_hbone_itself_keeps_its_port_and_is_served() {
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
            answered(client, gateway.at(family, 15008));
        }
        for client in [gateway, other] {
            answered(client, server.at(family, HTTP));
        }
    }
    assert_eq!(own.accepted(), 4);
    assert_eq!(crossings(&world, gateway, server), 0);
    scene::unharmed(&mut mesh);
}

#[test]
fn a_path_that_is_no_namespace_keeps_nobody_from_being_served() {
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
        answered(fine, server.at(family, HTTP));
    }
    scene::unharmed(&mut mesh);
}
