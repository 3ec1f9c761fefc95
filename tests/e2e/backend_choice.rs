//! A service sends connections to all of its healthy backends and to no other workload.

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Settings, service_hostname};
use ztunnel_tests::traffic::Kind;

use crate::connections::eventually;

/// The number of connections. The probability that one of two chosen backends gets none is 2 in
/// 2^64.
const ENOUGH: usize = 64;

/// Makes both servers backends of the service of the first.
fn two_backends(topology: &Topology, settings: &mut Settings) {
    let key = format!("default/{}", service_hostname(topology.server()));
    for workload in &mut settings.workloads {
        if workload.name == topology.servers()[1].name {
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

on_paths!(connections_go_to_all_healthy_backends_and_to_no_other: tunnel, direct, auto);
fn connections_go_to_all_healthy_backends_and_to_no_other(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let [one, other] = topology.servers();
    let mut mesh = topology
        .mesh()
        .settings(|settings| {
            two_backends(&topology, settings);
            set_health(settings, &one.name, "Unhealthy");
        })
        .start()
        .unwrap();
    let servers = topology
        .servers()
        .map(|pod| pod.serve(Kind::Http, 8080).unwrap());
    let service = Mesh::service(one);
    let send_request = |family| topology.get(service.at(family, 80), "x");

    for family in Family::BOTH {
        for _ in 0..ENOUGH {
            let answer = send_request(family).unwrap();
            assert_eq!(answer.local, other.at(family, 8080));
        }
    }
    assert_eq!(
        servers[0].accepted(),
        0,
        "an unhealthy backend received a connection"
    );

    mesh.change(|settings| set_health(settings, &one.name, "Healthy"))
        .unwrap();
    for family in Family::BOTH {
        for pod in [one, other] {
            eventually("a connection for each healthy backend", || {
                (send_request(family).unwrap().local == pod.at(family, 8080)).then_some(())
            });
        }
    }

    mesh.change(|settings| {
        set_health(settings, &one.name, "Unhealthy");
        set_health(settings, &other.name, "Unhealthy");
    })
    .unwrap();
    eventually(
        "a service without healthy backends refuses connections",
        || send_request(Family::V4).err(),
    );
    let before = servers.each_ref().map(|server| server.accepted());
    for family in Family::BOTH {
        assert!(send_request(family).is_err());
    }
    assert_eq!(servers.each_ref().map(|server| server.accepted()), before);
    // A pod can be dialled by its own address, healthy or not.
    for family in Family::BOTH {
        topology.get(one.at(family, 8080), "x").unwrap();
    }
}
