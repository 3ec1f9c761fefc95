//! Failures during a handover: whichever process is killed, and at any time, exactly one proxy is
//! active afterwards.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::{Mesh, Proxy};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, expect_answer, wait_for_answer};

const REQUESTS_HANDOVER: &str = "asking it to hand over";
const NO_HANDOVER: &str = "does not hand over";
const HANDS_OVER: &str = "another process takes over this node's pods";
const ACTIVE_AGAIN: &str =
    "the process that was to take over has ended: this process is active again";

/// The number of occurrences of a text in a proxy's log.
fn occurrences(proxy: &Proxy<'_>, text: &str) -> usize {
    proxy.log().matches(text).count()
}

#[test]
fn a_second_proxy_without_take_over_fails() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let status = mesh
        .proxy("a")
        .launch_another(&[])
        .unwrap()
        .wait(LIMIT)
        .unwrap();
    assert!(!status.success(), "{status}");
    assert_eq!(occurrences(mesh.proxy("a"), "possibly another ztunnel"), 1);
    expect_answer(client, server.at(Family::V4, HTTP));
    assert_eq!(occurrences(mesh.proxy("a"), HANDS_OVER), 0);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_standby_that_is_killed_while_waiting_changes_nothing() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let proxy = mesh.proxy("a");
    // A suspended proxy cannot hand over, and the standby logs what it waits for.
    proxy.pause(Pause::Suspend).unwrap();
    let mut standby = proxy.launch_another(&["--take-over"]).unwrap();
    proxy.wait_for_log(REQUESTS_HANDOVER, LIMIT).unwrap();
    proxy.wait_for_log(NO_HANDOVER, 2 * LIMIT).unwrap();
    assert!(standby.alive());
    standby.kill().unwrap();
    proxy.pause(Pause::Resume).unwrap();
    wait_for_answer(client, server.at(Family::V4, HTTP));
    // The suspended proxy has processed the request by now.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(
        occurrences(proxy, HANDS_OVER),
        0,
        "handed over to a process that has ended"
    );
    expect_answer(client, server.at(Family::V6, HTTP));
    proxy.replace(LIMIT).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_standby_takes_over_when_the_active_proxy_is_killed() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    proxy.pause(Pause::Suspend).unwrap();
    let mut before = proxy.launch_standby().unwrap();
    proxy.wait_for_log(REQUESTS_HANDOVER, LIMIT).unwrap();
    before.kill().unwrap();
    proxy.wait_for_takeover().unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    wait_for_answer(server, client.at(Family::V6, HTTP));
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn the_previous_proxy_is_active_again_if_its_successor_is_killed() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, neighbour, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [neighbour, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    // The standby waits for a node agent that does not exist, so it never becomes ready.
    let agent = json!({ "socket": proxy.directory().join("absent.sock") });
    drop(proxy.settings.extra.insert("nodeAgent".to_owned(), agent));
    proxy.write_settings().unwrap();
    let mut standby = proxy.launch_another(&["--take-over"]).unwrap();
    proxy.wait_for_log(HANDS_OVER, LIMIT).unwrap();
    // Both processes serve the pods together.
    for _ in 0..20 {
        expect_answer(client, server.at(Family::V4, HTTP));
        expect_answer(client, neighbour.at(Family::V6, HTTP));
    }
    assert!(standby.alive());
    drop(proxy.settings.extra.remove("nodeAgent"));
    proxy.write_settings().unwrap();
    standby.kill().unwrap();
    proxy.wait_for_log(ACTIVE_AGAIN, LIMIT).unwrap();
    wait_for_answer(client, server.at(Family::V4, HTTP));
    for _ in 0..20 {
        expect_answer(client, server.at(Family::V6, HTTP));
        expect_answer(client, neighbour.at(Family::V4, HTTP));
    }
    proxy.replace(LIMIT).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_second_signal_ends_a_drain() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(move |settings| settings.set_deadline("60s"))
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, 9000).unwrap();
    let stream = client
        .enter(|| std::net::TcpStream::connect(server.at(Family::V4, 9000)))
        .unwrap();
    let proxy = mesh.proxy("a");
    let mut ending = proxy.launch_standby().unwrap();
    proxy.wait_for_takeover().unwrap();
    ending.signal(Signal::SIGTERM).unwrap();
    proxy
        .wait_for_log("stopping: draining connections", LIMIT)
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(
        ending.alive(),
        "the proxy did not wait for an open connection"
    );
    ending.signal(Signal::SIGINT).unwrap();
    let status = ending.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{status}");
    drop(stream);
    assertions::assert_all_running(&mut mesh);
}
