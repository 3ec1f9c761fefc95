//! Peers whose certificate is none of the mesh's.

use std::net::SocketAddr;

use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use ztunnel_tests::net::{Family, World};

use super::Stage;
use crate::peer::{Authority, Leaf, Reply, Tunnels, client, client_config, connect};
use crate::scene::{HTTP, LIMIT};

const GOOD: &str = "spiffe://cluster.local/ns/default/sa/a-0";

/// Certificates with what the log must say about each.
fn certificates(mesh: &Authority) -> Vec<(&'static str, Option<Leaf>, &'static str)> {
    let signed = |uris: &[&str]| Some(mesh.leaf(uris));
    let dns = mesh.changed(&[], |params| {
        params.subject_alt_names = vec![SanType::DnsName("b-0.default".try_into().unwrap())];
    });
    let expired = mesh.changed(&[GOOD], |params| params.not_after = date_time_ymd(2021, 1, 1));
    let early = mesh.changed(&[GOOD], |params| {
        params.not_before = date_time_ymd(2100, 1, 1);
        params.not_after = date_time_ymd(2101, 1, 1);
    });
    let server = mesh.changed(&[GOOD], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    vec![
        ("no certificate", None, "certificate"),
        ("another root", Some(Authority::foreign().leaf(&[GOOD])), "root"),
        ("no name", signed(&[]), "SPIFFE"),
        ("a DNS name", Some(dns), "SPIFFE"),
        ("no SPIFFE name", signed(&["https://cluster.local/ns/default/sa/a-0"]), "https://"),
        ("two names", signed(&[GOOD, "spiffe://cluster.local/ns/default/sa/a-1"]), "2"),
        ("a name with more in it", signed(&["spiffe://cluster.local/ns/default/sa/a/b"]), "sa/a/b"),
        ("another trust domain", signed(&["spiffe://other.mesh/ns/default/sa/a-0"]), "other.mesh"),
        ("expired", Some(expired), "expired"),
        ("not valid yet", Some(early), "valid"),
        ("not for clients", Some(server), "certificate"),
    ]
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
        (from, reply.unwrap_or_else(|error| Reply::Closed(error.to_string())))
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
            let line = stage.mesh.proxy("b").wait_for_log(&format!("peer={from}"), LIMIT).unwrap();
            assert!(line.contains("refused a tunnel peer"), "{name}: {line}");
            assert!(line.to_lowercase().contains(&said.to_lowercase()), "{name}: {line}");
        }
        stage.stands();
        // The same attempt with a good certificate: it is the certificate that was refused.
        let good = Some(stage.stolen());
        assert_eq!(try_one(&stage, family, good).1, Reply::Status(200));
    }
}
