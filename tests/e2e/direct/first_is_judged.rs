//! The first connection of a key is the proxy's to judge, and the next one does not meet it. A
//! key is a pod, the address it dials, and the port.

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use crate::proof::{PORT, ask, unharmed};

on_lanes!(the_first_connection_is_judged_and_the_second_goes_by: direct, joined, auto);
fn the_first_connection_is_judged_and_the_second_goes_by(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    scene.chosen(&mut mesh).unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(server);
    for family in Family::BOTH {
        for to in [server.at(family, PORT), service.at(family, 80)] {
            let first = ask(&scene, client, to).unwrap();
            assert!(!first.direct, "{to}: nobody has judged the first one");
            let second = ask(&scene, client, to).unwrap();
            assert!(second.direct, "{to}: the second one went to the proxy");
            for asked in [&first, &second] {
                // Neither end can tell one from the other.
                assert_eq!(asked.end.peer_addr().unwrap(), to);
                let own = asked.end.local_addr().unwrap();
                assert_eq!(own.ip(), client.address(family), "{to}");
                assert_eq!(asked.answer.peer.ip(), client.address(family), "{to}");
                assert_eq!(asked.answer.local, server.at(family, PORT), "{to}");
            }
            // But that there is nobody in between shows in the port.
            let own = second.end.local_addr().unwrap();
            assert_eq!(second.answer.peer, own, "{to}");
            let proxy = mesh.proxy("a");
            for host in [client, server] {
                assert!(!proxy.speaks_with(host, own.port()).unwrap(), "{to}");
            }
        }
    }
    unharmed(&mut mesh);
}

#[test]
fn every_key_is_judged_by_itself() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let [one, other] = scene.clients();
    let _servers = scene
        .servers()
        .map(|pod| [PORT, 9000].map(|port| pod.serve(Kind::Http, port).unwrap()));
    let [server, neighbour] = scene.servers();
    for family in Family::BOTH {
        scene.get(server.at(family, PORT), "known").unwrap();
        let service = Mesh::service(server);
        for (what, from, to) in [
            ("another port", one, server.at(family, 9000)),
            ("another pod", one, neighbour.at(family, PORT)),
            ("the service", one, service.at(family, 80)),
            ("another port of the service", one, service.at(family, 9000)),
            ("another client", other, server.at(family, PORT)),
        ] {
            let first = ask(&scene, from, to).unwrap();
            assert!(!first.direct, "{family:?}: {what} had been judged before");
            let second = ask(&scene, from, to).unwrap();
            assert!(second.direct, "{family:?}: {what} was not remembered");
        }
    }
}

/// Many connections stand open; the proxy has none of them.
#[test]
fn the_proxy_has_no_sockets_of_direct_connections() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    let proxy = mesh.proxy("a");
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        scene.get(to, "known").unwrap();
        let open: Vec<_> = (0..50).map(|_| scene.dial(client, to).unwrap()).collect();
        let ports: Vec<_> = open
            .iter()
            .map(|end| end.local_addr().unwrap().port())
            .collect();
        for host in [client, server] {
            let ours = proxy.connections_in(host).unwrap();
            let theirs = ours.iter().find(|socket| {
                ports.contains(&socket.remote.port()) || ports.contains(&socket.local.port())
            });
            assert!(theirs.is_none(), "{family:?}: {theirs:?}");
        }
    }
}
