//! What is set for one workload counts for that workload: at either end of a connection, the
//! more careful of the two has its way.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Settings, workload_uid};
use ztunnel_tests::traffic::{End, Kind};

use crate::proof::{PORT, ask, change, eventually, tunnel_inside, unharmed};

fn set_override(settings: &mut Settings, pod: &Host, key: &str, value: &str) {
    let mut entry = json!({ "workload": workload_uid(pod) });
    entry[key] = Value::from(value);
    settings
        .extra
        .insert("overrides".to_owned(), json!([entry]));
}

/// Whether the third connection of each key is direct: the first two have told the proxy.
fn lanes(scene: &Scene) -> Vec<((usize, usize), bool)> {
    let mut all = Vec::new();
    for (client, from) in scene.clients().into_iter().enumerate() {
        for (server, host) in scene.servers().into_iter().enumerate() {
            for family in Family::BOTH {
                let to = host.at(family, PORT);
                let last = (0..3).map(|_| ask(scene, from, to).unwrap()).last();
                all.push(((client, server), last.unwrap().direct));
            }
        }
    }
    all
}

#[test]
fn a_workload_that_wants_a_tunnel_gets_it_at_either_end() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _servers = scene
        .servers()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    for ((client, server), direct) in lanes(&scene) {
        assert!(direct, "client {client} to server {server}");
    }
    change(&mut mesh, |settings| {
        set_override(settings, scene.server(), "sameNode", "tunnel");
    });
    for ((client, server), direct) in lanes(&scene) {
        assert_eq!(direct, server != 0, "client {client} to server {server}");
    }
    change(&mut mesh, |settings| {
        set_override(settings, scene.client(), "sameNode", "tunnel");
    });
    for ((client, server), direct) in lanes(&scene) {
        assert_eq!(direct, client != 0, "client {client} to server {server}");
    }
    unharmed(&mut mesh);
}

#[test]
fn one_workload_alone_cannot_leave_the_tunnel() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene
        .mesh()
        .settings(|settings| {
            tunnel_inside(settings);
            set_override(settings, scene.server(), "sameNode", "direct");
        })
        .start()
        .unwrap();
    let _servers = scene
        .servers()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    for ((client, server), direct) in lanes(&scene) {
        assert!(!direct, "client {client} to server {server}");
    }
    unharmed(&mut mesh);
}

/// A megabyte each way, one after the other.
const BYTES: u32 = 1 << 20;

fn exchange((near, far): &(End, End)) {
    for (mut from, mut to) in [(near, far), (far, near)] {
        std::thread::scope(|scope| {
            scope.spawn(|| (&mut from).write_all(&vec![7; BYTES as usize]).unwrap());
            let mut heard = vec![0; BYTES as usize];
            to.read_exact(&mut heard).unwrap();
        });
    }
}

#[test]
fn a_workload_that_must_not_be_accelerated_is_not() {
    let scene = Scene::set(Lane::Joined).unwrap();
    let mut mesh = scene
        .mesh()
        .settings(|settings| set_override(settings, scene.server(), "acceleration", "off"))
        .start()
        .unwrap();
    for (server, joined) in scene.servers().into_iter().zip([false, true]) {
        let listener = scene.listen(server, PORT).unwrap();
        for family in Family::BOTH {
            let pair = scene.connect(server.at(family, PORT), &listener).unwrap();
            exchange(&pair);
            for end in [&pair.0, &pair.1] {
                let over_tcp = end.received_over_tcp().unwrap();
                assert_eq!(
                    over_tcp < u64::from(BYTES) / 2,
                    joined,
                    "{}: {over_tcp}",
                    server.name
                );
            }
        }
    }
    // Counted are all of them, however they went.
    let request = [("reporter", "source")];
    eventually("the bytes of four connections", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let bytes = metrics.sum("istio_tcp_received_bytes_total", &request);
        (bytes == 4.0 * f64::from(BYTES)).then_some(())
    });
    unharmed(&mut mesh);
}
