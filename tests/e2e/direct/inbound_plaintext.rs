//! Plaintext from outside the mesh goes to the proxy first. If policy allows it, later connections
//! take the fast path; if policy denies it, they never reach the application.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    PORT, assert_all_running, assert_terminated, call, change, eventually, exchange,
    name_workloads, send_request, strict,
};

/// Whether the proxy has a socket for a connection with this client port.
fn is_carried_by_proxy(mesh: &mut Mesh<'_>, server: &Host, port: u16) -> bool {
    mesh.proxy("a").has_connection_to(server, port).unwrap()
}

/// The source address that a host with several addresses uses.
fn own_address(host: &Host, to: SocketAddr) -> IpAddr {
    host.enter(|| {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.local_addr().unwrap().ip()
    })
}

#[test]
fn plaintext_is_authorized_once_per_source_and_port() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let other_pod = topology.clients()[1];
    let mut mesh = topology
        .mesh()
        .without(other_pod)
        .settings(name_workloads)
        .start()
        .unwrap();
    let server = topology.server();
    let _servers = [PORT, 9000].map(|port| server.serve(Kind::Http, port).unwrap());
    for family in Family::BOTH {
        for client in [topology.world().outside(), other_pod] {
            for port in [PORT, 9000] {
                let to = server.at(family, port);
                for through_proxy in [true, false, false] {
                    let sent = send_request(&topology, client, to).unwrap();
                    let own = sent.end.local_addr().unwrap();
                    assert_eq!(
                        is_carried_by_proxy(&mut mesh, server, own.port()),
                        through_proxy,
                        "{} to {to}",
                        client.name
                    );
                    assert_eq!(sent.answer.peer.ip(), own.ip());
                    assert_eq!(sent.answer.local, to);
                }
            }
        }
    }
    let plain = [
        ("reporter", "destination"),
        ("connection_security_policy", "unknown"),
        ("source_workload", "unknown"),
        ("destination_workload", server.name.as_str()),
    ];
    eventually("all connections are counted, on any path", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let opened = metrics.sum("istio_tcp_connections_opened_total", &plain);
        (opened == topology.dialled() as f64).then_some(())
    });
    assert_all_running(&mut mesh);
}

#[test]
fn a_source_that_policy_denies_is_never_admitted() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let (outside, other_pod) = (topology.world().outside(), topology.clients()[1]);
    let [v4, v6] =
        Family::BOTH.map(|family| own_address(outside, topology.server().at(family, PORT)));
    let addresses = [format!("{v4}/32"), format!("{v6}/128")];
    let deny = Policy::namespace(
        "not-from-there",
        "Deny",
        json!([[[{ "sourceIps": addresses }]]]),
    );
    let mut mesh = topology
        .mesh()
        .without(other_pod)
        .policy(deny)
        .start()
        .unwrap();
    let server = topology.server();
    let running = server.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        for _ in 0..3 {
            assert!(call(outside, to).is_err(), "{to}");
        }
    }
    assert_eq!(running.accepted(), 0);
    // An entry for another source of the same pod and port does not admit this one.
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        for _ in 0..3 {
            call(other_pod, to).unwrap();
            assert!(call(outside, to).is_err(), "{to}");
        }
    }
    assert_eq!(running.accepted(), 6);
    assert_all_running(&mut mesh);
}

#[test]
fn requiring_mutual_tls_terminates_open_plaintext_connections() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let (outside, server) = (topology.world().outside(), topology.server());
    let listener = topology.listen(server, PORT).unwrap();
    let mut open = Vec::new();
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        // The client outside is not redirected, so the path is determined at the server.
        let pair = eventually("an inbound connection that bypasses the proxy", || {
            let near = topology.dial_once(outside, to).unwrap();
            let pair = (near, topology.accept(&listener).unwrap());
            exchange(&pair);
            let port = pair.0.local_addr().unwrap().port();
            (!is_carried_by_proxy(&mut mesh, server, port)).then_some(pair)
        });
        open.push(pair);
    }
    change(&mut mesh, |settings| settings.policies.push(strict()));
    for pair in &mut open {
        assert_terminated(pair, "plaintext under a policy that requires an identity");
    }
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        let outcome = topology.dial_once(outside, to);
        let outcome = outcome.and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    // Clients in the mesh have identities.
    for family in Family::BOTH {
        exchange(
            &topology
                .connect(server.at(family, PORT), &listener)
                .unwrap(),
        );
    }
    assert_all_running(&mut mesh);
}
