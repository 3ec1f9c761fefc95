//! A server that leaves the mesh and comes back under load. The node agent withdraws the pod first, and
//! the control plane tells the clients a moment later: in between, the clients still use tunnels. No call
//! fails, and none of the handshakes that are under way at such a moment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use api::istio::workload::TunnelProtocol;
use ztunnel_tests::control::Resource;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::traffic::{self, Kind};

use super::{Cluster, pod_uid, workload};
use crate::assertions::{self, HTTP, LIMIT, expect_answer};

/// The delay between the node agent's request and the control plane's push, at most: Istio's control
/// plane collects changes for 100 ms.
const DELAYS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(30),
    Duration::from_millis(150),
];
/// How often the server leaves and comes back.
const ROUNDS: usize = 12;

fn resource(world: &World, pod: &Host, protocol: TunnelProtocol) -> Resource {
    let mut of_pod = workload(world.node("b"), pod);
    of_pod.tunnel_protocol = protocol.into();
    Resource::Workload(Box::new(of_pod))
}

#[test]
fn calls_go_on_while_a_server_leaves_the_mesh_and_comes_back() {
    let world = World::two_nodes().unwrap();
    let mut cluster = Cluster::start(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(client, server.at(Family::V4, HTTP));
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let call = || {
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let called = traffic::get(server.at(Family::V4, HTTP), "call", LIMIT);
            match called {
                Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    };
    let failures = thread::scope(|scope| {
        let callers = [(); 2].map(|()| scope.spawn(|| client.enter(call)));
        for round in 0..ROUNDS {
            let delay = DELAYS[round % DELAYS.len()];
            cluster.agents[1].delete(&pod_uid(server)).unwrap();
            thread::sleep(delay);
            let outside = resource(&world, server, TunnelProtocol::None);
            cluster.control.state.put(&outside);
            thread::sleep(Duration::from_millis(150));
            cluster.agents[1].add(server, &pod_uid(server)).unwrap();
            thread::sleep(delay);
            let inside = resource(&world, server, TunnelProtocol::Hbone);
            cluster.control.state.put(&inside);
            thread::sleep(Duration::from_millis(150));
        }
        stop.store(true, Ordering::Relaxed);
        callers.map(|caller| caller.join().unwrap()).concat()
    });
    let answered = answered.load(Ordering::Relaxed);
    assert!(
        failures.is_empty(),
        "{failures:?} beside {answered} answers"
    );
    assert!(answered > 500, "only {answered} calls were made");
    assertions::assert_all_running(&mut cluster.mesh);
}
