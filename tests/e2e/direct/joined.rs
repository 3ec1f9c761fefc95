//! With acceleration, the two sockets of a fast-path connection are joined in the kernel: data goes
//! from socket to socket, complete and in order, and not in packets.

use std::thread;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::{self, Kind};

use crate::assertions::{MARKER, PORT, TIMEOUT, assert_all_running};

const BYTES: usize = 16 << 20;

#[test]
fn joined_sockets_exchange_data_without_tcp() {
    let topology = Topology::new(DataPath::Joined).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _echo = topology.serve(Kind::Echo, PORT).unwrap();
    let service = Mesh::service(topology.server());
    for family in Family::BOTH {
        for to in [topology.server().at(family, PORT), service.at(family, 80)] {
            let end = topology.dial(topology.client(), to).unwrap();
            traffic::exchange(&end, BYTES).unwrap();
            let over_tcp = end.received_over_tcp().unwrap();
            assert!(over_tcp < 1 << 20, "{to}: {over_tcp} bytes over TCP");
        }
    }
    assert_all_running(&mut mesh);
}

#[test]
fn data_after_the_join_is_never_sent_as_packets() {
    let topology = Topology::new(DataPath::Joined).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _http = topology.serve(Kind::Http, PORT).unwrap();
    let node = &topology.world().node("a").host;
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        let mut end = topology.dial(topology.client(), to).unwrap();
        // Data before the join is sent over TCP.
        traffic::get_over(&mut end, "first", TIMEOUT).unwrap();
        let sniffer = Sniffer::on_link(node, &World::link_to_pod(2), MARKER.as_bytes()).unwrap();
        for _ in 0..100 {
            let answer = traffic::get_over(&mut end, MARKER, TIMEOUT).unwrap();
            assert_eq!(answer.marker, MARKER);
        }
        thread::sleep(SETTLE);
        let seen = sniffer.finish().unwrap();
        assert_eq!(seen.marker_packets, 0, "{family:?}: {seen:?}");
    }
    assert_all_running(&mut mesh);
}
