//! What another process removes of the capture is restored, and reported.

use std::fs;
use std::process::Command;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Proxy};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, MARKER, expect_answer, wait_for_answer};

fn wait_until_restored(proxy: &Proxy<'_>, what: &str) {
    let restored = || {
        let metrics = proxy.metrics().unwrap();
        metrics.sum("ztunnel_capture_restored_total", &[("what", what)]) > 0.0
    };
    assertions::eventually(what, restored);
}

/// As a program in the pod with CAP_NET_ADMIN that manages routing itself.
fn remove_rules(pod: &Host) {
    for flag in ["-4", "-6"] {
        let remove = || {
            let arguments = [flag, "rule", "del", "pref", "15006"];
            Command::new("ip").args(arguments).status()
        };
        assert!(pod.enter(remove).unwrap().success());
    }
}

#[test]
fn pins_and_routing_rules_that_are_removed_come_back() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));

    let pins = mesh.proxy("a").settings.capture.bpf_directory.clone();
    let layout = fs::read_dir(&pins)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let layout = layout.filter(|path| path.join("links").exists()).last();
    fs::remove_dir_all(layout.unwrap().join("links")).unwrap();
    // The programs are attached without their pins.
    expect_answer(client, server.at(Family::V4, HTTP));
    wait_until_restored(mesh.proxy("a"), "pin");

    remove_rules(server);
    wait_until_restored(mesh.proxy("b"), "route");
    for family in Family::BOTH {
        wait_for_answer(client, server.at(family, HTTP));
    }
    std::thread::sleep(SETTLE);
    let traffic = sniffer.finish().unwrap();
    assert_eq!(traffic.marker_packets, 0, "{traffic:?}");
    for proxy in ["a", "b"] {
        let log = "another process has removed what captures";
        mesh.proxy(proxy).wait_for_log(log, LIMIT).unwrap();
    }
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_proxy_is_not_ready_while_something_cannot_be_restored() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let proxy = mesh.proxy("a");
    assert_eq!(proxy.readiness().unwrap().0, 200);
    let pins = proxy.settings.capture.bpf_directory.clone();
    let layouts = fs::read_dir(&pins)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let map = layouts
        .map(|path| path.join("PODS"))
        .find(|map| map.exists());
    fs::remove_file(map.unwrap()).unwrap();
    assertions::eventually("the proxy is not ready", || {
        let (status, text) = proxy.readiness().unwrap();
        status == 503 && text.contains("the capture of the pods")
    });
    let lost = proxy.metrics().unwrap().sum("ztunnel_capture_lost", &[]);
    assert!(lost > 0.0, "{lost}");
    proxy.wait_for_log("PODS is gone", LIMIT).unwrap();
    // A new process has a new map.
    proxy.terminate(LIMIT).unwrap();
    proxy.start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}
