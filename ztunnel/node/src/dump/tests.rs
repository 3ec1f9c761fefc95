//! `istioctl ztunnel-config` reads the dump into Go structs and fails at the first value of another
//! type. The tables in `shapes` list the fields of those structs; every value is checked against them.

mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::proxy::{Carried, ConnectionId};
use mesh::fastpath::{FastPathConnection, Opener};
use mesh::{Identity, Snapshot, Uid, local};
use mesh::{LocalPod, PathSettings, View};
use tunnel::tls::{CertificateState, CertificateSummary, Issuer as _};
use upstream::ca::local::LocalCa;

/// A mesh with every kind of resource and field at least once.
const MESH: &str = include_str!("tests/mesh.yaml");

fn snapshot() -> Snapshot {
    let mesh = local::parse(MESH).unwrap();
    Snapshot::build(mesh.workloads, mesh.services, mesh.policies)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Certificates in every state, issued by a temporary authority.
fn certificates() -> Vec<CertificateSummary> {
    let directory = tempfile::tempdir().unwrap();
    let authority =
        LocalCa::open(directory.path(), "cluster.local", Duration::from_secs(3600)).unwrap();
    let identity = Identity::new("cluster.local", "default", "web").unwrap();
    let issuing = authority.issue(&identity);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let issued = runtime.unwrap().block_on(issuing).unwrap();
    let none = CertificateSummary {
        identity,
        state: CertificateState::Initializing,
        serial: String::new(),
        not_before: 0,
        not_after: 0,
        chain: Vec::new(),
        roots: Vec::new(),
    };
    let state = |state| CertificateSummary {
        state,
        ..none.clone()
    };
    let chained = |state| CertificateSummary {
        state,
        serial: "0a".to_owned(),
        not_before: 1,
        not_after: 2,
        chain: issued.chain.clone(),
        roots: issued.roots.clone(),
        ..none.clone()
    };
    let reason = "the authority does not answer".to_owned();
    vec![
        none.clone(),
        chained(CertificateState::Available),
        chained(CertificateState::Expired),
        state(CertificateState::Unavailable { reason }),
    ]
}

/// The state of an enrolled pod, of one that has left, and of one that the mesh does not know.
fn state() -> Value {
    let pod = |uid: &str, cookie| LocalPod {
        uid: Uid(uid.into()),
        account: None,
        announced: None,
        cookie: NetnsCookie(cookie),
        addresses: Vec::new(),
        redirected: false,
        leaving: false,
    };
    let pods = [pod("c//Pod/default/web", 1), pod("unknown", 2)];
    let view = View::new(Arc::new(snapshot()), pods, &PathSettings::default());
    let outbound = Carried {
        id: ConnectionId(1),
        pod: Uid("c//Pod/default/web".into()),
        inbound: false,
        client: at("10.0.0.1:4000"),
        dialled: "10.9.0.1:80".to_owned(),
        to: at("10.0.0.2:15008"),
        tunnelled: true,
    };
    let inbound = Carried {
        pod: Uid("c//Pod/default/gone".into()),
        inbound: true,
        dialled: "web.default.svc.cluster.local:80".to_owned(),
        ..outbound.clone()
    };
    let connection = FastPathConnection {
        pod: NetnsCookie(1),
        server_pod: Some(NetnsCookie(2)),
        opener: Opener::Pod,
        client: at("10.0.0.1:4001"),
        server: at("10.0.0.3:80"),
        dialled: at("10.9.0.1:80"),
        socket: 1,
        opened: 1,
    };
    let outside = FastPathConnection {
        opener: Opener::Outside,
        server_pod: None,
        ..connection
    };
    // The proxy's own socket of a carried connection: the connection is shown only once.
    let own = FastPathConnection {
        opener: Opener::Proxy,
        ..connection
    };
    connections::workload_state(&view, &[outbound, inbound], &[connection, outside, own])
}

fn dump() -> Value {
    let mesh = snapshot();
    json!({
        "workloads": resources::workloads(&mesh),
        "services": resources::services(&mesh),
        "policies": resources::policies(&mesh),
        "certificates": certificates::certificates(&certificates()),
        "workloadState": state(),
    })
}

#[test]
fn every_value_is_of_the_type_that_istioctl_reads() {
    let mut seen = shapes::Seen::default();
    shapes::check("ZtunnelDump", "dump", &dump(), &mut seen);
    seen.has_everything();
}

/// Tests the check: it finds the mistakes of the past.
#[test]
fn a_wrong_type_or_a_missing_key_fails_the_check() {
    let refused = |path: &str, value: Option<Value>| {
        let mut dump = dump();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = dump.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => drop(parent.insert(key.to_owned(), value)),
            None => drop(parent.remove(key).unwrap()),
        }
        let checked = std::panic::catch_unwind(|| {
            shapes::check("ZtunnelDump", "dump", &dump, &mut shapes::Seen::default());
        });
        assert!(checked.is_err(), "{path} is accepted");
    };
    refused(
        "/services/0/vips",
        Some(json!([{ "network": "", "address": "10.9.0.1" }])),
    );
    refused("/services/0/endpoints", None);
    refused("/services/0/loadbalancer", Some(json!(1)));
    refused("/certificates/0/state", Some(json!({ "Unavailable": {} })));
    refused("/workloads/0/waypoint", Some(json!({ "destination": {} })));
    refused("/workloads/0/uid", None);
    refused("/workloads/0/capacity", Some(json!(-1)));
    refused(
        "/policies/0/rules",
        Some(json!([[[{ "principals": ["Presence"] }]]])),
    );
    refused("/workloadState", Some(json!([])));
}

#[test]
fn carried_connections_have_a_number_and_those_of_the_fast_path_have_none() {
    let state = state();
    let connections = &state["c//Pod/default/web"]["connections"]["outbound"];
    let all = connections.as_array().unwrap();
    let number = |direct: bool| {
        let found = all.iter().find(|each| each["direct"] == direct);
        found.unwrap().get("id").cloned()
    };
    assert_eq!(number(false), Some(json!(1)));
    assert_eq!(number(true), None);
}

#[test]
fn keys_that_istioctl_looks_up_are_spelled_correctly() {
    let dump = dump();
    let named = |section: &str, name: &str| {
        let all = dump[section].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap().clone()
    };
    let service = named("services", "web");
    assert_eq!(service["vips"], json!(["net/10.9.0.1", "net/fd00::1"]));
    assert_eq!(service["waypoint"]["destination"], "net/10.9.0.9");
    let endpoint = &service["endpoints"]["c//Pod/default/web"];
    assert_eq!(endpoint["service"], "default/web.default.svc.cluster.local");
    assert_eq!(endpoint["address"], "net/10.0.0.1");
    assert_eq!(endpoint["port"], json!({ "80": 8080 }));
    let workload = named("workloads", "web");
    assert_eq!(
        workload["waypoint"]["destination"],
        "default/waypoint.default.svc.cluster.local"
    );
    assert_eq!(
        workload["applicationTunnel"],
        json!({ "protocol": "PROXY", "port": 15088 })
    );
    let matches = &named("policies", "all")["rules"][0][0][0];
    assert_eq!(matches["principals"][0], json!({ "Presence": {} }));
    assert_eq!(
        dump["certificates"][3]["state"],
        "Unavailable: the authority does not answer"
    );
}

#[test]
fn a_pod_is_shown_with_its_connections_and_its_names() {
    let state = state();
    let connections_of = |uid: &str, direction: &str| {
        let all = state[uid]["connections"][direction].as_array().unwrap();
        let texts = all.iter().map(|one| {
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            [
                text("src"),
                text("originalDst"),
                text("actualDst"),
                text("protocol"),
            ]
            .join(" ")
        });
        texts.collect::<Vec<_>>()
    };
    assert_eq!(
        connections_of("c//Pod/default/web", "outbound"),
        [
            "10.0.0.1:4000 10.9.0.1:80 10.0.0.2:15008 HBONE",
            "10.0.0.1:4001 10.9.0.1:80 10.0.0.3:80 TCP"
        ]
    );
    let inbound = ["10.0.0.1:4001 10.9.0.1:80 10.0.0.3:80 TCP"];
    assert_eq!(connections_of("c//Pod/default/web", "inbound"), inbound);
    assert_eq!(connections_of("unknown", "inbound"), inbound);
    assert_eq!(state["unknown"]["info"]["name"], "unknown");
    assert_eq!(state["c//Pod/default/web"]["state"], "Up");
    assert_eq!(state["c//Pod/default/gone"]["state"], "Draining");
    assert_eq!(
        connections_of("c//Pod/default/gone", "inbound"),
        ["10.0.0.1:4000 web.default.svc.cluster.local:80 10.0.0.2:15008 HBONE"]
    );
}

#[test]
fn certificates_are_shown_whole_and_without_their_keys() {
    let summaries = certificates();
    let dump = certificates::certificates(&summaries);
    assert_eq!(dump[0]["certChain"], json!([]));
    for (shown, certificate) in [
        (&dump[1]["certChain"][0], &summaries[1].chain[0]),
        (&dump[1]["rootCerts"][0], &summaries[1].roots[0]),
    ] {
        let text = STANDARD.decode(shown["pem"].as_str().unwrap()).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        // A PEM parser finds the certificate and nothing else.
        let (rest, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap();
        assert_eq!((pem.label.as_str(), rest), ("CERTIFICATE", &b""[..]));
        assert_eq!(pem.contents, certificate.as_ref());
        assert!(text.lines().all(|line| line.len() <= 64));
        let parsed = pem.parse_x509().unwrap();
        let serial = shown["serialNumber"].as_str().unwrap();
        assert_eq!(serial, parsed.serial.to_string());
        assert!(serial.bytes().all(|digit| digit.is_ascii_digit()));
        for (key, time) in [
            ("validFrom", parsed.validity().not_before),
            ("expirationTime", parsed.validity().not_after),
        ] {
            let shown = humantime::parse_rfc3339(shown[key].as_str().unwrap()).unwrap();
            let since = shown.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(since.as_secs(), u64::try_from(time.timestamp()).unwrap());
        }
    }
}
