//! A service with backends on this node and on another one: each backend gets its share, local ones
//! on the fast path. A drained backend gets no new connections, and no connection is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, bypasses_the_proxy};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Settings, service_hostname, workload_uid};
use ztunnel_tests::traffic::{self, IoMode, Kind, Server, Stream};

use crate::assertions::{
    MARKER, PORT, TIMEOUT, assert_all_running, change, disable_access_log, eventually, policy_for,
};

/// The number of connections for measuring shares. With four backends, each share must be within 5
/// standard deviations of a quarter (97 of 2000).
const MANY: usize = 2000;
const TOLERANCE: usize = 97;
/// The duration of each step of the churn.
const STEP: Duration = Duration::from_millis(500);

/// Two clients, three backends on their node, one on the other.
fn world() -> World {
    World::builder().node("a", 5).node("b", 1).build().unwrap()
}

fn backends(world: &World) -> [&Host; 4] {
    [
        world.pod("a", 2),
        world.pod("a", 3),
        world.pod("a", 4),
        world.pod("b", 0),
    ]
}

/// The service of the first backend has all four backends.
fn mesh(world: &World) -> Mesh<'_> {
    let key = format!("default/{}", service_hostname(backends(world)[0]));
    Mesh::builder(world)
        .settings(move |settings| {
            DataPath::Direct.configure(settings);
            disable_access_log(settings);
            for workload in &mut settings.workloads {
                let names = backends(world).map(|pod| pod.name.as_str());
                if names.contains(&workload.name.as_str()) {
                    workload.services.insert(key.clone(), [(80, PORT)].into());
                }
            }
        })
        .start()
        .unwrap()
}

fn set_health(settings: &mut Settings, pod: &Host, status: &str) {
    for workload in &mut settings.workloads {
        if workload.name == pod.name {
            workload.extra.insert("status".to_owned(), json!(status));
        }
    }
}

fn leave_or_join(settings: &mut Settings, world: &World, pod: &Host, member: bool) {
    let key = format!("default/{}", service_hostname(backends(world)[0]));
    for workload in &mut settings.workloads {
        if workload.name == pod.name {
            if member {
                workload.services.insert(key.clone(), [(80, PORT)].into());
            } else {
                workload.services.remove(&key);
            }
        }
    }
}

/// Sends one request. Returns the backend that answered, and whether the connection took the fast
/// path.
fn call(from: &Host, to: SocketAddr) -> std::io::Result<(SocketAddr, bool)> {
    let mut end = from.enter(|| Stream::connect(to, IoMode::Blocking, TIMEOUT))?;
    let answer = traffic::get_over(&mut end, MARKER, TIMEOUT)?;
    assert_eq!(end.peer_addr()?, to, "the client sees the dialled address");
    Ok((answer.local, bypasses_the_proxy(from, &end)?))
}

#[test]
fn each_backend_gets_its_share_and_local_backends_use_the_fast_path() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let _servers = all.map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    let service = Mesh::service(all[0]);
    for family in Family::BOTH {
        let to = service.at(family, 80);
        eventually("a fast-path entry for the service", || {
            call(world.pod("a", 0), to).unwrap().1.then_some(())
        });
        let mut shares: BTreeMap<SocketAddr, (usize, usize)> = BTreeMap::new();
        for _ in 0..MANY {
            let (backend, direct) = call(world.pod("a", 0), to).unwrap();
            let share = shares.entry(backend).or_default();
            share.0 += 1;
            share.1 += usize::from(direct);
        }
        println!("{family:?}: {shares:?}");
        for pod in all {
            let (count, direct) = shares.remove(&pod.at(family, PORT)).unwrap_or_default();
            let off = count.abs_diff(MANY / all.len());
            assert!(off < TOLERANCE, "{}: {count} of {MANY}", pod.name);
            let is_here = pod.name.starts_with('a');
            let wanted = if is_here { count } else { 0 };
            assert_eq!(direct, wanted, "{}: {direct} of {count} direct", pod.name);
        }
        assert!(shares.is_empty(), "{shares:?}");
    }
    assert_all_running(&mut mesh);
}

const CLIENTS: usize = 8;

/// The client, the time and the result of each request.
type Results = Mutex<Vec<(usize, Instant, Result<SocketAddr, String>)>>;

fn load(world: &World, stop: &AtomicBool, results: &Results, client: usize) {
    let from = world.pod("a", client % 2);
    let to = Mesh::service(backends(world)[0]).at(Family::BOTH[client / 2 % 2], 80);
    from.enter(|| {
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let outcome = traffic::get(to, MARKER, TIMEOUT)
                .map(|answer| answer.local)
                .map_err(|error| error.to_string());
            results.lock().unwrap().push((client, began, outcome));
        }
    });
}

#[test]
fn no_connection_is_refused_while_backends_are_drained_under_load() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let mut servers = all.map(|pod| Some(pod.serve(Kind::Http, PORT).unwrap()));
    let (stop, results) = (AtomicBool::new(false), Results::default());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (world, stop, results) = (&world, &stop, &results);
            scope.spawn(move || load(world, stop, results, client));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (index, pod) in all.into_iter().enumerate() {
                for method in [DrainMethod::Unhealthy, DrainMethod::Removed] {
                    drain(
                        &world,
                        &mut mesh,
                        pod,
                        method,
                        &mut servers[index],
                        &results,
                    );
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    let results = results.into_inner().unwrap();
    let failures: Vec<_> = results
        .iter()
        .filter_map(|(_, _, outcome)| outcome.as_ref().err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} failed: {:?}",
        failures.len(),
        results.len(),
        &failures[..failures.len().min(5)]
    );
    println!("{} connections", results.len());
    assert_all_running(&mut mesh);
}

/// The way in which a backend is drained.
#[derive(Debug, Clone, Copy)]
enum DrainMethod {
    Unhealthy,
    Removed,
}

/// Drains a backend, stops its server, and adds it again.
fn drain(
    world: &World,
    mesh: &mut Mesh<'_>,
    pod: &Host,
    method: DrainMethod,
    server: &mut Option<Server>,
    results: &Results,
) {
    change(mesh, |settings| match method {
        DrainMethod::Unhealthy => set_health(settings, pod, "Unhealthy"),
        DrainMethod::Removed => leave_or_join(settings, world, pod, false),
    });
    let drained = Instant::now();
    // Connections from before the change still arrive.
    eventually("no earlier request is pending", || {
        let results = results.lock().unwrap();
        let since = results.iter().filter(|(_, began, _)| *began >= drained);
        let clients: BTreeSet<_> = since.map(|(client, ..)| client).collect();
        (clients.len() == CLIENTS).then_some(())
    });
    *server = None;
    thread::sleep(STEP);
    let late = connections_of(results, pod, drained);
    assert_eq!(
        late, 0,
        "{} received a connection after it was {method:?}",
        pod.name
    );
    *server = Some(pod.serve(Kind::Http, PORT).unwrap());
    change(mesh, |settings| match method {
        DrainMethod::Unhealthy => set_health(settings, pod, "Healthy"),
        DrainMethod::Removed => leave_or_join(settings, world, pod, true),
    });
    let back = Instant::now();
    eventually("the backend gets its share again", || {
        (connections_of(results, pod, back) >= 20).then_some(())
    });
}

/// The number of connections after a point in time that a pod has answered.
fn connections_of(results: &Results, pod: &Host, after: Instant) -> usize {
    let own = Family::BOTH.map(|family| pod.at(family, PORT));
    let results = results.lock().unwrap();
    results
        .iter()
        .filter(|(_, began, outcome)| {
            *began >= after && outcome.as_ref().is_ok_and(|from| own.contains(from))
        })
        .count()
}

/// A service may have only remote or only local backends.
#[test]
fn all_backends_may_be_local_or_remote() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let _servers = all.map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    let to = Mesh::service(all[0]).at(Family::V4, 80);
    for (remove_pod, wanted) in [(&all[..3], false), (&all[3..], true)] {
        change(&mut mesh, |settings| {
            for pod in all {
                let away = remove_pod.iter().any(|one| one.name == pod.name);
                let status = if away { "Unhealthy" } else { "Healthy" };
                set_health(settings, pod, status);
            }
        });
        let directs: Vec<_> = (0..30)
            .map(|_| call(world.pod("a", 0), to).unwrap().1)
            .collect();
        // The proxy may carry the first one; the others go to the only backends.
        assert!(
            directs[5..].iter().all(|direct| *direct == wanted),
            "{directs:?}"
        );
    }
    assert_all_running(&mut mesh);
}

/// A connection that the proxy would deny after choosing a backend is denied on the fast path, too:
/// policy does not change the choice of the backend.
#[test]
fn a_backend_that_denies_the_client_keeps_its_share() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let servers = all.map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    let client = world.pod("a", 0);
    let to = Mesh::service(all[0]).at(Family::V4, 80);
    change(&mut mesh, |settings| {
        let mut deny = policy_for(client, "not-to-this-one", "Deny");
        "WorkloadSelector".clone_into(&mut deny.scope);
        settings.policies.push(deny);
        for workload in &mut settings.workloads {
            if workload.name == all[1].name {
                let name = "default/not-to-this-one".to_owned();
                workload.authorization_policies.push(name);
            }
        }
    });
    let (mut refused, mut directs) = (0usize, 0usize);
    for _ in 0..MANY {
        match call(client, to) {
            Ok((backend, direct)) => {
                assert_ne!(backend, all[1].at(Family::V4, PORT));
                directs += usize::from(direct);
            }
            Err(_) => refused += 1,
        }
    }
    assert_eq!(
        servers[1].accepted(),
        0,
        "a backend received denied connections"
    );
    println!("{refused} of {MANY} refused, {directs} direct");
    assert!(refused.abs_diff(MANY / 4) < TOLERANCE, "{refused} refused");
    assert!(directs.abs_diff(MANY / 2) < TOLERANCE, "{directs} direct");
    assert_all_running(&mut mesh);
}

#[test]
fn a_backend_that_requires_a_tunnel_keeps_its_share() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let _servers = all.map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    change(&mut mesh, |settings| {
        let overrides = json!([{ "workload": workload_uid(all[2]), "sameNode": "tunnel" }]);
        settings.extra.insert("overrides".to_owned(), overrides);
    });
    let client = world.pod("a", 0);
    let to = Mesh::service(all[0]).at(Family::V6, 80);
    call(client, to).unwrap();
    let mut counts = [(0usize, 0); 4];
    for _ in 0..MANY {
        let (backend, direct) = call(client, to).unwrap();
        let which = all
            .iter()
            .position(|pod| pod.at(Family::V6, PORT) == backend);
        let count = &mut counts[which.unwrap()];
        count.0 += 1;
        count.1 += usize::from(direct);
    }
    for (index, (count, direct)) in counts.into_iter().enumerate() {
        let name = &all[index].name;
        assert!(count.abs_diff(MANY / 4) < TOLERANCE, "{name}: {counts:?}");
        let wanted = if index < 2 { count } else { 0 };
        assert_eq!(direct, wanted, "{name}: {counts:?}");
    }
    assert_all_running(&mut mesh);
}

/// A pod may be a backend of the service that it calls.
#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = world();
    let mut mesh = mesh(&world);
    let all = backends(&world);
    let _servers = all.map(|pod| pod.serve(Kind::Http, PORT).unwrap());
    for family in Family::BOTH {
        // It is one of four backends of the first service, and the only backend of the other.
        for (from, to) in [
            (all[1], Mesh::service(all[0]).at(family, 80)),
            (all[3], Mesh::service(all[0]).at(family, 80)),
            (all[2], Mesh::service(all[2]).at(family, 80)),
        ] {
            let own = from.at(family, PORT);
            let mut reached = 0;
            for _ in 0..60 {
                let answer = from.enter(|| traffic::get(to, MARKER, TIMEOUT));
                let answer =
                    answer.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
                assert_eq!(answer.client_peer, to);
                if answer.local == own {
                    reached += 1;
                    assert_eq!(answer.peer.ip(), from.address(family), "{to}");
                }
            }
            assert!(reached > 0, "{} never reached itself at {to}", from.name);
        }
    }
    assert_all_running(&mut mesh);
}
