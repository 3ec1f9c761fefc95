//! Who wants encryption even inside one node gets it: `sameNode: tunnel`.
//!
//! The witness is the link of each pod, on which a packet socket reads everything.

use std::thread;

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::proof::{MARKER, PORT, ask, change, tunnel_inside, unharmed};

/// How often the links of the first client and the first server showed the marker.
fn shown(scene: &Scene, work: impl FnOnce()) -> [u64; 2] {
    let node = &scene.world().node("a").host;
    let sniffers = [0, 2]
        .map(|pod| Sniffer::on_link(node, &World::link_to_pod(pod), MARKER.as_bytes()).unwrap());
    work();
    thread::sleep(SETTLE);
    sniffers.map(|sniffer| sniffer.finish().unwrap().hits)
}

fn ask_everywhere(scene: &Scene, direct: bool) {
    let service = Mesh::service(scene.server());
    for family in Family::BOTH {
        for to in [scene.server().at(family, PORT), service.at(family, 80)] {
            for _ in 0..3 {
                let asked = ask(scene, scene.client(), to).unwrap();
                assert_eq!(asked.answer.peer.ip(), scene.client().address(family));
                assert_eq!(asked.direct, direct, "{to}");
            }
        }
    }
}

fn know_everything(scene: &Scene) {
    let service = Mesh::service(scene.server());
    for family in Family::BOTH {
        for to in [scene.server().at(family, PORT), service.at(family, 80)] {
            scene.get(to, "known").unwrap();
        }
    }
}

#[test]
fn a_tunnel_inside_the_node_hides_what_is_said() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().settings(tunnel_inside).start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    let hits = shown(&scene, || ask_everywhere(&scene, false));
    assert_eq!(hits, [0, 0], "it crossed the pods' links in the clear");
    let encrypted = [
        ("reporter", "source"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let opened = mesh
        .proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_tcp_connections_opened_total", &encrypted);
    assert_eq!(opened, 12.0);
    unharmed(&mut mesh);
}

#[test]
fn the_setting_may_change_while_pods_talk() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    for _ in 0..2 {
        know_everything(&scene);
        // Twelve requests and twelve answers: the sniffers see what there is to see.
        let hits = shown(&scene, || ask_everywhere(&scene, true));
        assert!(hits.iter().all(|hits| *hits >= 24), "{hits:?}");
        for (setting, tunnelled) in [("tunnel", true), ("direct", false)] {
            change(&mut mesh, |settings| {
                settings.extra.insert("sameNode".to_owned(), json!(setting));
            });
            if tunnelled {
                let hits = shown(&scene, || ask_everywhere(&scene, false));
                assert_eq!(hits, [0, 0], "it crossed the pods' links in the clear");
            }
        }
    }
    unharmed(&mut mesh);
}
