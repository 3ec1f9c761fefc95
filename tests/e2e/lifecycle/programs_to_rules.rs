//! Changes between capture by eBPF programs and by rules: a proxy cannot serve pods that the other
//! mechanism captures. It reports that, and is not ready.

use std::process::Command;

use serde_json::json;
use ztunnel_tests::net::{Family, Rules, World};
use ztunnel_tests::proxy::{Mesh, Settings, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    self, HTTP, LIMIT, call, eventually, expect_answer, is_refused, wait_for_answer,
};

const REMEDY: &str = "`ztunnel kernel remove`";
const CAPTURED_BY_PROGRAMS: &str = "the eBPF programs of another proxy capture it";

fn set_capture(settings: &mut Settings, by: &str) {
    settings.capture.extra.insert("by".to_owned(), json!(by));
}

fn install(world: &World) {
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
}

/// Proxies with capture by rules.
fn by_rules(world: &World) -> Mesh<'_> {
    install(world);
    let builder = Mesh::builder(world).settings(|settings| set_capture(settings, "rules"));
    builder.start().unwrap()
}

/// A proxy with programs ends, and a proxy with rules follows. `sees`: whether its container has
/// the directory of the pins.
fn assert_waits_for_removal_of_programs(sees: bool) {
    let world = World::two_nodes().unwrap();
    install(&world);
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    expect_answer(client, server.at(Family::V4, HTTP));
    let proxy = mesh.proxy("a");
    let pinned = proxy.settings.capture.bpf_directory.clone();
    proxy.terminate(LIMIT).unwrap();
    set_capture(&mut proxy.settings, "rules");
    if !sees {
        proxy.settings.capture.bpf_directory = world.directory().join("nothing-is-here");
    }
    proxy.launch().unwrap();
    let line = proxy.wait_for_log(CAPTURED_BY_PROGRAMS, LIMIT).unwrap();
    assert!(
        line.contains("\terror\t") && line.contains(REMEDY),
        "{line}"
    );
    let (status, output) = proxy.readiness().unwrap();
    assert_eq!(status, 503);
    assert!(output.contains(REMEDY), "{output}");
    for family in Family::BOTH {
        let outcome = call(client, server.at(family, HTTP));
        assert!(is_refused(&outcome), "{outcome:?}");
    }

    let mut remove = Command::new(ztunnel().unwrap());
    remove
        .args(["kernel", "remove", "--directory"])
        .arg(&pinned);
    assert!(remove.status().unwrap().success());
    let proxy = mesh.proxy("a");
    eventually("readiness", || matches!(proxy.readiness(), Ok((200, _))));
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
        expect_answer(server, client.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_proxy_with_rules_is_not_ready_while_programs_capture_its_pods() {
    assert_waits_for_removal_of_programs(true);
}

/// As in the DaemonSet of Istio's chart.
#[test]
fn a_proxy_with_rules_that_cannot_see_the_pins_is_not_ready() {
    assert_waits_for_removal_of_programs(false);
}

/// A proxy with rules gets no connection beside a running proxy with programs.
#[test]
fn a_proxy_with_rules_does_not_serve_pods_of_a_proxy_with_programs() {
    let world = World::two_nodes().unwrap();
    install(&world);
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    set_capture(&mut proxy.settings, "rules");
    let mut beside = proxy.launch_another(&["--take-over"]).unwrap();
    proxy.wait_for_log(CAPTURED_BY_PROGRAMS, LIMIT).unwrap();
    for _ in 0..20 {
        for family in Family::BOTH {
            expect_answer(client, server.at(family, HTTP));
            expect_answer(server, client.at(family, HTTP));
        }
    }
    assert!(beside.terminate(LIMIT).unwrap().success());
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}

/// A proxy with programs starts beside a proxy with rules. The latter detects it by the first
/// connection without original destination, and releases the pods.
#[test]
fn a_proxy_with_rules_releases_pods_that_programs_capture_later() {
    let world = World::two_nodes().unwrap();
    let mut mesh = by_rules(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    expect_answer(client, server.at(Family::V4, HTTP));
    let proxy = mesh.proxy("a");
    set_capture(&mut proxy.settings, "programs");
    let mut before = proxy.launch_standby().unwrap();
    // The wrong proxy accepts some connections until it has detected the programs.
    eventually("the pod is released", || {
        drop(call(client, server.at(Family::V4, HTTP)));
        let log = proxy.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains(CAPTURED_BY_PROGRAMS) && line.contains(&client.name))
    });
    wait_for_answer(client, server.at(Family::V4, HTTP));
    for _ in 0..20 {
        for family in Family::BOTH {
            expect_answer(client, server.at(family, HTTP));
            wait_for_answer(server, client.at(family, HTTP));
        }
    }
    before.terminate(LIMIT).unwrap();
    proxy.wait_for_takeover().unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}

/// A connection to the port of the proxy itself is refused and not taken as evidence for programs.
#[test]
fn a_connection_to_the_proxys_port_does_not_affect_readiness() {
    let world = World::two_nodes().unwrap();
    let mut mesh = by_rules(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for at in ["127.0.0.1:15001", "[::1]:15001"] {
        for _ in 0..3 {
            assertions::reset(client, at.parse().unwrap());
        }
    }
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
    }
    let proxy = mesh.proxy("a");
    assert!(matches!(proxy.readiness(), Ok((200, _))));
    assert!(!proxy.log().contains(REMEDY), "{}", proxy.log());
    assertions::assert_all_running(&mut mesh);
}
