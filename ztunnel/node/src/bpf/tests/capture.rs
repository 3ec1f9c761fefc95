//! Outbound capture: which connections are captured, and what the application sees of it.

use std::io::{Read as _, Write as _};

use super::super::Exemptions;
use super::world::{DEVICE, MARK, POD4, POD6, Wire, World, at, dial, in_namespace, listen, tcp};

#[test]
#[ignore = "needs root"]
fn a_connection_reaches_the_proxy_and_the_application_sees_the_dialled_address() {
    in_namespace(|| {
        let world = World::new();
        for (dialled, pod) in [("192.0.2.1:80", POD4), ("[2001:db8::1]:443", POD6)] {
            let dialled = at(dialled);
            let mut app = dial(dialled).unwrap();
            let (mut proxy, found) = world.captured().unwrap();
            assert_eq!(found, dialled);
            assert_eq!(app.peer_addr().unwrap(), dialled);
            assert_eq!(app.local_addr().unwrap().ip(), pod);
            let client = proxy.peer_addr().unwrap();
            assert_eq!(client.ip().to_canonical(), pod);
            assert_eq!(client.port(), app.local_addr().unwrap().port());
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
        let (proxy, found) = world.captured().unwrap();
        assert_eq!(found, at("192.0.2.1:80"));
        assert_eq!(proxy.peer_addr().unwrap().ip().to_canonical(), POD4);
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
        // Removes the device's IPv6 addresses.
        let file = format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6");
        std::fs::write(file, "1").unwrap();
        world.enroll_with(&[POD4], world.inbound.as_fd());
        let mut wire = Wire::tap();
        let dialled = at("[2001:db8::1]:80");
        let app = dial(dialled).unwrap();
        let (_, found) = world.captured().unwrap();
        assert_eq!(found, dialled);
        assert!(app.local_addr().unwrap().ip().is_loopback());
        assert_eq!(wire.packets(), 0);
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
            config.exemptions.outbound_cidrs = vec!["2001:db8::2/128".parse().unwrap()];
        });
        let leaves = |dialled: &str| {
            let mut wire = Wire::tap();
            let dialled = at(dialled);
            let app = tcp(dialled.is_ipv4());
            app.set_nonblocking(true).unwrap();
            drop(app.connect(&dialled.into()));
            let captured = world.captured();
            assert_eq!(wire.packets() > 0, captured.is_none(), "{dialled}");
            captured.is_none()
        };
        assert!(leaves("192.0.2.1:8080"), "exempt port");
        assert!(leaves("[2001:db8::1]:8080"), "exempt port");
        assert!(leaves("[2001:db8::2]:80"), "exempt network");
        assert!(!leaves("192.0.2.1:80"));
        let exemptions = Exemptions {
            outbound_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            ..Exemptions::default()
        };
        world.kernel.set_exemptions(&exemptions).unwrap();
        assert!(leaves("192.0.2.1:8080"), "exempt network");
        assert!(!leaves("[2001:db8::1]:8080"), "no longer exempt");
        assert!(!leaves("[2001:db8::2]:80"), "no longer exempt");
        let none = Exemptions::default();
        world.kernel.set_exemptions(&none).unwrap();
        assert!(!leaves("192.0.2.1:8080"), "no longer exempt");
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_own_sockets_are_not_captured() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        for dialled in ["192.0.2.1:80", "[2001:db8::1]:15008"].map(at) {
            let own = tcp(dialled.is_ipv4());
            own.set_mark(MARK).unwrap();
            own.set_nonblocking(true).unwrap();
            assert!(own.connect(&dialled.into()).is_err());
            assert!(wire.packets() > 0);
            assert!(world.captured().is_none());
            let _app = dial(dialled).unwrap();
            assert!(world.captured().is_some());
        }
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
        world.outbound = None;
        let mut wire = Wire::tap();
        for dialled in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            let error = dial(at(dialled)).unwrap_err();
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{dialled}"
            );
        }
        assert_eq!(wire.packets(), 0);
    });
}
