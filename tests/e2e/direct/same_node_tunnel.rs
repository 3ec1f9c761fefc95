//! `sameNode: tunnel` encrypts connections inside a node.
//!
//! The evidence comes from sniffers on the links of the pods.

use std::thread;

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{MARKER, PORT, assert_all_running, change, send_request, tunnel_same_node};

/// The number of packets with the marker on the links of the first client and the first server.
fn marker_packets_of(topology: &Topology, work: impl FnOnce()) -> [u64; 2] {
    let node = &topology.world().node("a").host;
    let sniffers = [0, 2]
        .map(|pod| Sniffer::on_link(node, &World::link_to_pod(pod), MARKER.as_bytes()).unwrap());
    work();
    thread::sleep(SETTLE);
    sniffers.map(|sniffer| sniffer.finish().unwrap().marker_packets)
}

fn request_everywhere(topology: &Topology, direct: bool) {
    let service = Mesh::service(topology.server());
    for family in Family::BOTH {
        for to in [topology.server().at(family, PORT), service.at(family, 80)] {
            for _ in 0..3 {
                let sent = send_request(topology, topology.client(), to).unwrap();
                assert_eq!(sent.answer.peer.ip(), topology.client().address(family));
                assert_eq!(sent.direct, direct, "{to}");
            }
        }
    }
}

fn create_all_entries(topology: &Topology) {
    let service = Mesh::service(topology.server());
    for family in Family::BOTH {
        for to in [topology.server().at(family, PORT), service.at(family, 80)] {
            topology.get(to, "first").unwrap();
        }
    }
}

#[test]
fn a_tunnel_inside_the_node_encrypts_the_traffic() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().settings(tunnel_same_node).start().unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let marker_packets = marker_packets_of(&topology, || request_everywhere(&topology, false));
    assert_eq!(
        marker_packets,
        [0, 0],
        "the marker crossed the pods' links in plaintext"
    );
    let encrypted = [
        ("reporter", "source"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let opened = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_tcp_connections_opened_total", &encrypted);
    assert_eq!(opened, 12.0);
    assert_all_running(&mut mesh);
}

#[test]
fn the_setting_may_change_under_traffic() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    for _ in 0..2 {
        create_all_entries(&topology);
        // Twelve requests and twelve answers: the sniffers find the plaintext.
        let marker_packets = marker_packets_of(&topology, || request_everywhere(&topology, true));
        assert!(
            marker_packets
                .iter()
                .all(|marker_packets| *marker_packets >= 24),
            "{marker_packets:?}"
        );
        for (setting, tunnelled) in [("tunnel", true), ("direct", false)] {
            change(&mut mesh, |settings| {
                settings.extra.insert("sameNode".to_owned(), json!(setting));
            });
            if tunnelled {
                let marker_packets =
                    marker_packets_of(&topology, || request_everywhere(&topology, false));
                assert_eq!(
                    marker_packets,
                    [0, 0],
                    "the marker crossed the pods' links in plaintext"
                );
            }
        }
    }
    assert_all_running(&mut mesh);
}
