//! Captured connections use local ports like connections without a mesh: the destination is part of what
//! has to be unique.

use std::net::SocketAddr;

use socket2::Socket;

use super::world::{POD4, POD6, World, accept, at, dial, in_namespace, tcp};

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
