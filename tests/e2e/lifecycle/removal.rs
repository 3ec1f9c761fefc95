//! `ztunnel kernel remove` ends the capture of one node, and of no other.

use std::fs;
use std::process::Command;
use std::thread;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, ztunnel};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, MARKER, answered, answered_soon, call, is_refused};

#[test]
fn removing_what_is_pinned_ends_capture_on_that_node_alone() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    answered(client, server.at(Family::V4, HTTP));
    let pinned = mesh.proxy("a").settings.capture.bpf_directory.clone();
    assert!(fs::read_dir(&pinned).unwrap().next().is_some());
    mesh.proxy("a").terminate(LIMIT).unwrap();
    assert!(is_refused(&call(client, server.at(Family::V4, HTTP))));

    // Twice: the second time nothing is pinned, which is said and is no error.
    for expected in ["has ended", "nothing is pinned"] {
        let mut remove = Command::new(ztunnel().unwrap());
        let output = remove
            .args(["kernel", "remove", "--directory"])
            .arg(&pinned)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains(expected),
            "{output:?}"
        );
    }
    let left = fs::read_dir(&pinned).map_or(0, Iterator::count);
    assert_eq!(left, 0, "something is still pinned");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(&*pinned.to_string_lossy()),
        "still mounted"
    );

    // Node a is without a mesh now: in the clear, and judged as that by node b.
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
    }
    let plain = [
        ("reporter", "destination"),
        ("connection_security_policy", "unknown"),
    ];
    scene::eventually("plain connections in the metrics of node b", || {
        mesh.proxy("b")
            .metrics()
            .unwrap()
            .sum("istio_tcp_connections_opened_total", &plain)
            == 2.0
    });
    thread::sleep(SETTLE);
    assert!(
        sniffer.finish().unwrap().hits >= 2,
        "nothing crossed in the clear"
    );

    // And back in the mesh.
    mesh.proxy("a").start().unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        answered_soon(client, server.at(family, HTTP));
    }
    thread::sleep(SETTLE);
    assert_eq!(sniffer.finish().unwrap().hits, 0);
    scene::unharmed(&mut mesh);
}
