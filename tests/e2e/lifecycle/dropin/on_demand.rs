//! On-demand discovery (`XDS_ON_DEMAND`): a node holds its own pods, and of the others only those
//! that one of its pods has dialled.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_tests::control::{AnswerMode, Resource};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use super::{Cluster, workload};
use crate::assertions::{self, HTTP, LIMIT, eventually, expect_answer, listed, wait_for_answer};

/// The lifetime of the answer that an address is outside the mesh, with a margin.
const LEASE: Duration = Duration::from_secs(25);

fn start(world: &World) -> Cluster<'_> {
    Cluster::start_with(world, &[("XDS_ON_DEMAND", "true")])
}

fn workloads(cluster: &mut Cluster<'_>, node: &str) -> BTreeSet<String> {
    listed(cluster.mesh.proxy(node), "workloads")
        .into_iter()
        .collect()
}

fn names(pods: &[&Host]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod.name.clone()).collect()
}

/// The number of fetches of a key.
fn fetches_of(cluster: &Cluster<'_>, key: &str) -> usize {
    let fetched = cluster.control.state.fetched();
    fetched.iter().filter(|name| *name == key).count()
}

/// The host outside as a workload with HBONE, which no proxy serves.
fn as_workload(world: &World, outside: &Host) -> Resource {
    Resource::Workload(Box::new(workload(world.node("b"), outside)))
}

#[test]
fn a_dialled_resource_is_fetched_once_and_held() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, neighbour) = (world.pod("a", 0), world.pod("a", 1));
    let (server, other) = (world.pod("b", 0), world.pod("b", 1));
    let _servers = [server, other].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    eventually("the node's own pods have arrived", || {
        workloads(&mut cluster, "a") == names(&[client, neighbour])
    });

    expect_answer(client, server.at(Family::V4, HTTP));
    let line = cluster
        .mesh
        .proxy("b")
        .wait_for_log("connection complete", LIMIT);
    let line = line.unwrap();
    let identity = format!("spiffe://cluster.local/ns/default/sa/{}", client.name);
    assert!(line.contains(&identity), "not in a tunnel: {line}");
    assert_eq!(
        workloads(&mut cluster, "a"),
        names(&[client, neighbour, server])
    );

    // A service is sent with its backends.
    expect_answer(client, Mesh::service(other).at(Family::V4, 80));
    assert!(workloads(&mut cluster, "a").contains(&other.name));
    // A held resource is not fetched again.
    for _ in 0..3 {
        expect_answer(neighbour, server.at(Family::V4, HTTP));
    }
    assert_eq!(fetches_of(&cluster, &format!("/{}", server.v4)), 1);
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn an_unknown_address_is_outside_the_mesh_until_it_joins() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _http = outside.serve(Kind::Http, HTTP).unwrap();
    let to = outside.at(Family::V4, HTTP);
    for _ in 0..5 {
        expect_answer(client, to);
    }
    let key = format!("/{}", outside.v4);
    assert_eq!(fetches_of(&cluster, &key), 1, "the answer is reused");

    // It joins the mesh, and the control plane does not push it: the fast-path entry must expire.
    let joined = as_workload(&world, outside);
    cluster.control.state.put(&joined);
    let began = Instant::now();
    while assertions::call(client, to).is_ok() {
        assert!(began.elapsed() < LEASE, "still reached in plaintext");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(workloads(&mut cluster, "a").contains(&outside.name));
    // It leaves the mesh, which is pushed: the address is fetched again and is outside.
    cluster.control.state.remove(&joined);
    wait_for_answer(client, to);
    assertions::assert_all_running(&mut cluster.mesh);
}

#[test]
fn without_an_answer_nothing_is_sent_in_plaintext() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, server, outside) = (world.pod("a", 0), world.pod("b", 0), world.outside());
    let _servers = [server, outside].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    eventually("the node's own pods have arrived", || {
        workloads(&mut cluster, "a").len() == 2
    });
    let state = cluster.control.state.clone();
    state.set_answer_mode(AnswerMode::Never);
    for to in [server, outside] {
        let began = Instant::now();
        assertions::reset(client, to.at(Family::V4, HTTP));
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the connection waited too long"
        );
    }
    let refusal = format!("cannot find out whether /{} is in the mesh", outside.v4);
    cluster
        .mesh
        .proxy("a")
        .wait_for_log(&refusal, LIMIT)
        .unwrap();

    state.set_answer_mode(AnswerMode::Delayed(Duration::from_secs(1)));
    // An address of the other family, because the control plane would not answer for the first one
    // again.
    expect_answer(client, outside.at(Family::V6, HTTP));
    expect_answer(client, server.at(Family::V6, HTTP));
    cluster.control.stop();
    assertions::reset(client, world.pod("b", 1).at(Family::V4, HTTP));
    // Held resources are still reached.
    expect_answer(client, server.at(Family::V6, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}

/// Dials one of a thousand addresses. `None` if the proxy has refused the connection: the reset may
/// arrive before the dialling thread has seen the connection.
fn dial(at: u32) -> Option<TcpStream> {
    let [.., high, low] = at.to_be_bytes();
    let to = SocketAddr::from(([198, 18, high, low], HTTP));
    match TcpStream::connect(to) {
        Ok(stream) => Some(stream),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{to}: {error}"),
    }
}

#[test]
fn a_pod_that_dials_a_thousand_addresses_does_not_delay_others() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, neighbour, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    eventually("the node's own pods have arrived", || {
        workloads(&mut cluster, "a").len() == 2
    });
    let began = Instant::now();
    let dialled: Vec<TcpStream> = client.enter(|| (0..1000).filter_map(dial).collect());
    // Connections of another pod are not delayed.
    let call = Instant::now();
    expect_answer(neighbour, server.at(Family::V4, HTTP));
    let took = call.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let flood = |cluster: &Cluster<'_>| {
        let fetched = cluster.control.state.fetched();
        let flood = fetched.iter().filter(|key| key.starts_with("/198.18."));
        flood.cloned().collect::<BTreeSet<_>>().len()
    };
    std::thread::sleep(Duration::from_secs(1));
    let (fetched, seconds) = (flood(&cluster), began.elapsed().as_secs_f64());
    // 256 fetches at once, then 64 per second.
    let most = 260.0 + 64.0 * seconds;
    assert!(fetched > 100, "only {fetched} addresses were fetched");
    assert!(
        f64::from(u32::try_from(fetched).unwrap()) <= most,
        "{fetched} in {seconds} s"
    );
    drop(dialled);
    expect_answer(client, server.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}
