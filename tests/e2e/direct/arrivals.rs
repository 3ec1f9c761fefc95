//! Plaintext that arrives from outside the mesh goes to the proxy first; what policy allows goes
//! past it from then on, and what policy denies never gets in.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::Kind;

use crate::proof::{
    PORT, ask, call, change, cut, eventually, name_workloads, speak, strict, unharmed,
};

/// Whether the proxy has a socket for a connection from `port` of a stranger.
fn was_steered(mesh: &mut Mesh<'_>, server: &Host, port: u16) -> bool {
    mesh.proxy("a").speaks_with(server, port).unwrap()
}

/// The address that a host with several calls from.
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
fn plaintext_is_judged_once_for_each_source_and_port() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let stranger = scene.clients()[1];
    let mut mesh = scene
        .mesh()
        .without(stranger)
        .settings(name_workloads)
        .start()
        .unwrap();
    let server = scene.server();
    let _servers = [PORT, 9000].map(|port| server.serve(Kind::Http, port).unwrap());
    for family in Family::BOTH {
        for client in [scene.world().outside(), stranger] {
            for port in [PORT, 9000] {
                let to = server.at(family, port);
                for judged in [true, false, false] {
                    let asked = ask(&scene, client, to).unwrap();
                    let own = asked.end.local_addr().unwrap();
                    assert_eq!(
                        was_steered(&mut mesh, server, own.port()),
                        judged,
                        "{} to {to}",
                        client.name
                    );
                    assert_eq!(asked.answer.peer.ip(), own.ip());
                    assert_eq!(asked.answer.local, to);
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
    eventually("every one of them is counted, direct or not", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let opened = metrics.sum("istio_tcp_connections_opened_total", &plain);
        (opened == scene.knocks() as f64).then_some(())
    });
    unharmed(&mut mesh);
}

#[test]
fn a_source_that_policy_denies_never_gets_in() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let (outside, stranger) = (scene.world().outside(), scene.clients()[1]);
    let [v4, v6] = Family::BOTH.map(|family| own_address(outside, scene.server().at(family, PORT)));
    let addresses = [format!("{v4}/32"), format!("{v6}/128")];
    let deny = Policy::namespace(
        "not-from-there",
        "Deny",
        json!([[[{ "sourceIps": addresses }]]]),
    );
    let mut mesh = scene.mesh().without(stranger).policy(deny).start().unwrap();
    let server = scene.server();
    let running = server.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        for _ in 0..3 {
            assert!(call(outside, to).is_err(), "{to}");
        }
    }
    assert_eq!(running.accepted(), 0);
    // Another source, of the same pod and port, is no reason to let this one in.
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        for _ in 0..3 {
            call(stranger, to).unwrap();
            assert!(call(outside, to).is_err(), "{to}");
        }
    }
    assert_eq!(running.accepted(), 6);
    unharmed(&mut mesh);
}

#[test]
fn mutual_tls_demanded_later_ends_plaintext_that_is_under_way() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let (outside, server) = (scene.world().outside(), scene.server());
    let listener = scene.listen(server, PORT).unwrap();
    let mut open = Vec::new();
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        // From outside nothing is redirected, so the lane is asked at the other end.
        let pair = eventually("an arrival that goes past the proxy", || {
            let near = scene.knock(outside, to).unwrap();
            let pair = (near, scene.accept(&listener).unwrap());
            speak(&pair);
            let port = pair.0.local_addr().unwrap().port();
            (!was_steered(&mut mesh, server, port)).then_some(pair)
        });
        open.push(pair);
    }
    change(&mut mesh, |settings| settings.policies.push(strict()));
    for pair in &mut open {
        cut(pair, "plaintext under a policy that demands an identity");
    }
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        let outcome = scene.knock(outside, to);
        let outcome = outcome.and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    // The mesh itself has identities.
    for family in Family::BOTH {
        speak(&scene.connect(server.at(family, PORT), &listener).unwrap());
    }
    unharmed(&mut mesh);
}
