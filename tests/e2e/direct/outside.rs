//! What is outside the mesh is reached directly, once the proxy has seen that it is outside.

use std::thread;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::proxy::workload_uid;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::proof::{MARKER, PORT, ask, change, eventually, name_workloads, unharmed};

#[test]
fn a_host_outside_is_reached_directly_after_the_first_time() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().settings(name_workloads).start().unwrap();
    let (client, outside) = (scene.client(), scene.world().outside());
    let running = outside.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = outside.at(family, PORT);
        let first = ask(&scene, client, to).unwrap();
        assert!(!first.direct, "{to}: nobody has judged the first one");
        let second = ask(&scene, client, to).unwrap();
        assert!(second.direct, "{to}: the second one went to the proxy");
        for asked in [&first, &second] {
            assert_eq!(asked.answer.client_peer, to);
            assert_eq!(asked.answer.local, to);
            assert_eq!(asked.answer.peer.ip(), client.address(family));
        }
        assert_eq!(second.answer.peer, second.answer.client_local);
        let port = second.answer.client_local.port();
        assert!(!mesh.proxy("a").speaks_with(client, port).unwrap(), "{to}");
        // Its own word on what it has seen is the same for both.
        let other = ask(&scene, scene.clients()[1], to).unwrap();
        assert!(!other.direct, "{to}: judged for another pod");
    }
    assert_eq!(running.accepted(), scene.knocks());
    let plain = [
        ("reporter", "source"),
        ("source_workload", "a-0"),
        ("destination_workload", "unknown"),
        ("connection_security_policy", "unknown"),
    ];
    eventually("all four of a-0 are counted", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        (metrics.sum("istio_tcp_connections_opened_total", &plain) == 4.0).then_some(())
    });
    unharmed(&mut mesh);
}

#[test]
fn a_pod_that_is_no_workload_is_reached_directly_after_the_first_time() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let (client, stranger) = (scene.client(), scene.servers()[1]);
    let _mesh = scene.mesh().without(stranger).start().unwrap();
    let _running = stranger.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = stranger.at(family, PORT);
        let first = ask(&scene, client, to).unwrap();
        let second = ask(&scene, client, to).unwrap();
        assert_eq!([first.direct, second.direct], [false, true], "{to}");
    }
}

/// It was called in the clear while nobody knew better. From the moment the mesh knows it, it is
/// not, whatever the kernel remembers.
#[test]
fn who_joins_the_mesh_is_no_longer_called_in_the_clear() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let newcomer = scene.world().pod("b", 0);
    let mut mesh = scene.mesh().start().unwrap();
    let mut complete = Vec::new();
    let uid = workload_uid(newcomer);
    change(&mut mesh, |settings| {
        complete.push(settings.clone());
        settings.pods.retain(|pod| pod.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    });
    let _running = newcomer.serve(Kind::Http, PORT).unwrap();
    let sniff = || Sniffer::between(scene.world().node("a"), "b", MARKER.as_bytes()).unwrap();
    let sniffer = sniff();
    for family in Family::BOTH {
        scene.get(newcomer.at(family, PORT), MARKER).unwrap();
    }
    thread::sleep(SETTLE);
    assert!(sniffer.finish().unwrap().hits >= 4, "the test of the test");

    let mut complete = complete.into_iter();
    change(&mut mesh, |settings| *settings = complete.next().unwrap());
    let sniffer = sniff();
    for family in Family::BOTH {
        for _ in 0..3 {
            let to = newcomer.at(family, PORT);
            let asked = ask(&scene, scene.client(), to).unwrap();
            assert!(!asked.direct, "{to}");
        }
    }
    thread::sleep(SETTLE);
    assert_eq!(
        sniffer.finish().unwrap().hits,
        0,
        "it was said in the clear"
    );
    unharmed(&mut mesh);
}
