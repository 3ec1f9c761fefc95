//! From capture by programs to capture by rules, and back: what one captures the other cannot serve,
//! and that is said, and never said to be ready.

use std::process::Command;

use serde_json::json;
use ztunnel_tests::net::{Family, Rules, World};
use ztunnel_tests::proxy::{Mesh, Settings, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, answered, answered_soon, call, eventually, is_refused};

const WAY_OUT: &str = "`ztunnel kernel remove`";
const CANNOT: &str = "the eBPF programs of another proxy capture it";

fn by(settings: &mut Settings, by: &str) {
    let by = ("by".to_owned(), json!(by));
    settings.capture.extra.extend([by]);
}

fn install(world: &World) {
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
}

/// Proxies that rules lead to.
fn by_rules(world: &World) -> Mesh<'_> {
    install(world);
    let builder = Mesh::builder(world).settings(|settings| by(settings, "rules"));
    builder.start().unwrap()
}

/// A proxy with programs ends, and one that rules lead to comes after it. `sees`: whether its
/// container has the directory of the pins.
fn it_waits_until_the_programs_are_removed(sees: bool) {
    let world = World::two_nodes().unwrap();
    install(&world);
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    answered(client, server.at(Family::V4, HTTP));
    let proxy = mesh.proxy("a");
    let pinned = proxy.settings.capture.bpf_directory.clone();
    proxy.terminate(LIMIT).unwrap();
    by(&mut proxy.settings, "rules");
    if !sees {
        proxy.settings.capture.bpf_directory = world.directory().join("nothing-is-here");
    }
    proxy.launch().unwrap();
    let line = proxy.wait_for_log(CANNOT, LIMIT).unwrap();
    assert!(
        line.contains("\terror\t") && line.contains(WAY_OUT),
        "{line}"
    );
    let (status, said) = proxy.readiness().unwrap();
    assert_eq!(status, 503);
    assert!(said.contains(WAY_OUT), "{said}");
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
        answered(client, server.at(family, HTTP));
        answered(server, client.at(family, HTTP));
    }
    scene::unharmed(&mut mesh);
}

#[test]
fn a_proxy_by_rules_is_not_ready_while_programs_capture_its_pods() {
    it_waits_until_the_programs_are_removed(true);
}

/// As in the DaemonSet of Istio's chart.
#[test]
fn a_proxy_by_rules_that_does_not_see_the_pins_is_not_ready_either() {
    it_waits_until_the_programs_are_removed(false);
}

/// Beside a proxy with programs that runs it takes no connection.
#[test]
fn a_proxy_by_rules_leaves_pods_to_a_proxy_with_programs() {
    let world = World::two_nodes().unwrap();
    install(&world);
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    by(&mut proxy.settings, "rules");
    let mut beside = proxy.launch_second(&["--take-over"]).unwrap();
    proxy.wait_for_log(CANNOT, LIMIT).unwrap();
    for _ in 0..20 {
        for family in Family::BOTH {
            answered(client, server.at(family, HTTP));
            answered(server, client.at(family, HTTP));
        }
    }
    assert!(beside.terminate(LIMIT).unwrap().success());
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut mesh);
}

/// One with programs comes beside a proxy by rules, which finds it out by the first connection that
/// comes without its destination, and leaves the pods to it.
#[test]
fn a_proxy_by_rules_lets_pods_go_that_programs_capture_later() {
    let world = World::two_nodes().unwrap();
    let mut mesh = by_rules(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    answered(client, server.at(Family::V4, HTTP));
    let proxy = mesh.proxy("a");
    by(&mut proxy.settings, "programs");
    let mut before = proxy.launch_heir().unwrap();
    // Some of what is called is accepted by the wrong one, until that has seen it.
    eventually("the pod is let go", || {
        drop(call(client, server.at(Family::V4, HTTP)));
        let log = proxy.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains(CANNOT) && line.contains(&client.name))
    });
    answered_soon(client, server.at(Family::V4, HTTP));
    for _ in 0..20 {
        for family in Family::BOTH {
            answered(client, server.at(family, HTTP));
            answered_soon(server, client.at(family, HTTP));
        }
    }
    before.terminate(LIMIT).unwrap();
    proxy.wait_taken_over().unwrap();
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut mesh);
}

/// Whoever calls the port of the proxy itself is refused, and nobody takes it for programs.
#[test]
fn an_application_that_calls_the_proxys_port_does_not_make_the_node_unready() {
    let world = World::two_nodes().unwrap();
    let mut mesh = by_rules(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for at in ["127.0.0.1:15001", "[::1]:15001"] {
        for _ in 0..3 {
            scene::reset(client, at.parse().unwrap());
        }
    }
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
    }
    let proxy = mesh.proxy("a");
    assert!(matches!(proxy.readiness(), Ok((200, _))));
    assert!(!proxy.log().contains(WAY_OUT), "{}", proxy.log());
    scene::unharmed(&mut mesh);
}
