//! getsockname and getpeername of the application return the same as without a proxy: its own
//! address and the dialled address.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Socket, Type};
use ztunnel_tests::data_path::{DataPath, Topology, bypasses_the_proxy};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{Kind, Stream};

use crate::connections::{TIMEOUT, addresses_of};

/// Exchanges data. The addresses are checked before and after.
fn exchange(stream: &mut Stream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

fn own(client: &Host, to: SocketAddr) -> std::net::IpAddr {
    client.address(if to.is_ipv4() { Family::V4 } else { Family::V6 })
}

on_paths!(the_client_sees_its_own_address_and_the_dialled_address: tunnel, direct, joined, auto);
fn the_client_sees_its_own_address_and_the_dialled_address(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Echo, 8080).unwrap();
    for to in addresses_of(server) {
        let mut stream = topology.dial(client, to).unwrap();
        for _before_and_after in 0..2 {
            assert_eq!(stream.peer_addr().unwrap(), to);
            assert_eq!(
                stream.local_addr().unwrap().ip(),
                own(client, to),
                "to {to}"
            );
            exchange(&mut stream);
        }
    }
}

on_paths!(a_bound_source_port_is_kept: tunnel, direct, joined, auto);
fn a_bound_source_port_is_kept(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Echo, 8080).unwrap();
    let mut port = 4000;
    for to in addresses_of(server) {
        drop(topology.dial(client, to).unwrap());
        let wildcard: std::net::IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        for bound in [wildcard, own(client, to)] {
            port += 1;
            let socket = client.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(bound, port).into()).unwrap();
                socket.connect(&to.into()).unwrap();
                socket
            });
            let mut stream = Stream::new(socket.into(), data_path.io_mode()).unwrap();
            let direct = bypasses_the_proxy(client, &stream).unwrap();
            assert_eq!(
                direct,
                data_path.bypasses_the_proxy(),
                "bound to {bound}, to {to}"
            );
            assert_eq!(stream.peer_addr().unwrap(), to, "bound to {bound}");
            let expected = SocketAddr::new(own(client, to), port);
            assert_eq!(
                stream.local_addr().unwrap(),
                expected,
                "bound to {bound}, to {to}"
            );
            exchange(&mut stream);
        }
    }
}

on_paths!(an_ipv6_socket_that_dials_an_ipv4_mapped_address_sees_mapped_addresses: tunnel, direct, joined, auto);
fn an_ipv6_socket_that_dials_an_ipv4_mapped_address_sees_mapped_addresses(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Echo, 8080).unwrap();
    for (address, port) in [(server.v4, 8080), (Mesh::service(server).v4, 80)] {
        let to = SocketAddr::V6(SocketAddrV6::new(address.to_ipv6_mapped(), port, 0, 0));
        let mut stream = topology.dial(client, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let local = stream.local_addr().unwrap().ip();
        assert_eq!(local, std::net::IpAddr::V6(client.v4.to_ipv6_mapped()));
        exchange(&mut stream);
    }
}

on_paths!(a_refused_socket_can_connect_to_another_destination: tunnel, direct, joined, auto);
/// The first destination refuses; the socket then connects to another one.
fn a_refused_socket_can_connect_to_another_destination(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let refusing = topology.serve(Kind::Echo, 9000).unwrap();
    let _running = topology.serve(Kind::Echo, 8080).unwrap();
    let service = Mesh::service(server);
    let mut destinations = Vec::new();
    for family in Family::BOTH {
        let first = service.at(family, 9000);
        drop(topology.dial(client, first).unwrap());
        for next in [server.at(family, 8080), service.at(family, 80)] {
            drop(topology.dial(client, next).unwrap());
            destinations.push((first, next));
        }
    }
    drop(refusing);
    for (first, next) in destinations {
        let socket = client.enter(|| {
            let socket = Socket::new(Domain::for_address(next), Type::STREAM, None).unwrap();
            // In a tunnel the connection is established before the refusal is known.
            if data_path.bypasses_the_proxy() {
                socket.connect(&first.into()).unwrap_err();
            }
            socket.connect(&next.into()).unwrap();
            socket
        });
        let mut stream = Stream::new(socket.into(), data_path.io_mode()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), next, "after {first}");
        assert_eq!(stream.local_addr().unwrap().ip(), own(client, next));
        let direct = bypasses_the_proxy(client, &stream).unwrap();
        assert_eq!(
            direct,
            data_path.bypasses_the_proxy(),
            "{next} after {first}"
        );
        exchange(&mut stream);
    }
}
