//! A service sends connections to its healthy backends, to all of them, and to nobody else.

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Settings, service_hostname};
use ztunnel_tests::traffic::Kind;

use crate::ends::eventually;

/// So many that two backends are both chosen, unless one is never chosen: the chance of missing
/// one is 2 in 2^64.
const ENOUGH: usize = 64;

/// Makes both servers the backends of the service in front of the first.
fn two_backends(scene: &Scene, settings: &mut Settings) {
    let key = format!("default/{}", service_hostname(scene.server()));
    for workload in &mut settings.workloads {
        if workload.name == scene.servers()[1].name {
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

on_lanes!(connections_go_to_healthy_backends_only_and_to_all_of_them: tunnel, direct, auto);
fn connections_go_to_healthy_backends_only_and_to_all_of_them(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let [one, other] = scene.servers();
    let mut mesh = scene
        .mesh()
        .settings(|settings| {
            two_backends(&scene, settings);
            set_health(settings, &one.name, "Unhealthy");
        })
        .start()
        .unwrap();
    let servers = scene
        .servers()
        .map(|pod| pod.serve(Kind::Http, 8080).unwrap());
    let service = Mesh::service(one);
    let ask = |family| scene.get(service.at(family, 80), "x");

    for family in Family::BOTH {
        for _ in 0..ENOUGH {
            let answer = ask(family).unwrap();
            assert_eq!(answer.local, other.at(family, 8080));
        }
    }
    assert_eq!(servers[0].accepted(), 0, "an unhealthy backend was called");

    mesh.change(|settings| set_health(settings, &one.name, "Healthy"))
        .unwrap();
    for family in Family::BOTH {
        for pod in [one, other] {
            eventually("a connection for each healthy backend", || {
                (ask(family).unwrap().local == pod.at(family, 8080)).then_some(())
            });
        }
    }

    mesh.change(|settings| {
        set_health(settings, &one.name, "Unhealthy");
        set_health(settings, &other.name, "Unhealthy");
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
        scene.get(one.at(family, 8080), "x").unwrap();
    }
}
