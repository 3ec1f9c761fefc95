//! Overrides of single workloads: the stricter setting of the two ends applies.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Settings, workload_uid};
use ztunnel_tests::traffic::{Kind, Stream};

use crate::assertions::{
    PORT, assert_all_running, change, eventually, send_request, tunnel_same_node,
};

fn set_override(settings: &mut Settings, pod: &Host, key: &str, value: &str) {
    let mut entry = json!({ "workload": workload_uid(pod) });
    entry[key] = Value::from(value);
    settings
        .extra
        .insert("overrides".to_owned(), json!([entry]));
}

/// Whether the third connection of each key takes the fast path, after two through the proxy.
fn expected_paths(topology: &Topology) -> Vec<((usize, usize), bool)> {
    let mut all = Vec::new();
    for (client, from) in topology.clients().into_iter().enumerate() {
        for (server, host) in topology.servers().into_iter().enumerate() {
            for family in Family::BOTH {
                let to = host.at(family, PORT);
                let last = (0..3)
                    .map(|_| send_request(topology, from, to).unwrap())
                    .last();
                all.push(((client, server), last.unwrap().direct));
            }
        }
    }
    all
}

#[test]
fn an_override_requires_a_tunnel_at_either_end() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _servers = topology
        .servers()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    for ((client, server), direct) in expected_paths(&topology) {
        assert!(direct, "client {client} to server {server}");
    }
    change(&mut mesh, |settings| {
        set_override(settings, topology.server(), "sameNode", "tunnel");
    });
    for ((client, server), direct) in expected_paths(&topology) {
        assert_eq!(direct, server != 0, "client {client} to server {server}");
    }
    change(&mut mesh, |settings| {
        set_override(settings, topology.client(), "sameNode", "tunnel");
    });
    for ((client, server), direct) in expected_paths(&topology) {
        assert_eq!(direct, client != 0, "client {client} to server {server}");
    }
    assert_all_running(&mut mesh);
}

#[test]
fn one_override_cannot_disable_the_tunnel() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(|settings| {
            tunnel_same_node(settings);
            set_override(settings, topology.server(), "sameNode", "direct");
        })
        .start()
        .unwrap();
    let _servers = topology
        .servers()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    for ((client, server), direct) in expected_paths(&topology) {
        assert!(!direct, "client {client} to server {server}");
    }
    assert_all_running(&mut mesh);
}

/// The bytes that are sent in each direction, one after the other.
const BYTES: u32 = 1 << 20;

fn exchange((near, far): &(Stream, Stream)) {
    for (mut from, mut to) in [(near, far), (far, near)] {
        std::thread::scope(|scope| {
            scope.spawn(|| (&mut from).write_all(&vec![7; BYTES as usize]).unwrap());
            let mut received = vec![0; BYTES as usize];
            to.read_exact(&mut received).unwrap();
        });
    }
}

#[test]
fn an_override_disables_acceleration() {
    let topology = Topology::new(DataPath::Joined).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(|settings| set_override(settings, topology.server(), "acceleration", "off"))
        .start()
        .unwrap();
    for (server, joined) in topology.servers().into_iter().zip([false, true]) {
        let listener = topology.listen(server, PORT).unwrap();
        for family in Family::BOTH {
            let pair = topology
                .connect(server.at(family, PORT), &listener)
                .unwrap();
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
    // All bytes are counted on both paths.
    let request = [("reporter", "source")];
    eventually("the bytes of four connections", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let bytes = metrics.sum("istio_tcp_received_bytes_total", &request);
        (bytes == 4.0 * f64::from(BYTES)).then_some(())
    });
    assert_all_running(&mut mesh);
}
