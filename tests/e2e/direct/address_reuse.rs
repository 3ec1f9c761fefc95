//! An address that belongs to another pod by now: nothing that was known of the old pod lets a
//! connection reach, or come from, the new one.

use std::io::{Read as _, Write as _};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Mesh, PodEntry, Settings, identity, workload_uid};
use ztunnel_tests::traffic::Kind;

use crate::proof::{PATIENCE, PORT, about, ask, call, change, unharmed};

/// Whether the proxy lives when the address changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Runs,
    Killed,
}

/// Puts a pod in the place of another one, as another workload with another service account.
fn succeed(settings: &mut Settings, old: &Host, new: &Host) {
    for entry in &mut settings.pods {
        if entry.workload == workload_uid(old) {
            *entry = PodEntry {
                workload: workload_uid(new),
                netns: new.namespace.path().to_owned(),
            };
        }
    }
    for workload in &mut settings.workloads {
        if workload.name == old.name {
            workload.uid = workload_uid(new);
            workload.name.clone_from(&new.name);
            workload.service_account.clone_from(&new.name);
        }
    }
}

/// A call that must not be answered: neither at once, nor after it seemed to come up.
fn never_answered(scene: &Scene, from: &Host, to: std::net::SocketAddr) {
    let outcome = scene.knock(from, to).and_then(|mut end| {
        end.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        end.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        end.read_exact(&mut [0])
    });
    assert!(outcome.is_err(), "{} got an answer from {to}", from.name);
}

fn the_server_is_succeeded(proxy: Proxy) {
    let scene = Scene::set(Lane::Direct).unwrap();
    let client = scene.client();
    // Whoever this address belongs to next may not be called by the client.
    let mut mesh = scene.mesh().start().unwrap();
    let old = scene.server();
    let before = old.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(old);
    let ways = Family::BOTH.map(|family| [old.at(family, PORT), service.at(family, 80)]);
    for to in ways.into_iter().flatten() {
        scene.get(to, "known").unwrap();
    }
    if proxy == Proxy::Killed {
        mesh.proxy("a").kill().unwrap();
    }
    drop(before);
    let new = scene.world().successor("a", 2).unwrap();
    let running = new.serve(Kind::Http, PORT).unwrap();
    for to in ways.into_iter().flatten() {
        for _ in 0..2 {
            never_answered(&scene, client, to);
        }
    }
    let deny = |settings: &mut Settings| {
        succeed(settings, old, &new);
        settings
            .policies
            .push(about(client, "not-the-new-one", "Deny"));
    };
    match proxy {
        Proxy::Runs => change(&mut mesh, deny),
        Proxy::Killed => {
            mesh.change(deny).unwrap();
            mesh.proxy("a").start().unwrap();
        }
    }
    mesh.proxy("a").wait_for_log(&new.name, PATIENCE).unwrap();
    for to in ways.into_iter().flatten() {
        for _ in 0..2 {
            never_answered(&scene, client, to);
        }
    }
    // As itself it is reached, by whom its policy allows.
    for family in Family::BOTH {
        let to = new.at(family, PORT);
        let last = (0..3).map(|_| ask(&scene, scene.clients()[1], to).unwrap());
        let directs: Vec<_> = last.map(|asked| asked.direct).collect();
        assert_eq!(directs, [false, true, true], "{to}");
    }
    let heard = running.accepted();
    assert_eq!(heard, 6, "somebody was let in who is not allowed");
    unharmed(&mut mesh);
}

#[test]
fn a_server_is_succeeded_while_the_proxy_runs() {
    the_server_is_succeeded(Proxy::Runs);
}

#[test]
fn a_server_is_succeeded_while_no_proxy_runs() {
    the_server_is_succeeded(Proxy::Killed);
}

fn the_client_is_succeeded(proxy: Proxy) {
    let scene = Scene::set(Lane::Direct).unwrap();
    let old = scene.client();
    // The old client, and nobody else.
    let mut mesh = scene
        .mesh()
        .policy(about(old, "only-the-old-one", "Allow"))
        .start()
        .unwrap();
    let running = scene.serve(Kind::Http, PORT).unwrap();
    let server = scene.server();
    for family in Family::BOTH {
        scene.get(server.at(family, PORT), "known").unwrap();
    }
    let heard = running.accepted();
    if proxy == Proxy::Killed {
        mesh.proxy("a").kill().unwrap();
    }
    let new = scene.world().successor("a", 0).unwrap();
    let all_fail = || {
        for family in Family::BOTH {
            for _ in 0..2 {
                let outcome = call(&new, server.at(family, PORT));
                assert!(outcome.is_err(), "{family:?}: {outcome:?}");
            }
        }
    };
    all_fail();
    let other = |settings: &mut Settings| succeed(settings, old, &new);
    match proxy {
        Proxy::Runs => change(&mut mesh, other),
        Proxy::Killed => {
            mesh.change(other).unwrap();
            mesh.proxy("a").start().unwrap();
        }
    }
    mesh.proxy("a").wait_for_log(&new.name, PATIENCE).unwrap();
    all_fail();
    assert_eq!(running.accepted(), heard);
    change(&mut mesh, |settings| settings.policies.clear());
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        let directs = [0; 3].map(|_| ask(&scene, &new, to).unwrap().direct);
        assert_eq!(directs, [false, true, true], "{to}");
    }
    // What it says is said in its own name.
    mesh.proxy("a")
        .wait_for_log(&identity(&new), PATIENCE)
        .unwrap();
    unharmed(&mut mesh);
}

#[test]
fn a_client_is_succeeded_while_the_proxy_runs() {
    the_client_is_succeeded(Proxy::Runs);
}

#[test]
fn a_client_is_succeeded_while_no_proxy_runs() {
    the_client_is_succeeded(Proxy::Killed);
}
