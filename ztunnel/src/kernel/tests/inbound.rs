//! Inbound: whatever a client dials in a pod, the proxy accepts it, or nobody does.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use super::world::{
    MARK, OTHER4, OTHER6, POD4, POD6, World, accept, at, in_namespace, listen, tcp,
};

/// A client from outside the pod: its address is not the pod's.
fn dial_from(own: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tcp(to.is_ipv4());
    // It is not the pod that calls: its own connections would be captured on the way out.
    socket.set_mark(MARK)?;
    socket.bind(&SocketAddr::new(own, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
#[ignore = "needs root"]
fn any_port_reaches_the_proxy_which_sees_what_was_dialled() {
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
            config.exempt_ports = vec![9090];
            config.exempt_cidrs = vec!["fd09::2/128".parse().unwrap()];
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

#[test]
#[ignore = "needs root"]
fn every_listener_of_the_group_gets_its_share() {
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
fn without_the_proxy_nothing_gets_in_and_established_connections_go_on() {
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
fn an_address_that_is_not_the_pods_is_dropped() {
    in_namespace(|| {
        let world = World::new();
        world.enroll_with(&[POD4], world.inbound.as_fd());
        let _app = listen(at("[::]:8080"));
        let error = dial_from(OTHER6, SocketAddr::new(POD6, 8080));
        assert!(error.is_err(), "the pod no longer has this address");
        assert!(dial_from(OTHER4, SocketAddr::new(POD4, 8080)).is_ok());
    });
}
