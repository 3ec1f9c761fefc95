//! The proxy carries and authorizes the first connection of a key; the kernel carries the next one.
//! A key is a pod, the dialled address, and the port.

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::assertions::{PORT, assert_all_running, send_request};

on_paths!(the_proxy_carries_the_first_connection_and_the_kernel_the_second: direct, joined, auto);
fn the_proxy_carries_the_first_connection_and_the_kernel_the_second(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    topology.wait_for_acceleration(&mut mesh).unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(server);
    for family in Family::BOTH {
        for to in [server.at(family, PORT), service.at(family, 80)] {
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
                // Both ends see the same addresses in both cases.
                assert_eq!(sent.end.peer_addr().unwrap(), to);
                let own = sent.end.local_addr().unwrap();
                assert_eq!(own.ip(), client.address(family), "{to}");
                assert_eq!(sent.answer.peer.ip(), client.address(family), "{to}");
                assert_eq!(sent.answer.local, server.at(family, PORT), "{to}");
            }
            // The same port at both ends proves that there is no proxy in between.
            let own = second.end.local_addr().unwrap();
            assert_eq!(second.answer.peer, own, "{to}");
            let proxy = mesh.proxy("a");
            for host in [client, server] {
                assert!(!proxy.has_connection_to(host, own.port()).unwrap(), "{to}");
            }
        }
    }
    assert_all_running(&mut mesh);
}

#[test]
fn every_key_is_authorized_separately() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let [one, other] = topology.clients();
    let _servers = topology
        .servers()
        .map(|pod| [PORT, 9000].map(|port| pod.serve(Kind::Http, port).unwrap()));
    let [server, neighbour] = topology.servers();
    for family in Family::BOTH {
        topology.get(server.at(family, PORT), "first").unwrap();
        let service = Mesh::service(server);
        for (what, from, to) in [
            ("another port", one, server.at(family, 9000)),
            ("another pod", one, neighbour.at(family, PORT)),
            ("the service", one, service.at(family, 80)),
            ("another port of the service", one, service.at(family, 9000)),
            ("another client", other, server.at(family, PORT)),
        ] {
            let first = send_request(&topology, from, to).unwrap();
            assert!(!first.direct, "{family:?}: {what} had an entry already");
            let second = send_request(&topology, from, to).unwrap();
            assert!(second.direct, "{family:?}: {what} has no entry");
        }
    }
}

/// Many connections are open, and the proxy has a socket for none of them.
#[test]
fn the_proxy_has_no_sockets_of_fast_path_connections() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let proxy = mesh.proxy("a");
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        topology.get(to, "first").unwrap();
        let open: Vec<_> = (0..50)
            .map(|_| topology.dial(client, to).unwrap())
            .collect();
        let ports: Vec<_> = open
            .iter()
            .map(|end| end.local_addr().unwrap().port())
            .collect();
        for host in [client, server] {
            let ours = proxy.connections_in(host).unwrap();
            let theirs = ours.iter().find(|socket| {
                ports.contains(&socket.remote.port()) || ports.contains(&socket.local.port())
            });
            assert!(theirs.is_none(), "{family:?}: {theirs:?}");
        }
    }
}
