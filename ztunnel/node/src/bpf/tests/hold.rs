//! A captured connection never leaves its pod, whatever happens to the rules, the routes and the socket in
//! the middle of it.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use socket2::SockRef;

use super::world::{
    DELIVERY_MARK, DEVICE, OTHER4, OTHER6, POD4, POD6, Wire, World, accept, at, dial, in_namespace,
    listen, tcp,
};
use crate::pods::netlab::{delete_default_route, delete_rule, index};

const DIALLED: [&str; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"];
const CAPTURE_TABLE: u32 = 15001;
const DELIVERY: u32 = 1;
const RULE: u32 = 2;
const REFUSAL: u32 = 3;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// How long the kernel may take to send again what it could not send.
const RETRANSMISSION: Duration = Duration::from_millis(400);

fn flush_rules() {
    for family in FAMILIES {
        delete_rule(family, RULE);
        delete_rule(family, REFUSAL);
    }
}

fn flush_table() {
    for family in FAMILIES {
        for device in ["lo", DEVICE] {
            delete_default_route(family, CAPTURE_TABLE, index(device));
        }
    }
}

/// What is done to an open connection.
type Attack = fn(&TcpStream);

const ATTACKS: [(&str, Attack); 7] = [
    ("rules flushed", |_| flush_rules()),
    ("table and second rule flushed", |_| {
        flush_table();
        for family in FAMILIES {
            delete_rule(family, REFUSAL);
        }
    }),
    ("mark removed", |app| {
        SockRef::from(app).set_mark(0).unwrap()
    }),
    ("another mark", |app| {
        SockRef::from(app).set_mark(77).unwrap()
    }),
    ("bound to the device", |app| {
        SockRef::from(app)
            .bind_device(Some(DEVICE.as_bytes()))
            .unwrap();
    }),
    ("bound to the device, mark removed", |app| {
        let app = SockRef::from(app);
        app.bind_device(Some(DEVICE.as_bytes())).unwrap();
        app.set_mark(0).unwrap();
    }),
    ("bound to the device, rules flushed", |app| {
        SockRef::from(app)
            .bind_device(Some(DEVICE.as_bytes()))
            .unwrap();
        flush_rules();
    }),
];

/// How many packets leave the pod when the application sends after the attack, and closes.
fn packets_after(attack: Attack, dialled: SocketAddr, is_held: bool) -> usize {
    in_namespace(move || {
        let world = World::new();
        if !is_held {
            super::super::pins::detach(&world.pins().join("links/hold")).unwrap();
            drop(world.kernel.links.take(&world.pins().join("links/hold")));
        }
        let mut app = dial(dialled).unwrap();
        let (_proxy, _) = world.captured().unwrap();
        app.write_all(b"before").unwrap();
        let mut wire = Wire::tap();
        attack(&app);
        app.set_nonblocking(true).unwrap();
        drop(app.write_all(b"after"));
        std::thread::sleep(RETRANSMISSION);
        drop(app);
        std::thread::sleep(RETRANSMISSION);
        wire.packets()
    })
}

#[test]
#[ignore = "needs root"]
fn an_open_connection_never_leaves_the_pod() {
    for (name, attack) in ATTACKS {
        for dialled in DIALLED.map(at) {
            assert_eq!(packets_after(attack, dialled, true), 0, "{name}: {dialled}");
        }
    }
}

/// Verifies the test above: without the program, some of these leak.
#[test]
#[ignore = "needs root"]
fn without_the_program_open_connections_leak() {
    let (_, rules_flushed) = ATTACKS[0];
    let (_, mark_removed) = ATTACKS[2];
    for attack in [rules_flushed, mark_removed] {
        for dialled in DIALLED.map(at) {
            assert!(packets_after(attack, dialled, false) > 0, "{dialled}");
        }
    }
}

/// The server's end of a delivery: its replies have the client's real address as their destination.
#[test]
#[ignore = "needs root"]
fn replies_to_a_delivery_never_leave_the_pod() {
    let attacks: [(&str, Attack); 2] = [
        ("rule flushed", |_| {
            for family in FAMILIES {
                delete_rule(family, DELIVERY);
            }
        }),
        ("another mark", |app| {
            SockRef::from(app).set_mark(77).unwrap()
        }),
    ];
    for (name, attack) in attacks {
        for (client, pod) in [("192.0.2.7:4000", POD4), ("[2001:db8::7]:4000", POD6)] {
            let sent = in_namespace(move || {
                let _world = World::new();
                let server = listen(SocketAddr::new(pod, 8080));
                let proxy = tcp(pod.is_ipv4());
                if pod.is_ipv4() {
                    proxy.set_ip_transparent_v4(true).unwrap();
                } else {
                    proxy.set_ip_transparent_v6(true).unwrap();
                }
                proxy.set_mark(DELIVERY_MARK).unwrap();
                proxy.bind_device(Some(b"lo")).unwrap();
                proxy.bind(&at(client).into()).unwrap();
                proxy.connect(&SocketAddr::new(pod, 8080).into()).unwrap();
                let (mut app, _) = accept(&server).unwrap();
                let mut wire = Wire::tap();
                attack(&app);
                app.set_nonblocking(true).unwrap();
                drop(app.write_all(b"after"));
                std::thread::sleep(RETRANSMISSION);
                wire.packets()
            });
            assert_eq!(sent, 0, "{name}: {client}");
        }
    }
}

/// `inbound` would not recognise where such a connection comes from.
#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_an_unknown_address_is_refused() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        for (own, dialled) in [OTHER4, OTHER6].into_iter().zip(DIALLED.map(at)) {
            let app = tcp(own.is_ipv4());
            app.bind(&SocketAddr::new(own, 0).into()).unwrap();
            let error = app.connect(&dialled.into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{dialled}");
        }
        assert!(world.captured().is_none());
        assert_eq!(wire.packets(), 0);
    });
}

/// New connections, with each part of the routing missing.
#[test]
#[ignore = "needs root"]
fn a_new_connection_without_routing_is_refused_or_held() {
    let both = || {
        flush_rules();
        flush_table();
    };
    let first_rule = || {
        for family in FAMILIES {
            delete_rule(family, RULE);
        }
    };
    let removals: [(&str, fn()); 4] = [
        ("first rule", first_rule),
        ("rules", flush_rules),
        ("table", flush_table),
        ("both", both),
    ];
    for (name, remove) in removals {
        in_namespace(move || {
            let world = World::new();
            remove();
            let mut wire = Wire::tap();
            for dialled in DIALLED.map(at) {
                for device in [None, Some(DEVICE.as_bytes())] {
                    let app = tcp(dialled.is_ipv4());
                    app.bind_device(device).unwrap();
                    let connected = app.connect_timeout(&dialled.into(), RETRANSMISSION);
                    assert!(connected.is_err(), "{name}: {dialled}");
                }
            }
            assert!(world.captured().is_none());
            assert_eq!(wire.packets(), 0, "{name}");
        });
    }
}

/// The second rule, behind the first, makes a lost rule an error at once.
#[test]
#[ignore = "needs root"]
fn without_the_first_rule_connections_are_refused_at_once() {
    in_namespace(|| {
        let _world = World::new();
        for (family, dialled) in FAMILIES.into_iter().zip(DIALLED.map(at)) {
            delete_rule(family, RULE);
            let error = dial(dialled).unwrap_err();
            assert!(
                matches!(
                    error.raw_os_error(),
                    Some(libc::EHOSTUNREACH | libc::ENETUNREACH)
                ),
                "{dialled}: {error}"
            );
        }
    });
}

/// A connection that is open when its pod is enrolled goes on as it is.
#[test]
#[ignore = "needs root"]
fn a_connection_from_before_enrolment_is_not_held() {
    in_namespace(|| {
        let world = World::new();
        world.kernel.withdraw(world.cookie).unwrap();
        let mut wire = Wire::tap();
        for dialled in DIALLED.map(at) {
            let app = tcp(dialled.is_ipv4());
            app.set_nonblocking(true).unwrap();
            assert!(app.connect(&dialled.into()).is_err());
            assert!(wire.packets() > 0);
            world.enroll();
            // The SYN is sent again after a second.
            std::thread::sleep(Duration::from_millis(1300));
            assert!(wire.packets() > 0, "{dialled}");
            assert!(world.captured().is_none());
            world.kernel.withdraw(world.cookie).unwrap();
        }
    });
}
