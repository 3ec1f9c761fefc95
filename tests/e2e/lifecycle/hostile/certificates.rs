//! Peers whose certificate is none of the mesh's.

use std::net::SocketAddr;

use rcgen::{ExtendedKeyUsagePurpose, SanType, SerialNumber, date_time_ymd};
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Proxy, identity};
use ztunnel_tests::traffic::Kind;

use super::Stage;
use crate::peer::{Authority, Leaf, Reply, Tunnels, client, client_config, connect};
use crate::scene::{self, HTTP, LIMIT};

const GOOD: &str = "spiffe://cluster.local/ns/default/sa/a-0";

/// Certificates with what the log must say about each.
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

/// How many arriving connections have failed for a reason.
fn failed(proxy: &Proxy<'_>, flag: &str) -> f64 {
    let labels = [("reporter", "destination"), ("response_flags", flag)];
    let metrics = proxy.metrics().unwrap();
    metrics.sum("istio_tcp_connections_failed_total", &labels)
}

/// Asks for a tunnel; returns from where, and what came back.
fn try_one(stage: &Stage<'_>, family: Family, leaf: Option<Leaf>) -> (SocketAddr, Reply) {
    let (to, app) = (stage.hbone(family), stage.victim.at(family, HTTP));
    stage.attack(|| {
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
fn who_has_no_certificate_of_the_mesh_gets_no_tunnel() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    for family in Family::BOTH {
        for (name, leaf, said) in certificates(&stage.authority) {
            let (from, reply) = try_one(&stage, family, leaf);
            assert!(matches!(reply, Reply::Closed(_)), "{name}: {reply:?}");
            let line = stage
                .mesh
                .proxy("b")
                .wait_for_log(&format!("peer={from}"), LIMIT)
                .unwrap();
            assert!(
                line.contains("refused the connection of a tunnel peer"),
                "{name}: {line}"
            );
            assert!(
                line.to_lowercase().contains(&said.to_lowercase()),
                "{name}: {line}"
            );
            let line = stage
                .mesh
                .proxy("b")
                .wait_for_log(&format!("src.addr={from}"), LIMIT)
                .unwrap();
            assert!(
                line.contains("inbound") && line.contains("error="),
                "{name}: {line}"
            );
        }
        let expected = certificates(&stage.authority).len() as f64;
        let counted = failed(stage.mesh.proxy("b"), "TLS_FAILURE");
        assert!(counted >= expected, "{counted} of {expected}");
        stage.stands();
        // The same attempt with a good certificate: it is the certificate that was refused.
        let good = Some(stage.stolen());
        assert_eq!(try_one(&stage, family, good).1, Reply::Status(200));
    }
}

#[test]
fn what_a_revoked_certificate_has_open_is_cut_and_says_why() {
    let world = World::two_nodes().unwrap();
    let lists = world.directory().join("revoked.pem");
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            settings.extra.insert("crl".to_owned(), json!(lists));
        })
        .start()
        .unwrap();
    let (victim, friend) = (world.pod("b", 0), world.pod("a", 0));
    let _http = victim.serve(Kind::Http, HTTP).unwrap();
    let authority = Authority::of_mesh(world.directory());
    let serial = SerialNumber::from(4711);
    let leaf = authority.changed(&[&identity(friend)], |params| {
        params.serial_number = Some(serial.clone());
    });
    let (to, app) = (victim.at(Family::V4, 15008), victim.at(Family::V4, HTTP));
    let attempt = || client(to, &client_config(Some(leaf.clone()), &[b"h2"])).unwrap();
    let stream = world.outside().enter(attempt);
    let from = stream.sock.local_addr().unwrap();
    let mut tunnels = Tunnels::open(stream).unwrap();
    tunnels.request(1, &connect(&app.to_string())).unwrap();
    assert_eq!(tunnels.reply(1), Reply::Status(200));
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 0.0);

    std::fs::write(&lists, authority.revoke(serial)).unwrap();
    let said = format!("src.addr={from}");
    let line = mesh.proxy("b").wait_for_log(&said, LIMIT).unwrap();
    assert!(line.contains("revoked"), "{line}");
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 1.0);
    // The next attempt gets no further than the handshake, and is counted too.
    let again = world.outside().enter(|| {
        let stream = client(to, &client_config(Some(leaf.clone()), &[b"h2"])).unwrap();
        stream.sock.local_addr().unwrap()
    });
    let said = format!("src.addr={again}");
    let line = mesh.proxy("b").wait_for_log(&said, LIMIT).unwrap();
    assert!(line.contains("revoked"), "{line}");
    assert_eq!(failed(mesh.proxy("b"), "CERT_REVOKED"), 2.0);
    scene::unharmed(&mut mesh);
}
