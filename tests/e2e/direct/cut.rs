//! A connection that is under way when it stops being allowed is ended, soon, with a reset at
//! both ends; the ones that are still allowed do not notice.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene, bypasses_the_proxy};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Settings, workload_uid};
use ztunnel_tests::traffic::{End, Kind};

use crate::proof::{
    PATIENCE, PORT, SOON, about, ask, change, cut, eventually, quiet, speak, strict, tunnel_inside,
    unharmed,
};

/// What becomes of the first client's next connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// They are refused.
    Refused,
    /// They are the proxy's, each of them.
    Tunnelled,
}

/// Connections of a client by pod and by service address, in both families.
fn open(scene: &Scene, client: usize, listener: &TcpListener) -> Vec<(End, End)> {
    let service = Mesh::service(scene.server());
    let families = Family::BOTH.into_iter();
    families
        .flat_map(|family| [scene.server().at(family, PORT), service.at(family, 80)])
        .map(|to| {
            let from = scene.clients()[client];
            let pair = scene.connect_from(from, to, listener).unwrap();
            speak(&pair);
            pair
        })
        .collect()
}

/// Makes a change that concerns the first client alone, and looks at what is open and at what
/// comes next.
fn concerns_one_of_two(
    lane: Lane,
    before: impl Fn(&Scene, &mut Settings),
    after: impl Fn(&Scene, &mut Settings),
    next: Next,
) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene
        .mesh()
        .settings(|settings| before(&scene, settings))
        .start()
        .unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let mut concerned = open(&scene, 0, &listener);
    let unconcerned = open(&scene, 1, &listener);

    change(&mut mesh, |settings| after(&scene, settings));
    for pair in &mut concerned {
        let case = format!("{:?}", pair.0.peer_addr());
        cut(pair, &case);
    }
    for pair in &unconcerned {
        speak(pair);
    }
    drop(listener);
    // A process that is just being started may hold a copy of the listener for a moment.
    let _http = eventually("the port is free", || scene.serve(Kind::Http, PORT).ok());
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        for _ in 0..3 {
            match (next, ask(&scene, scene.client(), to)) {
                (Next::Refused, Err(_)) => {}
                (Next::Tunnelled, Ok(asked)) if !asked.direct => {}
                (_, other) => panic!("{to}: {:?}", other.map(|asked| asked.direct)),
            }
        }
        scene.get_from(scene.clients()[1], to, "as before").unwrap();
    }
    unharmed(&mut mesh);
}

on_lanes!(a_deny_that_is_added: direct, joined, auto);
fn a_deny_that_is_added(lane: Lane) {
    concerns_one_of_two(
        lane,
        |_, _| {},
        |scene, settings| {
            let deny = about(scene.client(), "no-longer", "Deny");
            settings.policies.push(deny);
        },
        Next::Refused,
    );
}

on_lanes!(an_allow_that_is_taken_away: direct, joined);
fn an_allow_that_is_taken_away(lane: Lane) {
    concerns_one_of_two(
        lane,
        |scene, settings| {
            for (client, name) in scene.clients().into_iter().zip(["one", "other"]) {
                settings.policies.push(about(client, name, "Allow"));
            }
        },
        |_, settings| settings.policies.retain(|policy| policy.name == "other"),
        Next::Refused,
    );
}

on_lanes!(a_client_that_gets_another_service_account: direct, joined);
fn a_client_that_gets_another_service_account(lane: Lane) {
    concerns_one_of_two(
        lane,
        |scene, settings| {
            for (client, name) in scene.clients().into_iter().zip(["one", "other"]) {
                settings.policies.push(about(client, name, "Allow"));
            }
        },
        |scene, settings| {
            for workload in &mut settings.workloads {
                if workload.name == scene.client().name {
                    "somebody-else".clone_into(&mut workload.service_account);
                }
            }
        },
        Next::Refused,
    );
}

on_lanes!(a_client_whose_workload_shall_be_tunnelled: direct, joined);
fn a_client_whose_workload_shall_be_tunnelled(lane: Lane) {
    concerns_one_of_two(
        lane,
        |_, _| {},
        |scene, settings| {
            let uid = workload_uid(scene.client());
            let overrides = json!([{ "workload": uid, "sameNode": "tunnel" }]);
            settings.extra.insert("overrides".to_owned(), overrides);
        },
        Next::Tunnelled,
    );
}

/// Both clients are concerned by this one.
#[test]
fn a_node_whose_pods_shall_be_tunnelled() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let mut pairs = open(&scene, 0, &listener);
    pairs.extend(open(&scene, 1, &listener));
    change(&mut mesh, tunnel_inside);
    for pair in &mut pairs {
        cut(pair, "sameNode: tunnel");
    }
    unharmed(&mut mesh);
}

/// What changes elsewhere is nobody's business here.
#[test]
fn changes_that_do_not_concern_a_connection_leave_it_alone() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let pairs = open(&scene, 0, &listener);
    for round in 0..5 {
        let name = format!("not-there-{round}");
        change(&mut mesh, |settings| {
            let mut policy = about(scene.clients()[1], &name, "Deny");
            "elsewhere".clone_into(&mut policy.namespace);
            settings.policies.push(policy);
        });
        pairs.iter().for_each(speak);
    }
    let service = Mesh::service(scene.server());
    for family in Family::BOTH {
        for to in [scene.server().at(family, PORT), service.at(family, 80)] {
            // And what is known stays known.
            let near = scene.knock(scene.client(), to).unwrap();
            let pair = (near, scene.accept(&listener).unwrap());
            let direct = bypasses_the_proxy(scene.client(), &pair.0).unwrap();
            assert!(direct, "{to} was judged again");
        }
    }
    unharmed(&mut mesh);
}

on_lanes!(what_is_opened_while_the_rule_changes_does_not_outlive_it: direct, joined);
/// The kernel has let it by, and the proxy has not heard of it, when the rule changes.
fn what_is_opened_while_the_rule_changes_does_not_outlive_it(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().settings(quiet).start().unwrap();
    let _echo = scene.serve(Kind::Echo, PORT).unwrap();
    let to = Family::BOTH.map(|family| scene.server().at(family, PORT));
    for round in 0..5 {
        for to in to {
            drop(scene.dial(scene.client(), to).unwrap());
        }
        let (stop, open) = (AtomicBool::new(false), Mutex::new(VecDeque::new()));
        thread::scope(|scope| {
            for to in to {
                let (scene, stop, open) = (&scene, &stop, &open);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // A refusal is what comes of the rule.
                        let knocked = scene.knock(scene.client(), to);
                        let mut open = open.lock().unwrap();
                        open.extend(knocked);
                        // Each costs descriptors, which other tests of this process need too. The
                        // last ones are those that matter.
                        if open.len() > 1000 {
                            open.pop_front();
                        }
                    }
                });
            }
            change(&mut mesh, |settings| {
                settings.policies = vec![about(scene.client(), "no-longer", "Deny")];
            });
            stop.store(true, Ordering::Relaxed);
        });
        let open = open.into_inner().unwrap();
        println!("round {round}: {} connections", open.len());
        thread::sleep(SOON);
        for mut end in open {
            end.set_read_timeout(Some(PATIENCE / 30)).unwrap();
            let outcome = end.read(&mut [0]);
            let alive = outcome
                .as_ref()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!alive, "round {round}: a connection lives on");
        }
        change(&mut mesh, |settings| settings.policies.clear());
    }
    unharmed(&mut mesh);
}

/// Both ends of it are not symmetric any more.
#[test]
fn a_connection_that_is_half_closed_is_ended_too() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let to = scene.server().at(Family::V4, PORT);
    let [mut one, mut other] = [0; 2].map(|_| scene.connect(to, &listener).unwrap());
    one.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(one.1.read(&mut [0]).unwrap(), 0);
    other.1.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(other.0.read(&mut [0]).unwrap(), 0);
    change(&mut mesh, |settings| {
        let deny = about(scene.client(), "no-longer", "Deny");
        settings.policies.push(deny);
    });
    // The end that still may hear something hears of the cut.
    for (name, end) in [("client", &mut one.0), ("server", &mut other.1)] {
        end.set_read_timeout(Some(SOON)).unwrap();
        let outcome = end.read(&mut [0]);
        let waits = outcome
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(outcome.is_err() && !waits, "the {name} saw {outcome:?}");
    }
    unharmed(&mut mesh);
}

/// Whoever leaves the mesh leaves its identity there.
#[test]
fn a_client_that_leaves_the_mesh_loses_what_needs_an_identity() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().policy(strict()).start().unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let mut concerned = open(&scene, 0, &listener);
    let unconcerned = open(&scene, 1, &listener);
    let uid = workload_uid(scene.client());
    change(&mut mesh, |settings| {
        settings.pods.retain(|pod| pod.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    });
    for pair in &mut concerned {
        cut(pair, "a client without an identity");
    }
    unconcerned.iter().for_each(speak);
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        let outcome = scene.knock(scene.client(), to);
        let outcome = outcome.and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    unharmed(&mut mesh);
}
