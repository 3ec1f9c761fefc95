//! Traffic outside the mesh is not changed: other hosts, other protocols, and connections of a pod
//! to itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;

use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Answer, IoMode, Kind, Stream};

use crate::connections::TIMEOUT;

#[test]
fn a_host_outside_the_mesh_sees_the_pods_address() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _running = outside.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = outside.at(family, 8080);
        let answer = client.enter(|| traffic::get(to, "out", TIMEOUT)).unwrap();
        assert_eq!(answer.local, to);
        assert_eq!(answer.peer.ip(), client.address(family));
        assert_eq!(answer.client_peer, to);
        assert_eq!(answer.client_local.ip(), client.address(family));
    }
}

/// The proxy carries the first connection, the kernel those after it: both leave in the same way.
#[test]
fn privileged_ports_and_devices_that_an_application_has_chosen_are_kept() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _running = outside.serve(Kind::Http, 8080).unwrap();
    let device = client.enter(|| {
        let devices = nix::net::if_::if_nameindex().unwrap();
        let mut names = devices.iter().map(|device| device.name().to_owned());
        names.find(|name| name.as_bytes() != b"lo").unwrap()
    });
    // The proxy takes ports from 600 up.
    for (family, first) in [(Family::V4, 501), (Family::V6, 511)] {
        let to = outside.at(family, 8080);
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        for (own, port) in [
            (client.address(family), first),
            (any, first + 1),
            (any, first + 2),
        ] {
            let answer = client.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(own, port).into()).unwrap();
                get_over(socket, to)
            });
            let peer = answer.unwrap().peer;
            assert!(peer.port() < 1024, "{peer}");
            assert_eq!(peer.ip(), client.address(family));
        }
        for _ in 0..2 {
            let answer = client.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.bind_device(Some(device.as_bytes())).unwrap();
                get_over(socket, to)
            });
            assert_eq!(answer.unwrap().peer.ip(), client.address(family));
        }
    }
}

/// A rule of the pod's own forbids this mark: it applies to the proxy's connection, too.
#[test]
fn the_mark_that_an_application_has_set_is_kept() {
    const FORBIDDEN: &str = "0x77";
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _running = outside.serve(Kind::Http, 8080).unwrap();
    for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let to = outside.at(family, 8080);
        let get = |mark| {
            client.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.set_mark(mark).unwrap();
                get_over(socket, to)
            })
        };
        for _ in 0..2 {
            assert_eq!(get(0x77).unwrap().peer.ip(), client.address(family));
        }
        let added = client.enter(|| {
            let rule = [
                "rule", "add", "pref", "100", "fwmark", FORBIDDEN, "prohibit",
            ];
            Command::new("ip").arg(flag).args(rule).status()
        });
        assert!(added.unwrap().success());
        for _ in 0..2 {
            assert!(get(0x77).is_err());
            assert_eq!(get(0x78).unwrap().peer.ip(), client.address(family));
        }
    }
}

fn get_over(socket: Socket, to: SocketAddr) -> io::Result<Answer> {
    socket.connect(&to.into())?;
    let mut stream = Stream::new(socket.into(), IoMode::Blocking)?;
    traffic::get_over(&mut stream, "out", TIMEOUT)
}

#[test]
fn a_pod_that_is_not_a_workload_is_reached_in_plaintext() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 1));
    let _mesh = Mesh::builder(&world).without(server).start().unwrap();
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, 8080);
        let answer = client.enter(|| traffic::get(to, "out", TIMEOUT)).unwrap();
        assert_eq!(answer.peer.ip(), client.address(family));
    }
}

#[test]
fn udp_is_not_captured() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let client = world.pod("a", 0);
    for server in [world.outside(), world.pod("b", 0)] {
        for family in Family::BOTH {
            let far = udp(server, server.at(family, 5353));
            let near = udp(client, client.at(family, 0));
            // A connected socket also passes the connect hook.
            near.connect(server.at(family, 5353)).unwrap();
            near.send(b"query").unwrap();
            let mut buffer = [0; 16];
            let (count, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"query");
            assert_eq!(from, near.local_addr().unwrap());
            assert_eq!(from.ip(), client.address(family));
            far.send_to(b"reply", from).unwrap();
            let count = near.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"reply");
            assert_eq!(near.peer_addr().unwrap(), server.at(family, 5353));
        }
    }
}

fn udp(host: &Host, address: SocketAddr) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[test]
fn a_connection_of_a_pod_to_itself_is_not_captured() {
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
        let answer = pod.enter(|| traffic::get(to, "self", TIMEOUT)).unwrap();
        // Both ends see the same port, so there is no proxy in between.
        assert_eq!(answer.peer, answer.client_local, "{to}");
        assert_eq!(answer.local, to);
    }
}

#[test]
fn a_closed_port_outside_the_mesh_is_reported_to_the_client() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let (client, outside) = (world.pod("a", 0), world.outside());
    for family in Family::BOTH {
        let to = outside.at(family, 1);
        let outcome: io::Result<_> = client.enter(|| traffic::get(to, "x", TIMEOUT));
        assert!(outcome.is_err(), "{outcome:?}");
    }
}
