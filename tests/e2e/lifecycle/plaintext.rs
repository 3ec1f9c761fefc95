//! Plaintext to a pod of the mesh is accepted with its source address, unless the pod's policy
//! requires mutual TLS.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, MeshBuilder, Policy, Settings};
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream, tune};

use crate::assertions::{self, HTTP, expect_answer, reset};

/// The policy of PeerAuthentication STRICT at a node: DENY connections without a principal.
fn strict() -> Policy {
    Policy::namespace(
        "strict",
        "Deny",
        json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]),
    )
}

/// The host outside, and a pod that is not a workload.
fn hosts_outside_the_mesh(world: &World) -> [&Host; 2] {
    [world.outside(), world.pod("a", 1)]
}

#[test]
fn plaintext_arrives_with_its_source_address() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .without(world.pod("a", 1))
        .start()
        .unwrap();
    let server = world.pod("b", 0);
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for client in hosts_outside_the_mesh(&world) {
        for family in Family::BOTH {
            let answer = expect_answer(client, server.at(family, HTTP));
            assert_eq!(answer.peer.ip().to_canonical(), answer.client_local.ip());
            assert_eq!(answer.local.ip().to_canonical(), server.address(family));
            assert_eq!(answer.client_peer, server.at(family, HTTP));
        }
    }
    let plain = [
        ("reporter", "destination"),
        ("connection_security_policy", "unknown"),
    ];
    assertions::eventually("four plaintext connections in the metrics", || {
        mesh.proxy("b")
            .metrics()
            .unwrap()
            .sum("istio_tcp_connections_opened_total", &plain)
            == 4.0
    });
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn plaintext_is_refused_if_mutual_tls_is_required() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .without(world.pod("a", 1))
        .policy(strict())
        .start()
        .unwrap();
    let server = world.pod("b", 0);
    let http = server.serve(Kind::Http, HTTP).unwrap();
    for client in hosts_outside_the_mesh(&world) {
        for family in Family::BOTH {
            reset(client, server.at(family, HTTP));
        }
    }
    assert_eq!(http.accepted(), 0);
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    assertions::eventually("four denials in the metrics", || {
        mesh.proxy("b")
            .metrics()
            .unwrap()
            .sum("istio_tcp_connections_failed_total", &denied)
            == 4.0
    });
    mesh.proxy("b")
        .wait_for_log("denied by policy default/strict", assertions::LIMIT)
        .unwrap();
    for family in Family::BOTH {
        expect_answer(world.pod("a", 0), server.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}

/// A client outside the mesh has many connections open. The proxy has one to the application for each of
/// them, with the client's address, and so a port on it. No new connection may meet the same pair of
/// addresses.
fn check_ports_of_deliveries(world: &World, mesh: MeshBuilder<'_>) {
    const OPEN: u16 = 800;
    const LIMIT: Duration = Duration::from_secs(3);
    let mut mesh = mesh.start().unwrap();
    tune::raise_file_limit().unwrap();
    let (client, server) = (world.outside(), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, HTTP);
        let failures = client.enter(|| {
            // Over the whole range from which a kernel takes ports, as other clients of the same kernel
            // would: alone, it takes one after the other, and none that the proxy has just taken.
            let dial = |number: u16| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                let port = 32768 + number * 34;
                socket.bind(&SocketAddr::new(client.address(family), port).into())?;
                socket.connect_timeout(&to.into(), LIMIT)?;
                Stream::new(socket.into(), IoMode::Blocking)
            };
            let mut failures = Vec::new();
            let mut open = Vec::new();
            for number in 0..OPEN {
                let answered = dial(number).and_then(|mut stream| {
                    traffic::get_over(&mut stream, "first", LIMIT)?;
                    Ok(stream)
                });
                match answered {
                    Ok(stream) => open.push(stream),
                    Err(error) => failures.push(error.to_string()),
                }
            }
            failures
        });
        assert!(failures.is_empty(), "{family:?}: {failures:?}");
    }
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn deliveries_use_no_port_of_a_client_by_programs() {
    let world = World::two_nodes().unwrap();
    // The proxy has to see every connection.
    let trial = Policy {
        extra: [("dryRun".to_owned(), json!(true))].into(),
        ..strict()
    };
    let mesh = Mesh::builder(&world).policy(trial);
    check_ports_of_deliveries(&world, mesh);
}

#[test]
fn deliveries_use_no_port_of_a_client_by_rules() {
    let world = World::two_nodes().unwrap();
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
    let by_rules = |settings: &mut Settings| {
        let by = ("by".to_owned(), json!("rules"));
        settings.capture.extra.extend([by]);
    };
    check_ports_of_deliveries(&world, Mesh::builder(&world).settings(by_rules));
}
