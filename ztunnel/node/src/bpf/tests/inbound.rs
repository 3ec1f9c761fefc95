//! Inbound capture: the proxy accepts connections to every address and port of a pod, or they fail.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use super::super::Exemptions;
use super::world::{
    MARK, OTHER4, OTHER6, POD4, POD6, Wire, World, accept, at, in_namespace, listen, tcp,
};

/// A client from outside the pod: its address is not the pod's.
fn dial_from(own: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tcp(to.is_ipv4());
    // With the proxy's mark: a connection of the pod would be captured on the way out.
    socket.set_mark(MARK)?;
    socket.bind(&SocketAddr::new(own, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
#[ignore = "needs root"]
fn any_port_reaches_the_proxy_which_sees_the_dialled_address() {
    in_namespace(|| {
        let world = World::new();
        let app = listen(at("[::]:8080"));
        for (own, pod) in [(OTHER4, POD4), (OTHER6, POD6)] {
            for port in [8080, 1, 65535] {
                let to = SocketAddr::new(pod, port);
                let client = dial_from(own, to).unwrap();
                let (stream, from) = accept(&world.inbound).expect("accepted by the proxy");
                let local = stream.local_addr().unwrap();
                assert_eq!(SocketAddr::new(local.ip().to_canonical(), local.port()), to);
                assert_eq!(from.ip().to_canonical(), own);
                assert_eq!(from.port(), client.local_addr().unwrap().port());
            }
        }
        assert!(accept(&app).is_none());
    });
}

#[test]
#[ignore = "needs root"]
fn hbone_and_exempt_connections_reach_their_own_listeners() {
    in_namespace(|| {
        let world = World::with(|config| {
            config.exemptions.inbound_ports = vec![9090];
            config.exemptions.inbound_cidrs = vec!["fd09::2/128".parse().unwrap()];
        });
        for (own, pod, port) in [
            (OTHER4, POD4, 15008),
            (OTHER6, POD6, 15008),
            (OTHER4, POD4, 9090),
            (OTHER6, POD6, 8080),
        ] {
            let server = listen(SocketAddr::new("::".parse().unwrap(), port));
            let _client = dial_from(own, SocketAddr::new(pod, port)).unwrap();
            assert!(accept(&server).is_some(), "{pod} {port}");
        }
        assert!(accept(&world.inbound).is_none());
    });
}

/// An address outside of the pod.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

/// Whether a connection into the pod is captured, and whether one out of it is.
fn captured(world: &World, port: u16) -> (bool, bool) {
    let app = listen(SocketAddr::new("::".parse().unwrap(), port));
    let _client = dial_from(OTHER4, SocketAddr::new(POD4, port)).unwrap();
    let inbound = accept(&world.inbound).is_some();
    assert_eq!(accept(&app).is_none(), inbound, "{port}");
    let mut wire = Wire::tap();
    let to = SocketAddr::new(OUTSIDE, port);
    let client = tcp(true);
    client.set_nonblocking(true).unwrap();
    drop(client.connect(&to.into()));
    let outbound = world.captured();
    if let Some((_, found)) = &outbound {
        assert_eq!(*found, to);
    }
    assert_eq!(wire.packets() == 0, outbound.is_some(), "{port}");
    (inbound, outbound.is_some())
}

#[test]
#[ignore = "needs root"]
fn an_exemption_in_one_direction_does_not_affect_the_other() {
    in_namespace(|| {
        let world = World::with(|config| {
            config.exemptions.outbound_ports = vec![3306, 5432];
            config.exemptions.inbound_ports = vec![15020, 5432];
        });
        assert_eq!(captured(&world, 3306), (true, false), "outbound");
        assert_eq!(captured(&world, 15020), (false, true), "inbound");
        assert_eq!(captured(&world, 5432), (false, false), "both");
        assert_eq!(captured(&world, 80), (true, true), "neither");
        let other = "10.9.0.2/32".parse().unwrap();
        let outbound = Exemptions {
            outbound_cidrs: vec!["192.0.2.9/32".parse().unwrap()],
            inbound_ports: vec![3306],
            ..Exemptions::default()
        };
        world.kernel.set_exemptions(&outbound).unwrap();
        assert_eq!(captured(&world, 80), (true, false), "outbound");
        assert_eq!(captured(&world, 3306), (false, false), "the port inbound");
        let inbound = Exemptions {
            inbound_cidrs: vec![other],
            outbound_ports: vec![15020],
            ..Exemptions::default()
        };
        world.kernel.set_exemptions(&inbound).unwrap();
        assert_eq!(captured(&world, 80), (false, true), "inbound");
        assert_eq!(captured(&world, 15020), (false, false), "the port outbound");
        // The narrower network does not hide the direction of the wider one.
        let nested = Exemptions {
            outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            inbound_cidrs: vec![other, "192.0.2.9/32".parse().unwrap()],
            ..Exemptions::default()
        };
        world.kernel.set_exemptions(&nested).unwrap();
        assert_eq!(captured(&world, 80), (false, false), "nested");
    });
}

#[test]
#[ignore = "needs root"]
fn every_listener_of_the_group_accepts_connections() {
    in_namespace(|| {
        let world = World::new();
        let second: TcpListener = listen(at("[::]:15006"));
        let mut counts = [0, 0];
        let mut clients = Vec::new();
        for _ in 0..64 {
            clients.push(dial_from(OTHER4, SocketAddr::new(POD4, 80)).unwrap());
        }
        for (listener, count) in [&world.inbound, &second].into_iter().zip(&mut counts) {
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {
                *count += 1;
            }
        }
        assert_eq!(counts[0] + counts[1], 64);
        assert!(counts[0] > 8 && counts[1] > 8, "{counts:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn without_the_proxy_new_connections_fail_and_established_ones_continue() {
    in_namespace(|| {
        let mut world = World::new();
        let app = listen(at("[::]:8080"));
        world.kernel.withdraw(world.cookie).unwrap();
        let mut before = dial_from(OTHER4, SocketAddr::new(POD4, 8080)).unwrap();
        let (mut served, _) = accept(&app).expect("not captured yet");
        world.enroll();
        world.inbound = listen(at("[::]:1"));
        for (own, pod) in [(OTHER4, POD4), (OTHER6, POD6)] {
            let error = dial_from(own, SocketAddr::new(pod, 8080)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        before.write_all(b"still here").unwrap();
        let mut bytes = [0; 10];
        served.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"still here");
    });
}

#[test]
#[ignore = "needs root"]
fn connections_to_an_unknown_address_of_the_pod_reach_the_proxy() {
    in_namespace(|| {
        let world = World::new();
        world.enroll_with(&[POD4], world.inbound.as_fd());
        let app = listen(at("[::]:8080"));
        let to = SocketAddr::new(POD6, 8080);
        let _client = dial_from(OTHER6, to).unwrap();
        let (proxy, _) = accept(&world.inbound).expect("steered");
        assert_eq!(proxy.local_addr().unwrap(), to);
        assert!(accept(&app).is_none());
    });
}
