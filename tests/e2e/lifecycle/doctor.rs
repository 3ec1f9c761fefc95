//! `ztunnel doctor` says what a machine lacks, and leaves a node alone that works.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use ztunnel_tests::net::{Family, Node, World};
use ztunnel_tests::proxy::{Mesh, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, answered};

/// What it says on a node, and its exit code.
fn doctor(node: &Node, settings: &Path) -> (Value, i32) {
    let output = node.host.enter(|| {
        let mut command = Command::new(ztunnel().unwrap());
        command
            .args(["doctor", "-o", "json", "--config"])
            .arg(settings);
        command.output().unwrap()
    });
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (said, output.status.code().unwrap())
}

fn check<'a>(said: &'a Value, name: &str) -> &'a Value {
    let checks = said["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {said:#}"))
}

#[test]
fn a_node_at_work_is_found_well_and_not_disturbed() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    answered(client, server.at(Family::V4, HTTP));
    let settings = mesh.proxy("a").settings_path();
    let (said, code) = doctor(world.node("a"), &settings);
    assert_eq!((code, &said["failed"]), (0, &Value::from(0)), "{said:#}");
    for name in ["ports.admin", "ports.metrics", "ports.readiness"] {
        let check = check(&said, name);
        assert!(
            check["detail"]
                .as_str()
                .unwrap()
                .contains("held by a ztunnel"),
            "{check}"
        );
    }
    let pod = format!("pod.{}", mesh.proxy("a").settings.pods[0].workload);
    for port in [15001, 15006, 15008, 15053] {
        let check = check(&said, &format!("{pod}.port_{port}"));
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let pins = check(&said, "capture.pins")["detail"].as_str().unwrap();
    assert!(pins.contains("pods are captured"), "{pins}");
    check(&said, "acceleration.exact_bytes");
    answered(client, server.at(Family::V6, HTTP));
    scene::unharmed(&mut mesh);
}

#[test]
fn what_stands_in_the_way_fails_with_its_remedy() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let settings = mesh.proxy("a").settings_path();
    let workload = mesh.proxy("a").settings.pods[0].workload.clone();
    mesh.proxy("a").terminate(LIMIT).unwrap();
    let _squatters = [15006, 15053].map(|port| world.pod("a", 0).serve(Kind::Http, port).unwrap());
    let (said, code) = doctor(world.node("a"), &settings);
    assert_eq!((code, &said["failed"]), (1, &Value::from(1)), "{said:#}");
    let squatted = check(&said, &format!("pod.{workload}.port_15006"));
    assert_eq!(squatted["verdict"], "fail");
    assert!(!squatted["remedy"].as_str().unwrap().is_empty());
    // Without names the pod is served all the same.
    let squatted = check(&said, &format!("pod.{workload}.port_15053"));
    assert_eq!(squatted["verdict"], "warn");
    assert!(!squatted["remedy"].as_str().unwrap().is_empty());
    assert_eq!(check(&said, "ports.admin")["verdict"], "ok");

    let (said, code) = doctor(world.node("a"), Path::new("/nonexistent.yaml"));
    assert_eq!(code, 1);
    assert_eq!(check(&said, "settings")["verdict"], "fail");
}
