//! On demand (`XDS_ON_DEMAND`): a node holds its own pods, and of the others only those that somebody
//! here has called.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ztunnel_tests::control::{Manner, Resource};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Kind;

use super::{Cluster, workload};
use crate::scene::{self, HTTP, LIMIT, answered, answered_soon, eventually, listed};

/// How long the answer that something is outside may hold, and a bit more.
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

/// How often a key was asked for.
fn asked(cluster: &Cluster<'_>, key: &str) -> usize {
    let asked = cluster.control.state.asked();
    asked.iter().filter(|name| *name == key).count()
}

/// The host outside as a workload that takes tunnels only, which nobody serves there.
fn as_workload(world: &World, outside: &Host) -> Resource {
    Resource::Workload(Box::new(workload(world.node("b"), outside)))
}

#[test]
fn what_is_called_is_asked_for_and_then_held() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, neighbour) = (world.pod("a", 0), world.pod("a", 1));
    let (server, other) = (world.pod("b", 0), world.pod("b", 1));
    let _servers = [server, other].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    eventually("its own pods are known", || {
        workloads(&mut cluster, "a") == names(&[client, neighbour])
    });

    answered(client, server.at(Family::V4, HTTP));
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

    // With a service come its backends.
    answered(client, Mesh::service(other).at(Family::V4, 80));
    assert!(workloads(&mut cluster, "a").contains(&other.name));
    // What is held is not asked for again.
    for _ in 0..3 {
        answered(neighbour, server.at(Family::V4, HTTP));
    }
    assert_eq!(asked(&cluster, &format!("/{}", server.v4)), 1);
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn what_the_control_plane_does_not_know_is_outside_until_it_does() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, outside) = (world.pod("a", 0), world.outside());
    let _http = outside.serve(Kind::Http, HTTP).unwrap();
    let to = outside.at(Family::V4, HTTP);
    for _ in 0..5 {
        answered(client, to);
    }
    let key = format!("/{}", outside.v4);
    assert_eq!(asked(&cluster, &key), 1, "the answer holds for a while");

    // It joins the mesh, and is not told of: the kernel's verdict has to end all the same.
    let joined = as_workload(&world, outside);
    cluster.control.state.put(&joined);
    let began = Instant::now();
    while scene::call(client, to).is_ok() {
        assert!(began.elapsed() < LEASE, "still reached in the clear");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(workloads(&mut cluster, "a").contains(&outside.name));
    // It leaves again, which is told: it is asked for anew, and outside.
    cluster.control.state.remove(&joined);
    answered_soon(client, to);
    scene::unharmed(&mut cluster.mesh);
}

#[test]
fn without_an_answer_nothing_leaves_in_the_clear() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, server, outside) = (world.pod("a", 0), world.pod("b", 0), world.outside());
    let _servers = [server, outside].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    eventually("its own pods are known", || {
        workloads(&mut cluster, "a").len() == 2
    });
    let state = cluster.control.state.clone();
    state.answer(Manner::Silent);
    for to in [server, outside] {
        let began = Instant::now();
        scene::reset(client, to.at(Family::V4, HTTP));
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it waits too long"
        );
    }
    let refusal = format!("cannot find out whether /{} is in the mesh", outside.v4);
    cluster
        .mesh
        .proxy("a")
        .wait_for_log(&refusal, LIMIT)
        .unwrap();

    state.answer(Manner::Slow(Duration::from_secs(1)));
    // Another family: the control plane would not answer what it was asked before.
    answered(client, outside.at(Family::V6, HTTP));
    answered(client, server.at(Family::V6, HTTP));
    cluster.control.stop();
    scene::reset(client, world.pod("b", 1).at(Family::V4, HTTP));
    // What is known goes on.
    answered(client, server.at(Family::V6, HTTP));
    scene::unharmed(&mut cluster.mesh);
}

/// Dials one of a thousand addresses. Nothing when the proxy has refused the connection already: a
/// reset may come before the dialling thread has seen that it is connected.
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
fn a_pod_that_dials_a_thousand_addresses_harms_nobody() {
    let world = World::two_nodes().unwrap();
    let mut cluster = start(&world);
    let (client, neighbour, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    eventually("its own pods are known", || {
        workloads(&mut cluster, "a").len() == 2
    });
    let began = Instant::now();
    let dialled: Vec<TcpStream> = client.enter(|| (0..1000).filter_map(dial).collect());
    // Somebody else is not made to wait.
    let call = Instant::now();
    answered(neighbour, server.at(Family::V4, HTTP));
    let took = call.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let flood = |cluster: &Cluster<'_>| {
        let asked = cluster.control.state.asked();
        let flood = asked.iter().filter(|key| key.starts_with("/198.18."));
        flood.cloned().collect::<BTreeSet<_>>().len()
    };
    std::thread::sleep(Duration::from_secs(1));
    let (asked, seconds) = (flood(&cluster), began.elapsed().as_secs_f64());
    // 256 at once, then 64 a second.
    let most = 260.0 + 64.0 * seconds;
    assert!(asked > 100, "only {asked} were asked for");
    assert!(
        f64::from(u32::try_from(asked).unwrap()) <= most,
        "{asked} in {seconds} s"
    );
    drop(dialled);
    answered(client, server.at(Family::V4, HTTP));
    scene::unharmed(&mut cluster.mesh);
}
