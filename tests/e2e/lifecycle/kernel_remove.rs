//! `ztunnel kernel remove` ends the capture on its node only.

use std::fs;
use std::process::Command;
use std::thread;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, ztunnel};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    self, HTTP, LIMIT, MARKER, call, expect_answer, is_refused, wait_for_answer,
};

#[test]
fn kernel_remove_ends_capture_on_its_node_only() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    let pinned = mesh.proxy("a").settings.capture.bpf_directory.clone();
    assert!(fs::read_dir(&pinned).unwrap().next().is_some());
    mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(is_refused(&call(client, server.at(Family::V4, HTTP))));

    // Twice: the second time nothing is pinned, which is reported and not an error.
    for expected in ["has ended", "nothing is pinned"] {
        let mut remove = Command::new(ztunnel().unwrap());
        let output = remove
            .args(["kernel", "remove", "--directory"])
            .arg(&pinned)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(expected),
            "{output:?}"
        );
    }
    let left = fs::read_dir(&pinned).map_or(0, Iterator::count);
    assert_eq!(left, 0, "pins are left");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(&*pinned.to_string_lossy()),
        "the BPF file system is still mounted"
    );

    // Node a has no mesh now: its connections are plaintext, and node b treats them as such.
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
    }
    let plain = [
        ("reporter", "destination"),
        ("connection_security_policy", "unknown"),
    ];
    assertions::eventually("plaintext connections in the metrics of node b", || {
        mesh.proxy("b")
            .metrics()
            .unwrap()
            .sum("istio_tcp_connections_opened_total", &plain)
            == 2.0
    });
    thread::sleep(SETTLE);
    assert!(
        sniffer.finish().unwrap().marker_packets >= 2,
        "no plaintext crossed the link"
    );

    // The mesh works again.
    mesh.proxy("a").start().unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        wait_for_answer(client, server.at(family, HTTP));
    }
    thread::sleep(SETTLE);
    assert_eq!(sniffer.finish().unwrap().marker_packets, 0);
    assertions::assert_all_running(&mut mesh);
}
