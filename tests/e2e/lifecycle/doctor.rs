//! `ztunnel doctor` reports problems of a machine and does not disturb a running node.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use ztunnel_tests::net::{Family, Node, World};
use ztunnel_tests::proxy::{Mesh, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, expect_answer};

/// The output of the doctor on a node, and its exit code.
fn doctor(node: &Node, settings: &Path) -> (Value, i32) {
    let output = node.host.enter(|| {
        let mut command = Command::new(ztunnel().unwrap());
        command
            .args(["doctor", "-o", "json", "--config"])
            .arg(settings);
        command.output().unwrap()
    });
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (report, output.status.code().unwrap())
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn all_checks_pass_on_a_running_node_without_side_effects() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    let settings = mesh.proxy("a").settings_path();
    let (report, code) = doctor(world.node("a"), &settings);
    assert_eq!(
        (code, &report["failed"]),
        (0, &Value::from(0)),
        "{report:#}"
    );
    for name in ["ports.admin", "ports.metrics", "ports.readiness"] {
        let check = check(&report, name);
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
        let check = check(&report, &format!("{pod}.port_{port}"));
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let pins = check(&report, "capture.pins")["detail"].as_str().unwrap();
    assert!(pins.contains("pods are captured"), "{pins}");
    check(&report, "acceleration.exact_bytes");
    expect_answer(client, server.at(Family::V6, HTTP));
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn failed_checks_have_a_remedy() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let settings = mesh.proxy("a").settings_path();
    let workload = mesh.proxy("a").settings.pods[0].workload.clone();
    mesh.proxy("a").terminate(LIMIT).unwrap();
    let _squatters = [15006, 15053].map(|port| world.pod("a", 0).serve(Kind::Http, port).unwrap());
    let (report, code) = doctor(world.node("a"), &settings);
    assert_eq!(
        (code, &report["failed"]),
        (1, &Value::from(1)),
        "{report:#}"
    );
    let squatted = check(&report, &format!("pod.{workload}.port_15006"));
    assert_eq!(squatted["verdict"], "fail");
    assert!(!squatted["remedy"].as_str().unwrap().is_empty());
    // Without DNS the pod is still served.
    let squatted = check(&report, &format!("pod.{workload}.port_15053"));
    assert_eq!(squatted["verdict"], "warn");
    assert!(!squatted["remedy"].as_str().unwrap().is_empty());
    assert_eq!(check(&report, "ports.admin")["verdict"], "ok");

    let (report, code) = doctor(world.node("a"), Path::new("/nonexistent.yaml"));
    assert_eq!(code, 1);
    assert_eq!(check(&report, "settings")["verdict"], "fail");
}
