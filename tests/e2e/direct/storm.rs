//! Very many short connections: what the proxy counts is what there was, or it says how much of
//! it it has not heard of.

use std::time::Duration;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::Proxy;
use ztunnel_tests::traffic::{Kind, connects};

use crate::proof::{PORT, quiet, unharmed};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
/// Events that the proxy was too slow to hear.
const LOST: &str = "ztunnel_direct_events_lost_total";

/// Opened and closed as the client's end counts them, and lost events.
fn counted(proxy: &Proxy<'_>) -> [f64; 3] {
    let metrics = proxy.metrics().unwrap();
    let source = [("reporter", "source")];
    [
        metrics.sum(OPENED, &source),
        metrics.sum(CLOSED, &source),
        metrics.sum(LOST, &[]),
    ]
}

fn storm(scene: &Scene, length: Duration) -> f64 {
    let mut truth = 0.0;
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        let client = scene.client();
        let report = client.enter(|| connects::run(to, 16, length)).unwrap();
        truth += report.connections as f64;
    }
    truth
}

fn know(scene: &Scene) {
    for family in Family::BOTH {
        scene.get(scene.server().at(family, PORT), "known").unwrap();
    }
}

on_lanes!(every_connection_of_a_storm_is_counted: direct, auto);
fn every_connection_of_a_storm_is_counted(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().settings(quiet).start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    know(&scene);
    let truth = storm(&scene, Duration::from_secs(3)) + scene.knocks() as f64;
    accounts_for(mesh.proxy("a"), truth);
    unharmed(&mut mesh);
}

/// A proxy that does not run for a while cannot hear more than the buffer holds.
#[test]
fn what_a_proxy_could_not_hear_is_accounted_for() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().settings(quiet).start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    know(&scene);
    let mut truth = 0.0;
    mesh.proxy("a").pause(Pause::Stop).unwrap();
    // The buffer holds some seven thousand events, two a connection.
    while truth < 10_000.0 {
        truth += storm(&scene, Duration::from_secs(1));
    }
    mesh.proxy("a").pause(Pause::GoOn).unwrap();
    // It hears of what is lost with the next event.
    know(&scene);
    truth += scene.knocks() as f64;
    accounts_for(mesh.proxy("a"), truth);
    let [_, _, lost] = counted(mesh.proxy("a"));
    assert!(lost > 0.0, "nothing was lost in {truth} connections");
    unharmed(&mut mesh);
}

/// Opened and closed are the truth, or the lost events are the difference: a connection whose end
/// is not heard of is given up after a while and counts as closed, one whose beginning is not
/// heard of counts as opened when it ends.
fn accounts_for(proxy: &Proxy<'_>, truth: f64) {
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
