//! The application's own sockets tell it what they would tell without a proxy: its own address,
//! and the address it dialled.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Socket, Type};
use ztunnel_tests::lane::{Lane, Scene, bypasses_the_proxy};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{End, Kind};

use crate::ends::{PATIENCE, ways_to};

/// The connection works, and stays what it is afterwards.
fn speak(stream: &mut End) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
}

fn own(client: &Host, to: SocketAddr) -> std::net::IpAddr {
    client.address(if to.is_ipv4() { Family::V4 } else { Family::V6 })
}

on_lanes!(the_client_sees_its_own_address_and_the_one_it_dialled: tunnel, direct, joined, auto);
fn the_client_sees_its_own_address_and_the_one_it_dialled(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Echo, 8080).unwrap();
    for to in ways_to(server) {
        let mut stream = scene.dial(client, to).unwrap();
        for _before_and_after in 0..2 {
            assert_eq!(stream.peer_addr().unwrap(), to);
            assert_eq!(
                stream.local_addr().unwrap().ip(),
                own(client, to),
                "to {to}"
            );
            speak(&mut stream);
        }
    }
}

on_lanes!(a_port_that_was_bound_first_stays: tunnel, direct, joined, auto);
fn a_port_that_was_bound_first_stays(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Echo, 8080).unwrap();
    let mut port = 4000;
    for to in ways_to(server) {
        drop(scene.dial(client, to).unwrap());
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
            let mut stream = End::new(socket.into(), lane.manner()).unwrap();
            let direct = bypasses_the_proxy(client, &stream).unwrap();
            assert_eq!(
                direct,
                lane.bypasses_the_proxy(),
                "bound to {bound}, to {to}"
            );
            assert_eq!(stream.peer_addr().unwrap(), to, "bound to {bound}");
            let expected = SocketAddr::new(own(client, to), port);
            assert_eq!(
                stream.local_addr().unwrap(),
                expected,
                "bound to {bound}, to {to}"
            );
            speak(&mut stream);
        }
    }
}

on_lanes!(an_ipv6_socket_that_dials_a_mapped_address_sees_mapped_addresses: tunnel, direct, joined, auto);
fn an_ipv6_socket_that_dials_a_mapped_address_sees_mapped_addresses(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Echo, 8080).unwrap();
    for (address, port) in [(server.v4, 8080), (Mesh::service(server).v4, 80)] {
        let to = SocketAddr::V6(SocketAddrV6::new(address.to_ipv6_mapped(), port, 0, 0));
        let mut stream = scene.dial(client, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let local = stream.local_addr().unwrap().ip();
        assert_eq!(local, std::net::IpAddr::V6(client.v4.to_ipv6_mapped()));
        speak(&mut stream);
    }
}

on_lanes!(a_socket_that_was_refused_calls_somebody_else: tunnel, direct, joined, auto);
/// What it dialled first is not what it is connected to.
fn a_socket_that_was_refused_calls_somebody_else(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let gone = scene.serve(Kind::Echo, 9000).unwrap();
    let _running = scene.serve(Kind::Echo, 8080).unwrap();
    let service = Mesh::service(server);
    let mut known = Vec::new();
    for family in Family::BOTH {
        let first = service.at(family, 9000);
        drop(scene.dial(client, first).unwrap());
        for then in [server.at(family, 8080), service.at(family, 80)] {
            drop(scene.dial(client, then).unwrap());
            known.push((first, then));
        }
    }
    drop(gone);
    for (first, then) in known {
        let socket = client.enter(|| {
            let socket = Socket::new(Domain::for_address(then), Type::STREAM, None).unwrap();
            // In a tunnel a connection comes up before anybody knows that it is refused.
            if lane.bypasses_the_proxy() {
                socket.connect(&first.into()).unwrap_err();
            }
            socket.connect(&then.into()).unwrap();
            socket
        });
        let mut stream = End::new(socket.into(), lane.manner()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), then, "after {first}");
        assert_eq!(stream.local_addr().unwrap().ip(), own(client, then));
        let direct = bypasses_the_proxy(client, &stream).unwrap();
        assert_eq!(direct, lane.bypasses_the_proxy(), "{then} after {first}");
        speak(&mut stream);
    }
}
