//! What another process removes of the capture is restored, and reported.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Proxy, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, expect_answer, wait_for_answer};

/// The proxy checks each part once in ten seconds, which is close to the limit of other tests.
const CHECKED: Duration = Duration::from_secs(40);

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < CHECKED,
            "not within {CHECKED:?}: {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn wait_until_restored(proxy: &Proxy<'_>, what: &str) {
    let restored = || {
        let metrics = proxy.metrics().unwrap();
        metrics.sum("ztunnel_capture_restored_total", &[("what", what)]) > 0.0
    };
    eventually(what, restored);
}

/// The directory of the links of programs.
fn links(proxy: &Proxy<'_>) -> PathBuf {
    let layouts = fs::read_dir(&proxy.settings.capture.bpf_directory).unwrap();
    let mut links = layouts.map(|layout| layout.unwrap().path().join("links"));
    links.find(|links| links.exists()).unwrap()
}

/// As a program in the pod with CAP_NET_ADMIN that manages routing itself.
fn remove_rules(pod: &Host) {
    for flag in ["-4", "-6"] {
        let remove = || {
            let arguments = [flag, "rule", "del", "pref", "1"];
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
    expect_answer(client, server.at(Family::V4, HTTP));

    fs::remove_dir_all(links(mesh.proxy("a"))).unwrap();
    // The programs are attached without their pins.
    expect_answer(client, server.at(Family::V4, HTTP));
    wait_until_restored(mesh.proxy("a"), "pin");

    remove_rules(server);
    wait_until_restored(mesh.proxy("b"), "route");
    for family in Family::BOTH {
        wait_for_answer(client, server.at(family, HTTP));
    }
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
    let pin = links(proxy).join("capture4");
    fs::remove_file(&pin).unwrap();
    fs::create_dir(&pin).unwrap();
    eventually("the proxy is not ready", || {
        let (status, text) = proxy.readiness().unwrap();
        status == 503 && text.contains("the capture of the pods")
    });
    let lost = proxy.metrics().unwrap().sum("ztunnel_capture_lost", &[]);
    assert_eq!(lost, 1.0);
    fs::remove_dir(&pin).unwrap();
    eventually("the proxy is ready again", || {
        proxy.readiness().unwrap().0 == 200
    });
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}

/// As `rm -r` of the whole directory. Then a second proxy must not believe that it is the first one.
#[test]
fn the_directory_of_the_pins_comes_back_with_its_locks() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let proxy = mesh.proxy("a");
    let directory = proxy.settings.capture.bpf_directory.clone();
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    wait_until_restored(proxy, "pin");
    proxy
        .wait_for_log("the locks of this node's proxies: restored", LIMIT)
        .unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    let mut remove = Command::new(ztunnel().unwrap());
    let remove = remove.args(["kernel", "remove", "--directory"]);
    let output = remove.arg(&directory).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("runs: stop it first"),
        "{output:?}"
    );
    // The next process takes over what was restored.
    let proxy = mesh.proxy("a");
    proxy.terminate(LIMIT).unwrap();
    proxy.start().unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}
