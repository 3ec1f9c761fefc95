//! What goes wrong while one proxy takes over from another: whoever dies, and whenever, somebody is
//! in charge, and it is one.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::{Mesh, Proxy};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, LIMIT, answered, answered_soon};

const ASKS: &str = "asking it to hand over";
const HANGS: &str = "does not hand over";
const GIVES: &str = "another process takes over this node's pods";
const AGAIN: &str = "the process that was to take over has ended: this process is active again";

/// How often something stands in a proxy's log.
fn said(proxy: &Proxy<'_>, text: &str) -> usize {
    proxy.log().matches(text).count()
}

#[test]
fn a_second_proxy_by_mistake_fails_and_harms_nobody() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let status = mesh
        .proxy("a")
        .launch_second(&[])
        .unwrap()
        .wait(LIMIT)
        .unwrap();
    assert!(!status.success(), "{status}");
    assert_eq!(said(mesh.proxy("a"), "possibly another ztunnel"), 1);
    answered(client, server.at(Family::V4, HTTP));
    assert_eq!(said(mesh.proxy("a"), GIVES), 0);
    scene::unharmed(&mut mesh);
}

#[test]
fn an_heir_that_dies_while_it_waits_changes_nothing() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let proxy = mesh.proxy("a");
    // Whoever does not run cannot hand over, and its heir says what it waits for.
    proxy.pause(Pause::Stop).unwrap();
    let mut heir = proxy.launch_second(&["--take-over"]).unwrap();
    proxy.wait_for_log(ASKS, LIMIT).unwrap();
    proxy.wait_for_log(HANGS, 2 * LIMIT).unwrap();
    assert!(heir.alive());
    heir.kill().unwrap();
    proxy.pause(Pause::GoOn).unwrap();
    answered_soon(client, server.at(Family::V4, HTTP));
    // What waited for the one that was stopped has been looked at by now.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(said(proxy, GIVES), 0, "handed over to the dead");
    answered(client, server.at(Family::V6, HTTP));
    proxy.replace(LIMIT).unwrap();
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut mesh);
}

#[test]
fn a_proxy_that_dies_before_it_hands_over_is_followed_at_once() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [client, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    proxy.pause(Pause::Stop).unwrap();
    let mut before = proxy.launch_heir().unwrap();
    proxy.wait_for_log(ASKS, LIMIT).unwrap();
    before.kill().unwrap();
    proxy.wait_taken_over().unwrap();
    answered(client, server.at(Family::V4, HTTP));
    answered_soon(server, client.at(Family::V6, HTTP));
    scene::unharmed(&mut mesh);
}

#[test]
fn whoever_hands_over_to_one_that_dies_is_in_charge_again() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, beside, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [beside, server].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let proxy = mesh.proxy("a");
    // It waits for an agent that is not there, and so is never ready.
    let agent = json!({ "socket": proxy.directory().join("nobody.sock") });
    drop(proxy.settings.extra.insert("nodeAgent".to_owned(), agent));
    proxy.write_settings().unwrap();
    let mut heir = proxy.launch_second(&["--take-over"]).unwrap();
    proxy.wait_for_log(GIVES, LIMIT).unwrap();
    // The two of them serve the pods together.
    for _ in 0..20 {
        answered(client, server.at(Family::V4, HTTP));
        answered(client, beside.at(Family::V6, HTTP));
    }
    assert!(heir.alive());
    drop(proxy.settings.extra.remove("nodeAgent"));
    proxy.write_settings().unwrap();
    heir.kill().unwrap();
    proxy.wait_for_log(AGAIN, LIMIT).unwrap();
    answered_soon(client, server.at(Family::V4, HTTP));
    for _ in 0..20 {
        answered(client, server.at(Family::V6, HTTP));
        answered(client, beside.at(Family::V4, HTTP));
    }
    proxy.replace(LIMIT).unwrap();
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut mesh);
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
    let mut ending = proxy.launch_heir().unwrap();
    proxy.wait_taken_over().unwrap();
    ending.signal(Signal::SIGTERM).unwrap();
    proxy
        .wait_for_log("stopping: draining connections", LIMIT)
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(ending.alive(), "it did not wait for an open connection");
    ending.signal(Signal::SIGINT).unwrap();
    let status = ending.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{status}");
    drop(stream);
    scene::unharmed(&mut mesh);
}
