//! What is not in the mesh is reached as if there were none: other hosts, other protocols, and
//! the pod itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::PATIENCE;

#[test]
fn a_host_outside_of_the_mesh_is_reached_with_the_pods_address() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _running = outside.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = outside.at(family, 8080);
        let answer = client.enter(|| traffic::get(to, "out", PATIENCE)).unwrap();
        assert_eq!(answer.local, to);
        assert_eq!(answer.peer.ip(), client.address(family));
        assert_eq!(answer.client_peer, to);
        assert_eq!(answer.client_local.ip(), client.address(family));
    }
}

#[test]
fn a_pod_that_is_no_workload_is_called_in_plain() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 1));
    let _mesh = Mesh::builder(&world).without(server).start().unwrap();
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let answer = client.enter(|| traffic::get(to, "out", PATIENCE)).unwrap();
        assert_eq!(answer.peer.ip(), client.address(family));
    }
}

#[test]
fn udp_is_left_alone() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let client = world.pod("a", 0);
    for server in [world.outside(), world.pod("b", 0)] {
        for family in Family::BOTH {
            let far = udp(server, server.at(family, 5353));
            let near = udp(client, client.at(family, 0));
            // Connected, because that passes the hook of connect() too.
            near.connect(server.at(family, 5353)).unwrap();
            near.send(b"ask").unwrap();
            let mut buffer = [0; 16];
            let (count, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"ask");
            assert_eq!(from, near.local_addr().unwrap());
            assert_eq!(from.ip(), client.address(family));
            far.send_to(b"tell", from).unwrap();
            let count = near.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"tell");
            assert_eq!(near.peer_addr().unwrap(), server.at(family, 5353));
        }
    }
}

fn udp(host: &Host, address: SocketAddr) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_pod_that_calls_itself_is_left_alone() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let pod = world.pod("a", 0);
    let _running = pod.serve(Kind::Http, 8080).unwrap();
    let own: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        pod.v4.into(),
        pod.v6.into(),
    ];
    for address in own {
        let to = SocketAddr::new(address, 8080);
        let answer = pod.enter(|| traffic::get(to, "self", PATIENCE)).unwrap();
        // The very same port at both ends: there is nobody in between.
        assert_eq!(answer.peer, answer.client_local, "{to}");
        assert_eq!(answer.local, to);
    }
}

#[test]
fn nobody_listens_outside_and_the_client_learns_it() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    for family in Family::BOTH {
        let to = outside.at(family, 1);
        let outcome: io::Result<_> = client.enter(|| traffic::get(to, "x", PATIENCE));
        assert!(outcome.is_err(), "{outcome:?}");
    }
}
