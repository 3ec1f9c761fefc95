//! What is outside the mesh is reached directly, once the proxy has seen that it is outside.

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::traffic::Kind;

use crate::proof::{PORT, ask, eventually, name_workloads, unharmed};

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
