//! A service sends connections to its healthy backends, to all of them, and to nobody else.

use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Settings, service_hostname};
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::{PATIENCE, eventually};

/// So many that two backends are both chosen, unless one is never chosen: the chance of missing
/// one is 2 in 2^64.
const ENOUGH: usize = 64;

/// Makes pods 0 and 1 of node `b` the backends of the service in front of pod `b-0`.
fn two_backends(world: &World, settings: &mut Settings) {
    let key = format!("default/{}", service_hostname(world.pod("b", 0)));
    for workload in &mut settings.workloads {
        if workload.name == "b-1" {
            workload.services.insert(key.clone(), [(80, 8080)].into());
        }
    }
}

fn set_health(settings: &mut Settings, name: &str, status: &str) {
    for workload in &mut settings.workloads {
        if workload.name == name {
            workload.extra.insert("status".to_owned(), json!(status));
        }
    }
}

#[test]
fn connections_go_to_healthy_backends_only_and_to_all_of_them() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            two_backends(&world, settings);
            set_health(settings, "b-0", "Unhealthy");
        })
        .start()
        .unwrap();
    let client = world.pod("a", 0);
    let servers =
        [world.pod("b", 0), world.pod("b", 1)].map(|pod| pod.serve(Kind::Http, 8080).unwrap());
    let service = Mesh::service(world.pod("b", 0));
    let ask = |family| client.enter(|| traffic::get(service.at(family, 80), "x", PATIENCE));

    for family in Family::BOTH {
        for _ in 0..ENOUGH {
            let answer = ask(family).unwrap();
            assert_eq!(answer.local, world.pod("b", 1).at(family, 8080));
        }
    }
    assert_eq!(servers[0].accepted(), 0, "an unhealthy backend was called");

    mesh.change(|settings| set_health(settings, "b-0", "Healthy"))
        .unwrap();
    for family in Family::BOTH {
        for pod in [world.pod("b", 0), world.pod("b", 1)] {
            eventually("a connection for each healthy backend", || {
                (ask(family).unwrap().local == pod.at(family, 8080)).then_some(())
            });
        }
    }

    mesh.change(|settings| {
        set_health(settings, "b-0", "Unhealthy");
        set_health(settings, "b-1", "Unhealthy");
    })
    .unwrap();
    eventually("a service without healthy backends refuses", || {
        ask(Family::V4).err()
    });
    let before = servers.each_ref().map(|server| server.accepted());
    for family in Family::BOTH {
        assert!(ask(family).is_err());
    }
    assert_eq!(servers.each_ref().map(|server| server.accepted()), before);
    // A pod's own address is no choice: it is called, healthy or not.
    for family in Family::BOTH {
        let to = world.pod("b", 0).at(family, 8080);
        client.enter(|| traffic::get(to, "x", PATIENCE)).unwrap();
    }
}
