//! A connection that is under way when it stops being allowed is ended, soon, with a reset at
//! both ends; the ones that are still allowed do not notice.

use std::net::TcpListener;

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Settings, workload_uid};
use ztunnel_tests::traffic::End;

use crate::proof::{PORT, about, ask, change, cut, speak, unharmed};

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
    let _http = scene
        .serve(ztunnel_tests::traffic::Kind::Http, PORT)
        .unwrap();
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
    change(&mut mesh, |settings| {
        settings
            .extra
            .insert("sameNode".to_owned(), json!("tunnel"));
    });
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
            let direct = ztunnel_tests::lane::bypasses_the_proxy(scene.client(), &pair.0).unwrap();
            assert!(direct, "{to} was judged again");
        }
    }
    unharmed(&mut mesh);
}
