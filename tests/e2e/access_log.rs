//! The access log has one line for each finished connection, with the fields of the documentation.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use serde_json::Value;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Proxy};

use crate::connections::{TIMEOUT, connect, dial, eventually, listen};

const REQUEST: usize = 1_234;
const RESPONSE: usize = 5_678;

fn lines(proxy: &Proxy<'_>) -> Vec<Value> {
    proxy
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["scope"] == "access")
        .collect()
}

fn json_mesh(world: &World) -> Mesh<'_> {
    Mesh::builder(world)
        .settings(|settings| "json".clone_into(&mut settings.log.format))
        .start()
        .unwrap()
}

fn fields(line: &Value) -> BTreeSet<&str> {
    let all = line.as_object().unwrap().keys().map(String::as_str);
    all.filter(|key| !["level", "time", "scope", "message"].contains(key))
        .collect()
}

/// The fields of every line about a tunnelled connection.
const ALWAYS: [&str; 13] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "dst.addr",
    "dst.hbone_addr",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
];

#[test]
fn a_tunnelled_connection_has_one_line_at_each_end() {
    let world = World::two_nodes().unwrap();
    let mut mesh = json_mesh(&world);
    let (a, b) = (world.pod("a", 0), world.pod("b", 0));
    let listener = listen(b, 8080);
    let (mut client, mut server) = connect(a, Mesh::service(b).at(Family::V4, 80), &listener);
    let source = client.local_addr().unwrap();
    client.write_all(&[1; REQUEST]).unwrap();
    server.read_exact(&mut [0; REQUEST]).unwrap();
    server.write_all(&[2; RESPONSE]).unwrap();
    client.read_exact(&mut [0; RESPONSE]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);

    for node in ["a", "b"] {
        let proxy = mesh.proxy(node);
        let line = eventually("a line of the access log", || lines(proxy).pop());
        assert_eq!(lines(proxy).len(), 1);
        let is_source = node == "a";
        let mut expected: BTreeSet<_> = ALWAYS.into();
        expected.insert("dst.service");
        assert_eq!(line["dst.service"], "b-0.default.svc.cluster.local");
        if is_source {
            assert_eq!(line["src.addr"], source.to_string());
        }
        assert_eq!(fields(&line), expected);
        assert_eq!(line["level"], "info");
        assert_eq!(line["src.workload"], "a-0");
        assert_eq!(line["src.namespace"], "default");
        assert_eq!(
            line["src.identity"],
            "spiffe://cluster.local/ns/default/sa/a-0"
        );
        assert_eq!(line["dst.addr"], b.at(Family::V4, 15008).to_string());
        assert_eq!(line["dst.hbone_addr"], b.at(Family::V4, 8080).to_string());
        assert_eq!(line["dst.workload"], "b-0");
        assert_eq!(line["dst.namespace"], "default");
        assert_eq!(
            line["dst.identity"],
            "spiffe://cluster.local/ns/default/sa/b-0"
        );
        assert_eq!(
            line["direction"],
            if is_source { "outbound" } else { "inbound" }
        );
        // Sent and received from the view of the workload of the line.
        let (sent, received) = if is_source {
            (REQUEST, RESPONSE)
        } else {
            (RESPONSE, REQUEST)
        };
        assert_eq!(line["bytes_sent"], sent);
        assert_eq!(line["bytes_recv"], received);
        assert!(line["duration"].as_str().unwrap().ends_with("ms"));
    }
}

#[test]
fn a_failed_connection_is_logged_with_its_error() {
    let world = World::two_nodes().unwrap();
    let mut mesh = json_mesh(&world);
    let (a, b) = (world.pod("a", 0), world.pod("b", 0));
    let outcome = dial(a, b.at(Family::V6, 8080)).and_then(|mut stream| stream.read(&mut [0]));
    assert!(outcome.is_err(), "{outcome:?}");
    for node in ["a", "b"] {
        let proxy = mesh.proxy(node);
        let line = eventually("a line of the access log", || lines(proxy).pop());
        assert_eq!(line["level"], "error");
        let error = line["error"].as_str().unwrap();
        assert!(!error.is_empty());
        if node == "b" {
            assert!(error.contains("8080"), "{error}");
        }
    }
}

#[test]
fn the_text_format_has_the_same_fields() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (a, b) = (world.pod("a", 0), world.pod("b", 0));
    let outcome = dial(a, b.at(Family::V4, 8080)).and_then(|mut stream| stream.read(&mut [0]));
    assert!(outcome.is_err(), "{outcome:?}");
    let line = mesh.proxy("a").wait_for_log("\taccess\t", TIMEOUT).unwrap();
    for field in ALWAYS {
        assert!(line.contains(&format!("{field}=")), "no {field} in {line}");
    }
    assert!(line.contains("error="), "{line}");
}
