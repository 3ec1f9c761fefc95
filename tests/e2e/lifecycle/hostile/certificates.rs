//! Peers without a valid certificate of the mesh.

use std::net::SocketAddr;

use rcgen::{ExtendedKeyUsagePurpose, SanType, SerialNumber, date_time_ymd};
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Proxy, identity};
use ztunnel_tests::traffic::Kind;

use super::AttackSetup;
use crate::assertions::{self, HTTP, LIMIT};
use crate::peer::{Authority, Leaf, Reply, Tunnels, client, client_config, connect};

const GOOD: &str = "spiffe://cluster.local/ns/default/sa/a-0";

/// Invalid certificates, and the expected text in the log.
fn certificates(mesh: &Authority) -> Vec<(&'static str, Option<Leaf>, &'static str)> {
    let signed = |uris: &[&str]| Some(mesh.leaf(uris));
    let dns = mesh.changed(&[], |params| {
        params.subject_alt_names = vec![SanType::DnsName("b-0.default".try_into().unwrap())];
    });
    let expired = mesh.changed(&[GOOD], |params| {
        params.not_after = date_time_ymd(2021, 1, 1)
    });
    let early = mesh.changed(&[GOOD], |params| {
        params.not_before = date_time_ymd(2100, 1, 1);
        params.not_after = date_time_ymd(2101, 1, 1);
    });
    let server = mesh.changed(&[GOOD], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    vec![
        ("no certificate", None, "certificate"),
        (
            "another root",
            Some(Authority::foreign().leaf(&[GOOD])),
            "root",
        ),
        ("no name", signed(&[]), "SPIFFE"),
        ("a DNS name", Some(dns), "SPIFFE"),
        (
            "no SPIFFE name",
            signed(&["https://cluster.local/ns/default/sa/a-0"]),
            "https://",
        ),
        (
            "two names",
            signed(&[GOOD, "spiffe://cluster.local/ns/default/sa/a-1"]),
            "2",
        ),
        (
            "a name with more in it",
            signed(&["spiffe://cluster.local/ns/default/sa/a/b"]),
            "sa/a/b",
        ),
        (
            "another trust domain",
            signed(&["spiffe://other.mesh/ns/default/sa/a-0"]),
            "other.mesh",
        ),
        ("expired", Some(expired), "expired"),
        ("not valid yet", Some(early), "valid"),
        ("not for clients", Some(server), "certificate"),
    ]
}

/// The number of inbound connections that have failed for a reason.
fn failed(proxy: &Proxy<'_>, flag: &str) -> f64 {
    let labels = [("reporter", "destination"), ("response_flags", flag)];
    let metrics = proxy.metrics().unwrap();
    metrics.sum("istio_tcp_connections_failed_total", &labels)
}

/// Requests a tunnel. Returns the source address and the reply.
fn request_tunnel(
    setup: &AttackSetup<'_>,
    family: Family,
    leaf: Option<Leaf>,
) -> (SocketAddr, Reply) {
    let (to, app) = (setup.hbone(family), setup.attacked_pod.at(family, HTTP));
    setup.attack(|| {
        let stream = client(to, &client_config(leaf, &[b"h2"])).unwrap();
        let from = stream.sock.local_addr().unwrap();
        let reply = Tunnels::open(stream).and_then(|mut tunnels| {
            tunnels.request(1, &connect(&app.to_string()))?;
            Ok(tunnels.reply(1))
        });
        (
            from,
            reply.unwrap_or_else(|error| Reply::Closed(error.to_string())),
        )
    })
}

#[test]
fn a_peer_without_a_certificate_of_the_mesh_gets_no_tunnel() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    for family in Family::BOTH {
        for (name, leaf, expected_text) in certificates(&setup.authority) {
            let (from, reply) = request_tunnel(&setup, family, leaf);
            assert!(matches!(reply, Reply::Closed(_)), "{name}: {reply:?}");
            let line = setup
                .mesh
                .proxy("b")
                .wait_for_log(&format!("peer={from}"), LIMIT)
                .unwrap();
            assert!(
                line.contains("refused the connection of a tunnel peer"),
                "{name}: {line}"
            );
            assert!(
                line.to_lowercase().contains(&expected_text.to_lowercase()),
                "{name}: {line}"
            );
            let line = setup
                .mesh
                .proxy("b")
                .wait_for_log(&format!("src.addr={from}"), LIMIT)
                .unwrap();
            assert!(
                line.contains("inbound") && line.contains("error="),
                "{name}: {line}"
            );
        }
        let expected = certificates(&setup.authority).len() as f64;
        let counted = failed(setup.mesh.proxy("b"), "TLS_FAILURE");
        assert!(counted >= expected, "{counted} of {expected}");
        setup.assert_still_serving();
        // The same attempt with a valid certificate succeeds.
        let good = Some(setup.stolen_certificate());
        assert_eq!(request_tunnel(&setup, family, good).1, Reply::Status(200));
    }
}

#[test]
fn connections_of_a_revoked_certificate_are_terminated_with_a_reason() {
    let world = World::two_nodes().unwrap();
    let lists = world.directory().join("revoked.pem");
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            settings.extra.insert("crl".to_owned(), json!(lists));
        })
        .start()
        .unwrap();
    let (attacked_pod, client_pod) = (world.pod("b", 0), world.pod("a", 0));
    let _http = attacked_pod.serve(Kind::Http, HTTP).unwrap();
    let authority = Authority::of_mesh(world.directory());
    let serial = SerialNumber::from(4711);
    let leaf = authority.changed(&[&identity(client_pod)], |params| {
        params.serial_number = Some(serial.clone());
    });
    let (to, app) = (
        attacked_pod.at(Family::V4, 15008),
        attacked_pod.at(Family::V4, HTTP),
    );
    let attempt = || client(to, &client_config(Some(leaf.clone()), &[b"h2"])).unwrap();
    let stream = world.outside().enter(attempt);
    let from = stream.sock.local_addr().unwrap();
    let mut tunnels = Tunnels::open(stream).unwrap();
    tunnels.request(1, &connect(&app.to_string())).unwrap();
    assert_eq!(tunnels.reply(1), Reply::Status(200));
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 0.0);

    std::fs::write(&lists, authority.revoke(serial)).unwrap();
    let expected_text = format!("src.addr={from}");
    let line = mesh.proxy("b").wait_for_log(&expected_text, LIMIT).unwrap();
    assert!(line.contains("revoked"), "{line}");
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 1.0);
    // The next attempt fails in the handshake and is counted, too.
    let again = world.outside().enter(|| {
        let stream = client(to, &client_config(Some(leaf.clone()), &[b"h2"])).unwrap();
        stream.sock.local_addr().unwrap()
    });
    let expected_text = format!("src.addr={again}");
    let line = mesh.proxy("b").wait_for_log(&expected_text, LIMIT).unwrap();
    assert!(line.contains("revoked"), "{line}");
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 2.0);
    assertions::assert_all_running(&mut mesh);
}
