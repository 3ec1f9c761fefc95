//! Destinations outside the mesh are reached on the fast path after the first connection.

use std::thread;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::proxy::workload_uid;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    MARKER, PORT, assert_all_running, change, eventually, name_workloads, send_request,
};

#[test]
fn a_host_outside_is_reached_on_the_fast_path_after_the_first_connection() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().settings(name_workloads).start().unwrap();
    let (client, outside) = (topology.client(), topology.world().outside());
    let running = outside.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = outside.at(family, PORT);
        let first = send_request(&topology, client, to).unwrap();
        assert!(
            !first.direct,
            "{to}: the first connection bypassed the proxy"
        );
        let second = send_request(&topology, client, to).unwrap();
        assert!(
            second.direct,
            "{to}: the second connection went through the proxy"
        );
        for sent in [&first, &second] {
            assert_eq!(sent.answer.client_peer, to);
            assert_eq!(sent.answer.local, to);
            assert_eq!(sent.answer.peer.ip(), client.address(family));
        }
        assert_eq!(second.answer.peer, second.answer.client_local);
        let port = second.answer.client_local.port();
        assert!(
            !mesh.proxy("a").has_connection_to(client, port).unwrap(),
            "{to}"
        );
        // The metrics are the same for both paths.
        let other = send_request(&topology, topology.clients()[1], to).unwrap();
        assert!(!other.direct, "{to}: the entry of another pod was used");
    }
    assert_eq!(running.accepted(), topology.dialled());
    let plain = [
        ("reporter", "source"),
        ("source_workload", "a-0"),
        ("destination_workload", "unknown"),
        ("connection_security_policy", "unknown"),
    ];
    eventually("all four connections of a-0 are counted", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        (metrics.sum("istio_tcp_connections_opened_total", &plain) == 4.0).then_some(())
    });
    assert_all_running(&mut mesh);
}

#[test]
fn a_pod_that_is_not_a_workload_is_reached_on_the_fast_path() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let (client, other_pod) = (topology.client(), topology.servers()[1]);
    let _mesh = topology.mesh().without(other_pod).start().unwrap();
    let _running = other_pod.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = other_pod.at(family, PORT);
        let first = send_request(&topology, client, to).unwrap();
        let second = send_request(&topology, client, to).unwrap();
        assert_eq!([first.direct, second.direct], [false, true], "{to}");
    }
}

/// The pod was reached in plaintext while it was outside the mesh. As soon as it joins, it is not,
/// whatever entries the kernel has.
#[test]
fn a_pod_that_joins_the_mesh_is_no_longer_reached_in_plaintext() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let newcomer = topology.world().pod("b", 0);
    let mut mesh = topology.mesh().start().unwrap();
    let mut complete = Vec::new();
    let uid = workload_uid(newcomer);
    change(&mut mesh, |settings| {
        complete.push(settings.clone());
        settings.pods.retain(|pod| pod.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    });
    let _running = newcomer.serve(Kind::Http, PORT).unwrap();
    let sniff = || Sniffer::between(topology.world().node("a"), "b", MARKER.as_bytes()).unwrap();
    let sniffer = sniff();
    for family in Family::BOTH {
        topology.get(newcomer.at(family, PORT), MARKER).unwrap();
    }
    thread::sleep(SETTLE);
    assert!(
        sniffer.finish().unwrap().marker_packets >= 4,
        "the sniffer must find the plaintext"
    );

    let mut complete = complete.into_iter();
    change(&mut mesh, |settings| *settings = complete.next().unwrap());
    let sniffer = sniff();
    for family in Family::BOTH {
        for _ in 0..3 {
            let to = newcomer.at(family, PORT);
            let sent = send_request(&topology, topology.client(), to).unwrap();
            assert!(!sent.direct, "{to}");
        }
    }
    thread::sleep(SETTLE);
    assert_eq!(
        sniffer.finish().unwrap().marker_packets,
        0,
        "the marker was sent in plaintext"
    );
    assert_all_running(&mut mesh);
}
