//! Outbound capture: which connections are captured, and what the application sees of it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use super::super::Exemptions;
use super::world::{MARK, OTHER4, OTHER6, POD4, POD6, World, at, dial, in_namespace, listen, tcp};

#[test]
#[ignore = "needs root"]
fn a_connection_reaches_the_proxy_and_the_application_sees_the_dialled_address() {
    in_namespace(|| {
        let world = World::new();
        for (dialled, pod) in [("192.0.2.1:80", POD4), ("[2001:db8::1]:443", POD6)] {
            let dialled = at(dialled);
            let mut app = dial(dialled).unwrap();
            let (mut proxy, found) = world.captured(dialled.is_ipv4()).unwrap();
            assert_eq!(found, dialled);
            assert_eq!(app.peer_addr().unwrap(), dialled);
            assert_eq!(app.local_addr().unwrap().ip(), pod);
            // An IPv6 socket stays on loopback: its resets would not reach the proxy otherwise.
            let client = proxy.peer_addr().unwrap();
            assert_eq!(client.port(), app.local_addr().unwrap().port());
            assert!(client.ip() == pod || (dialled.is_ipv6() && client.ip().is_loopback()));
            app.write_all(b"ping").unwrap();
            let mut bytes = [0; 4];
            proxy.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"ping");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_mapped_address_is_captured_as_ipv4() {
    in_namespace(|| {
        let world = World::new();
        let app = tcp(false);
        let dialled = at("[::ffff:192.0.2.1]:80");
        app.connect(&dialled.into()).unwrap();
        let (proxy, found) = world.captured(true).unwrap();
        assert_eq!(found, at("192.0.2.1:80"));
        assert_eq!(proxy.peer_addr().unwrap().ip(), POD4);
        assert_eq!(app.peer_addr().unwrap().as_socket(), Some(dialled));
        let own = app.local_addr().unwrap().as_socket().unwrap().ip();
        assert_eq!(own.to_canonical(), POD4);
        assert!(own.is_ipv6(), "in the family of the socket");
    });
}

#[test]
#[ignore = "needs root"]
fn a_family_without_a_pod_address_is_captured() {
    in_namespace(|| {
        use std::os::fd::AsFd as _;
        let world = World::new();
        world.enroll_with(&[POD4], world.inbound.as_fd());
        let dialled = at("[2001:db8::1]:80");
        let _app = dial(dialled).unwrap();
        let (_, found) = world.captured(false).unwrap();
        assert_eq!(found, dialled);
    });
}

#[test]
#[ignore = "needs root"]
fn connections_to_the_machine_and_the_pod_itself_are_not_captured() {
    in_namespace(|| {
        let world = World::new();
        let server = listen(at("[::]:8080"));
        for dialled in [
            "127.0.0.1:8080",
            "127.3.2.1:8080",
            "[::1]:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "10.9.0.1:8080",
            "[fd09::1]:8080",
        ] {
            let app = dial(at(dialled)).expect(dialled);
            let (_, client) = super::world::accept(&server).expect(dialled);
            let own = app.local_addr().unwrap();
            assert_eq!(client.ip().to_canonical(), own.ip(), "{dialled}");
        }
        assert!(world.kernel.enrolled().unwrap().contains(&world.cookie));
    });
}

#[test]
#[ignore = "needs root"]
fn exemptions_hold_for_new_connections_and_can_be_removed() {
    in_namespace(|| {
        let world = World::with(|config| {
            config.exemptions.outbound_ports = vec![8080];
            // Both ends are in this namespace: the server's end must be exempt, too.
            config.exemptions.inbound_ports = vec![8080];
            config.exemptions.outbound_cidrs = vec!["fd09::2/128".parse().unwrap()];
        });
        let server = listen(at("[::]:8080"));
        let reaches = |address: IpAddr, port: u16| {
            let _app = dial(SocketAddr::new(address, port)).unwrap();
            super::world::accept(&server).is_some()
        };
        assert!(reaches(OTHER4, 8080), "exempt port");
        assert!(reaches(OTHER6, 8080), "exempt port");
        world
            .kernel
            .set_exemptions(&Exemptions {
                outbound_cidrs: vec!["10.9.0.0/24".parse().unwrap()],
                inbound_ports: vec![8080],
                ..Exemptions::default()
            })
            .unwrap();
        assert!(reaches(OTHER4, 8080), "exempt network");
        assert!(!reaches(OTHER6, 8080), "no longer exempt");
        assert_eq!(
            world.captured(false).unwrap().1,
            SocketAddr::new(OTHER6, 8080)
        );
        let none = Exemptions::default();
        world.kernel.set_exemptions(&none).unwrap();
        assert!(!reaches(OTHER4, 8080), "no longer exempt");
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_own_sockets_are_not_captured() {
    in_namespace(|| {
        let world = World::new();
        // Inbound connections to the HBONE port are not steered, so this listener sees them.
        let server = listen(at("[::]:15008"));
        let own = tcp(true);
        own.set_mark(MARK).unwrap();
        own.connect(&at("10.9.0.2:15008").into()).unwrap();
        assert!(super::world::accept(&server).is_some());
        let _app = dial(at("10.9.0.2:15008")).unwrap();
        assert!(super::world::accept(&server).is_none());
        assert!(world.captured(true).is_some());
        let own = tcp(true);
        own.set_mark(MARK).unwrap();
        own.set_nonblocking(true).unwrap();
        assert!(own.connect(&at("192.0.2.1:80").into()).is_err());
        assert!(world.captured(true).is_none());
    });
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_is_not_enrolled_is_unaffected() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let (ready, enrolled) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        in_namespace(move || {
            let world = World::new();
            ready.send(()).unwrap();
            wait.recv().unwrap();
            drop(world);
        });
    });
    enrolled.recv().unwrap();
    in_namespace(|| {
        let server = listen(at("10.9.0.2:8080"));
        let app = dial(at("10.9.0.2:8080")).unwrap();
        assert!(super::world::accept(&server).is_some());
        assert_eq!(app.peer_addr().unwrap(), at("10.9.0.2:8080"));
    });
    done.send(()).unwrap();
    other.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn without_the_proxy_captured_connections_are_refused() {
    in_namespace(|| {
        let mut world = World::new();
        world.outbound4 = None;
        world.outbound6 = None;
        for dialled in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            let error = dial(at(dialled)).unwrap_err();
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{dialled}"
            );
        }
    });
}
