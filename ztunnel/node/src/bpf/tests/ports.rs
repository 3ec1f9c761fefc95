//! Captured connections use local ports like connections without a mesh: the destination is part of what
//! has to be unique.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use mesh::fastpath::{Backend, FastPathEntry, FastPathKey, JoinMode};
use netlink_packet_route::link::LinkAttribute;
use smallvec::smallvec;
use socket2::{SockRef, Socket};
use ztunnel_ebpf_types::{CAPTURE_MARK, SOCKET_UNUSED, is_capture_mark};

use super::super::{ApplicationSocket, BackendChoice};
use super::world::{
    DEVICE, POD4, POD6, Wire, World, accept, at, dial, disconnect, in_namespace, tcp,
};
use crate::pods::netlab::{add_address, index, set_link_up, veth};

/// Two destinations of a family.
const DESTINATIONS: [[&str; 2]; 2] = [
    ["192.0.2.1:80", "192.0.2.2:80"],
    ["[2001:db8::1]:80", "[2001:db8::2]:80"],
];

#[test]
#[ignore = "needs root"]
fn three_hundred_connections_to_two_servers_need_two_hundred_ports() {
    in_namespace(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40199").unwrap();
        let world = World::new();
        for destinations in DESTINATIONS {
            let mut open = Vec::new();
            for number in 0..300 {
                let dialled = at(destinations[number % 2]);
                let app = dial(dialled).unwrap_or_else(|error| panic!("{number}: {error}"));
                let (proxy, found) = world.captured().unwrap();
                assert_eq!(found, dialled);
                assert_eq!(
                    proxy.peer_addr().unwrap().port(),
                    app.local_addr().unwrap().port()
                );
                open.push((app, proxy));
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn one_bound_port_dials_five_peers() {
    in_namespace(|| {
        let world = World::new();
        for (own, network) in [(POD4, "192.0.2."), (POD6, "2001:db8::")] {
            let own = SocketAddr::new(own, 4321);
            let mut open: Vec<Socket> = Vec::new();
            for peer in 1..=5 {
                let dialled = SocketAddr::new(format!("{network}{peer}").parse().unwrap(), 80);
                let app = tcp(own.is_ipv4());
                app.set_reuse_address(true).unwrap();
                app.bind(&own.into()).unwrap();
                app.connect(&dialled.into()).unwrap();
                let (proxy, found) = world.captured().unwrap();
                assert_eq!(found, dialled);
                assert_eq!(proxy.peer_addr().unwrap().port(), 4321);
                open.extend([app, proxy.into()]);
            }
        }
    });
}

/// A port that only a privileged application can bind is seen by the proxy as it is.
#[test]
#[ignore = "needs root"]
fn a_port_below_1024_stays() {
    in_namespace(|| {
        let world = World::new();
        for (own, dialled) in [(POD4, "192.0.2.1:2049"), (POD6, "[2001:db8::1]:2049")] {
            let app = tcp(own.is_ipv4());
            app.bind(&SocketAddr::new(own, 777).into()).unwrap();
            app.connect(&at(dialled).into()).unwrap();
            let (proxy, _) = world.captured().unwrap();
            assert_eq!(proxy.peer_addr().unwrap().port(), 777);
        }
    });
}

/// No map has an entry for a captured connection, open or closed.
#[test]
#[ignore = "needs root"]
fn captured_connections_need_no_map() {
    in_namespace(|| {
        let world = World::new();
        let entries = || {
            let maps = &world.kernel.maps;
            [
                maps.original_destinations.keys().unwrap().len(),
                maps.connections.keys().unwrap().len(),
                maps.fast_path.keys().unwrap().len(),
                maps.inbound_entries.keys().unwrap().len(),
            ]
        };
        let listener = world.outbound.as_ref().unwrap();
        for number in 0..2000 {
            let app = dial(at(DESTINATIONS[number % 2][0])).unwrap();
            let _proxy = accept(listener).unwrap();
            if number % 500 == 0 {
                assert_eq!(entries(), [0; 4], "{number} connections, one open");
            }
            drop(app);
        }
        assert_eq!(entries(), [0; 4]);
    });
}

/// A pod with two networks: a socket that is bound to the second one is captured with its address there.
#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_a_second_device_is_captured() {
    in_namespace(|| {
        let world = World::new();
        veth("pod1", vec![LinkAttribute::IfName("far1".into())]);
        let (pod, far) = (index("pod1"), index("far1"));
        set_link_up(pod);
        set_link_up(far);
        let second = ["10.8.0.1", "fd08::1"].map(|address| address.parse().unwrap());
        for address in second {
            add_address(pod, address);
        }
        let [second4, second6] = second;
        world.enroll_with(&[POD4, POD6, second4, second6], world.inbound.as_fd());
        for (own, dialled) in [(second4, "192.0.2.1:80"), (second6, "[2001:db8::1]:80")] {
            let app = tcp(own.is_ipv4());
            app.bind_device(Some(b"pod1")).unwrap();
            app.connect(&at(dialled).into()).unwrap();
            let (proxy, found) = world.captured().unwrap();
            assert_eq!(found, at(dialled));
            assert_eq!(proxy.peer_addr().unwrap().ip().to_canonical(), own);
        }
    });
}

/// The proxy asks only for connections of sockets that have a mark or a device.
#[test]
#[ignore = "needs root"]
fn what_the_application_has_set_is_known() {
    in_namespace(|| {
        let world = World::new();
        let device = index(DEVICE);
        for (own, dialled) in [(POD4, "192.0.2.1:80"), (POD6, "[2001:db8::1]:80")] {
            for (mark, is_bound, has_device) in [
                (0, false, false),
                (0, true, false),
                (77, false, false),
                (0, false, true),
                (77, true, true),
            ] {
                let app = tcp(own.is_ipv4());
                app.set_mark(mark).unwrap();
                if has_device {
                    app.bind_device(Some(DEVICE.as_bytes())).unwrap();
                }
                if is_bound {
                    app.bind(&SocketAddr::new(own, 0).into()).unwrap();
                }
                app.connect(&at(dialled).into()).unwrap();
                let (proxy, destination) = world.captured().unwrap();
                let client = proxy.peer_addr().unwrap();
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                let accepted = SockRef::from(&proxy).mark().unwrap();
                let known = |client| {
                    world
                        .kernel
                        .captured(world.cookie, client, destination, accepted)
                };
                let found = known(client).unwrap().unwrap();
                assert_eq!(found.destination, at(dialled));
                let expected = ApplicationSocket {
                    source: is_bound.then_some(own),
                    mark,
                    device: if has_device { device } else { 0 },
                };
                assert_eq!(found.application, expected);
                // The entry is taken out.
                let has_entry = mark != 0 || has_device;
                assert_eq!(known(client).unwrap().is_none(), has_entry);
            }
        }
    });
}

/// A socket that was captured once, and listens then: what it accepts is not captured.
#[test]
#[ignore = "needs root"]
fn a_captured_socket_that_listens_accepts_connections() {
    in_namespace(|| {
        let world = World::new();
        for (own, dialled) in [(POD4, "192.0.2.1:80"), (POD6, "[2001:db8::1]:80")] {
            let app = tcp(own.is_ipv4());
            app.set_mark(5).unwrap();
            app.connect(&at(dialled).into()).unwrap();
            drop(world.captured().unwrap());
            disconnect(&app);
            app.bind(&SocketAddr::new(own, 7000).into()).unwrap();
            app.listen(8).unwrap();
            assert_eq!(app.mark().unwrap(), 5, "the application's own mark");
            let _client = dial(SocketAddr::new(own, 7000)).unwrap();
            let (accepted, _) = app.accept().unwrap();
            let states = &world.kernel.maps.socket_states;
            let state = states.get(&accepted.as_raw_fd().cast_unsigned()).unwrap();
            assert!(
                state.is_none_or(|state| state.kind == SOCKET_UNUSED),
                "{state:?}"
            );
        }
    });
}

/// The same socket, disconnected, may connect to what is not captured.
#[test]
#[ignore = "needs root"]
fn a_captured_socket_gets_its_mark_back() {
    in_namespace(|| {
        let world = World::with(|config| config.exemptions.outbound_ports = vec![9999]);
        let app = tcp(true);
        app.set_mark(5).unwrap();
        for _ in 0..2 {
            app.connect(&at("192.0.2.1:80").into()).unwrap();
            assert!(is_capture_mark(app.mark().unwrap()));
            drop(world.captured().unwrap());
            disconnect(&app);
        }
        let mut wire = Wire::tap();
        app.set_nonblocking(true).unwrap();
        assert!(app.connect(&at("192.0.2.1:9999").into()).is_err());
        assert_eq!(app.mark().unwrap(), 5);
        assert!(wire.packets() > 0, "exempt: it leaves");
    });
}

/// The random choice may fall on a backend that the entry does not list: the proxy chooses among those
/// then.
#[test]
#[ignore = "needs root"]
fn the_proxy_learns_that_the_choice_fell_on_an_unlisted_backend() {
    in_namespace(|| {
        let world = World::new();
        let dialled = at("192.0.2.1:80");
        let key = FastPathKey {
            pod: world.cookie,
            destination: dialled,
        };
        let entry = FastPathEntry {
            backends: smallvec![Backend {
                to: at("192.0.2.9:80"),
                server: None,
                weight: 1,
                join_mode: JoinMode::Apart,
            }],
            total: 1_000_000,
        };
        let choice = |is_bound: bool| {
            let app = tcp(true);
            if is_bound {
                app.bind(&SocketAddr::new(POD4, 0).into()).unwrap();
            }
            app.connect(&dialled.into()).unwrap();
            let (proxy, destination) = world.captured().unwrap();
            let mark = SockRef::from(&proxy).mark().unwrap();
            let client = app.local_addr().unwrap().as_socket().unwrap();
            let known = world
                .kernel
                .captured(world.cookie, client, destination, mark);
            let known = known.unwrap().unwrap();
            assert_eq!(known.application.source.is_some(), is_bound);
            known.choice
        };
        assert_eq!(choice(false), BackendChoice::Any);
        world.kernel.insert_entry(&key, &entry).unwrap();
        for is_bound in [false, true] {
            assert_eq!(choice(is_bound), BackendChoice::Unlisted);
        }
    });
}

/// A pod that has left, and whose application connects with the same socket again.
#[test]
#[ignore = "needs root"]
fn a_captured_socket_of_a_pod_that_has_left_is_free() {
    in_namespace(|| {
        let world = World::new();
        let app = tcp(true);
        app.connect(&at("192.0.2.1:80").into()).unwrap();
        drop(world.captured().unwrap());
        disconnect(&app);
        world.kernel.withdraw(world.cookie).unwrap();
        let mut wire = Wire::tap();
        app.set_nonblocking(true).unwrap();
        assert!(app.connect(&at("192.0.2.1:80").into()).is_err());
        assert_eq!(app.mark().unwrap(), 0);
        assert!(wire.packets() > 0);
    });
}

/// As on a machine that simulates several nodes: the programs of each proxy run for every socket.
#[test]
#[ignore = "needs root"]
fn programs_of_another_proxy_leave_captured_sockets_alone() {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (end, is_over) = std::sync::mpsc::channel::<()>();
    in_namespace(move || {
        let world = World::new();
        let other = std::thread::spawn(|| {
            in_namespace(move || {
                let _world = World::new();
                ready.send(()).unwrap();
                // Ends when the sender is dropped.
                assert!(is_over.recv().is_err());
            });
        });
        is_ready.recv().unwrap();
        let _app = dial(at("192.0.2.1:80")).unwrap();
        let (proxy, _) = world.captured().unwrap();
        let mark = SockRef::from(&proxy).mark().unwrap();
        assert_eq!(mark, CAPTURE_MARK, "no bit of a late capture");
        drop(end);
        other.join().unwrap();
    });
}
