//! The metrics have the names, labels and directions that dashboards use.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, MeshBuilder, Proxy};
use ztunnel_tests::traffic::{self, Kind};

use crate::connections::{TIMEOUT, connect, dial, eventually, listen};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";
/// Bytes from the client to the server, for both reporters.
const RECEIVED: &str = "istio_tcp_received_bytes_total";
/// Bytes from the server to the client, for both reporters.
const SENT: &str = "istio_tcp_sent_bytes_total";

const REQUEST: usize = 12_345;
const RESPONSE: usize = 67_890;

/// A mesh with values for all labels of workloads.
fn described(world: &World) -> MeshBuilder<'_> {
    Mesh::builder(world).settings(|settings| {
        for workload in &mut settings.workloads {
            let name = workload.name.clone();
            let mut put = |key: &str, value: String| {
                workload.extra.insert(key.to_owned(), json!(value));
            };
            put("workloadName", format!("{name}-deployment"));
            put("canonicalName", format!("{name}-app"));
            put("canonicalRevision", format!("{name}-v1"));
        }
    })
}

fn labels(reporter: &str, destination_service: [&str; 3]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut put = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    for (side, name) in [("source", "a-0"), ("destination", "b-0")] {
        let identity = format!("spiffe://cluster.local/ns/default/sa/{name}");
        for (label, value) in [
            ("workload", format!("{name}-deployment")),
            ("canonical_service", format!("{name}-app")),
            ("canonical_revision", format!("{name}-v1")),
            ("workload_namespace", "default".to_owned()),
            ("principal", identity),
            ("app", format!("{name}-app")),
            ("version", format!("{name}-v1")),
            ("cluster", "cluster1".to_owned()),
        ] {
            put(&format!("{side}_{label}"), &value);
        }
    }
    let [service, name, namespace] = destination_service;
    put("destination_service", service);
    put("destination_service_name", name);
    put("destination_service_namespace", namespace);
    put("reporter", reporter);
    put("request_protocol", "tcp");
    put("response_flags", "-");
    put("connection_security_policy", "mutual_tls");
    labels
}

/// Labels and value of the only sample of a metric.
fn only(proxy: &Proxy<'_>, name: &str) -> (BTreeMap<String, String>, f64) {
    let metrics = proxy.metrics().unwrap();
    let samples: Vec<_> = metrics.find(name, &[]).collect();
    assert_eq!(samples.len(), 1, "{name}: {samples:?}");
    (
        samples[0].labels.iter().cloned().collect(),
        samples[0].value,
    )
}

#[test]
fn one_tunnelled_connection_is_counted_at_both_ends() {
    let world = World::two_nodes().unwrap();
    let mut mesh = described(&world).start().unwrap();
    let listener = listen(world.pod("b", 0), 8080);
    let to = Mesh::service(world.pod("b", 0)).at(Family::V4, 80);
    let (mut client, mut server) = connect(world.pod("a", 0), to, &listener);
    client.write_all(&[1; REQUEST]).unwrap();
    server.read_exact(&mut [0; REQUEST]).unwrap();
    server.write_all(&[2; RESPONSE]).unwrap();
    client.read_exact(&mut [0; RESPONSE]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);

    let service = ["b-0.default.svc.cluster.local", "b-0", "default"];
    for (node, reporter) in [("a", "source"), ("b", "destination")] {
        let proxy = mesh.proxy(node);
        eventually("the connection is counted as closed", || {
            (proxy.metrics().unwrap().sum(CLOSED, &[]) == 1.0).then_some(())
        });
        let labels = labels(reporter, service);
        for (name, value) in [
            (OPENED, 1.0),
            (CLOSED, 1.0),
            (RECEIVED, 12_345.0),
            (SENT, 67_890.0),
        ] {
            assert_eq!(
                only(proxy, name),
                (labels.clone(), value),
                "{name} at node {node}"
            );
        }
        assert_eq!(proxy.metrics().unwrap().sum(FAILED, &[]), 0.0);
    }
}

#[test]
fn a_destination_outside_the_mesh_has_unknown_labels() {
    let world = World::two_nodes().unwrap();
    let mut mesh = described(&world).start().unwrap();
    let outside = world.outside();
    let _running = outside.serve(Kind::Http, 8080).unwrap();
    world
        .pod("a", 0)
        .enter(|| traffic::get(outside.at(Family::V4, 8080), "x", TIMEOUT))
        .unwrap();
    let proxy = mesh.proxy("a");
    eventually("the connection is counted as closed", || {
        (proxy.metrics().unwrap().sum(CLOSED, &[]) == 1.0).then_some(())
    });
    let (labels, _) = only(proxy, OPENED);
    assert_eq!(labels["source_workload"], "a-0-deployment");
    assert_eq!(labels["destination_workload"], "unknown");
    assert_eq!(labels["destination_service"], "unknown");
    assert_eq!(labels["destination_principal"], "unknown");
    assert_eq!(labels["connection_security_policy"], "unknown");
}

#[test]
fn a_connection_that_fails_is_counted_with_its_reason() {
    let world = World::two_nodes().unwrap();
    let mut mesh = described(&world).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let outcome = dial(client, server.at(Family::V4, 8080)).and_then(|mut s| s.read(&mut [0]));
    assert!(outcome.is_err(), "{outcome:?}");
    for node in ["a", "b"] {
        let proxy = mesh.proxy(node);
        eventually("the failure is counted", || {
            let metrics = proxy.metrics().unwrap();
            (metrics.sum(FAILED, &[("response_flags", "CONNECT")]) == 1.0).then_some(())
        });
        let metrics = proxy.metrics().unwrap();
        assert_eq!(metrics.sum(FAILED, &[]), 1.0, "{node}");
        assert_eq!(metrics.sum(OPENED, &[]), 1.0, "{node}");
        assert_eq!(metrics.sum(CLOSED, &[]), 1.0, "{node}");
    }
}

#[test]
fn build_and_pod_metrics_exist_from_the_start() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let metrics = mesh.proxy("a").metrics().unwrap();
    let build: Vec<_> = metrics
        .find("istio_build", &[("component", "ztunnel")])
        .collect();
    assert_eq!(build.len(), 1);
    assert_eq!(metrics.sum("istio_active_proxy_count_total", &[]), 2.0);
    assert_eq!(metrics.sum("istio_pending_proxy_count_total", &[]), 0.0);
    assert_eq!(metrics.sum("istio_proxies_started_total", &[]), 2.0);
    assert_eq!(metrics.sum("istio_proxies_stopped_total", &[]), 0.0);
}
