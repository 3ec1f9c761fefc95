//! Very many short connections: the metrics count all of them, or the number of lost events
//! explains the difference.

use std::time::Duration;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::Proxy;
use ztunnel_tests::traffic::{Kind, connects};

use crate::assertions::{PORT, assert_all_running, disable_access_log};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
/// Events that were lost because the proxy was too slow.
const LOST: &str = "ztunnel_direct_events_lost_total";

/// Opened and closed connections in the client's metrics, and lost events.
fn counted(proxy: &Proxy<'_>) -> [f64; 3] {
    let metrics = proxy.metrics().unwrap();
    let source = [("reporter", "source")];
    [
        metrics.sum(OPENED, &source),
        metrics.sum(CLOSED, &source),
        metrics.sum(LOST, &[]),
    ]
}

fn burst(topology: &Topology, length: Duration) -> f64 {
    let mut truth = 0.0;
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        let client = topology.client();
        let report = client.enter(|| connects::run(to, 16, length)).unwrap();
        truth += report.connections as f64;
    }
    truth
}

fn create_entry(topology: &Topology) {
    for family in Family::BOTH {
        topology
            .get(topology.server().at(family, PORT), "first")
            .unwrap();
    }
}

on_paths!(every_connection_of_a_burst_is_counted: direct, auto);
fn every_connection_of_a_burst_is_counted(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(disable_access_log)
        .start()
        .unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    create_entry(&topology);
    let truth = burst(&topology, Duration::from_secs(3)) + topology.dialled() as f64;
    assert_accounted(mesh.proxy("a"), truth);
    assert_all_running(&mut mesh);
}

/// A suspended proxy loses the events that exceed the buffer.
#[test]
fn lost_events_are_counted() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(disable_access_log)
        .start()
        .unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    create_entry(&topology);
    let mut truth = 0.0;
    mesh.proxy("a").pause(Pause::Suspend).unwrap();
    // The buffer has room for about seven thousand events, two per connection.
    while truth < 10_000.0 {
        truth += burst(&topology, Duration::from_secs(1));
    }
    mesh.proxy("a").pause(Pause::Resume).unwrap();
    // The proxy learns the number of lost events with the next event.
    create_entry(&topology);
    truth += topology.dialled() as f64;
    assert_accounted(mesh.proxy("a"), truth);
    let [_, _, lost] = counted(mesh.proxy("a"));
    assert!(lost > 0.0, "nothing was lost in {truth} connections");
    assert_all_running(&mut mesh);
}

/// Asserts that opened and closed equal the truth, or that lost events explain the difference: a
/// connection whose end was lost is given up after a while and counted as closed; one whose
/// beginning was lost is counted as opened when it ends.
fn assert_accounted(proxy: &Proxy<'_>, truth: f64) {
    let explained = || {
        let [opened, closed, lost] = counted(proxy);
        let missing = [truth - opened, truth - closed];
        missing.iter().all(|missing| *missing >= 0.0)
            && missing.iter().all(|missing| *missing <= lost)
            && (opened - closed).abs() < 0.5
    };
    let reached = ztunnel_tests::eventually(Duration::from_secs(20), explained);
    let [opened, closed, lost] = counted(proxy);
    println!("{truth} connections: {opened} opened, {closed} closed, {lost} events lost");
    assert!(
        reached,
        "{truth} connections, but {opened} opened, {closed} closed, {lost} lost"
    );
}
