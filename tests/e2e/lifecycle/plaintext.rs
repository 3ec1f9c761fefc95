//! Plaintext to a pod of the mesh is accepted with its source address, unless the pod's policy
//! requires mutual TLS.

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::Kind;

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
