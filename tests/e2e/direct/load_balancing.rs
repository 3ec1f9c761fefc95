//! The fast path balances the connections of a service as the proxy does: with more backends than
//! an entry holds, capacities, preferences for near backends, other target ports and other address
//! families.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use ztunnel_tests::data_path::{DataPath, TIMEOUT, bypasses_the_proxy};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, MeshBuilder, Settings, service_hostname};
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream};

use crate::assertions::{MARKER, PORT, assert_all_running, change, disable_access_log};

/// The pod of the service and its other backends: the pods after the client on node `a`, and the
/// one of node `b`.
fn backends(world: &World) -> Vec<&Host> {
    let here = &world.node("a").pods[1..];
    here.iter().chain(&world.node("b").pods).collect()
}

fn mesh(world: &World) -> MeshBuilder<'_> {
    let key = format!("default/{}", service_hostname(backends(world)[0]));
    Mesh::builder(world).settings(move |settings| {
        DataPath::Direct.configure(settings);
        disable_access_log(settings);
        for pod in backends(world) {
            let workload = workload(settings, pod);
            workload.services.insert(key.clone(), [(80, PORT)].into());
        }
    })
}

fn workload<'a>(settings: &'a mut Settings, pod: &Host) -> &'a mut ztunnel_tests::proxy::Workload {
    let mut all = settings.workloads.iter_mut();
    all.find(|workload| workload.name == pod.name).unwrap()
}

fn put(settings: &mut Settings, pod: &Host, key: &str, value: Value) {
    let workload = workload(settings, pod);
    workload.extra.insert(key.to_owned(), value);
}

/// The connections of a backend.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    all: usize,
    direct: usize,
}

/// The share of each backend in `many` connections to the service.
fn shares(world: &World, family: Family, many: usize) -> BTreeMap<SocketAddr, Share> {
    let client = world.pod("a", 0);
    let to = Mesh::service(backends(world)[0]).at(family, 80);
    let mut shares: BTreeMap<SocketAddr, Share> = BTreeMap::new();
    client.enter(|| {
        for _ in 0..many {
            let mut end = Stream::connect(to, IoMode::Blocking, TIMEOUT).unwrap();
            let answer = traffic::get_over(&mut end, MARKER, TIMEOUT).unwrap();
            assert_eq!(answer.client_peer, to);
            let share = shares.entry(answer.local).or_default();
            share.all += 1;
            share.direct += usize::from(bypasses_the_proxy(client, &end).unwrap());
        }
    });
    shares
}

/// Whether a count is within five standard deviations of an even share.
fn is_fair(count: usize, many: usize, part: f64) -> bool {
    let mean = many as f64 * part;
    let deviation = (mean * (1.0 - part)).sqrt();
    (count as f64 - mean).abs() <= 5.0 * deviation
}

#[test]
fn more_backends_than_an_entry_holds_have_even_shares() {
    const MANY: usize = 2400;
    let world = World::builder().node("a", 12).node("b", 1).build().unwrap();
    let mut mesh = mesh(&world).start().unwrap();
    let all = backends(&world);
    let _servers: Vec<_> = all
        .iter()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap())
        .collect();
    let shares = shares(&world, Family::V4, MANY);
    println!("{shares:?}");
    for pod in &all {
        let share = shares[&pod.at(Family::V4, PORT)];
        let part = 1.0 / all.len() as f64;
        assert!(is_fair(share.all, MANY, part), "{}: {share:?}", pod.name);
    }
    let direct: usize = shares.values().map(|share| share.direct).sum();
    assert!(direct > MANY / 2, "{direct} of {MANY} direct");
    assert_all_running(&mut mesh);
}

#[test]
fn shares_follow_the_capacities() {
    const MANY: usize = 1600;
    let world = World::builder().node("a", 4).node("b", 1).build().unwrap();
    let all = backends(&world);
    let capacities = [1, 2, 4, 1];
    let mut mesh = mesh(&world)
        .settings(|settings| {
            for (pod, capacity) in all.iter().zip(capacities) {
                put(settings, pod, "capacity", json!(capacity));
            }
        })
        .start()
        .unwrap();
    let _servers: Vec<_> = all
        .iter()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap())
        .collect();
    for family in Family::BOTH {
        let shares = shares(&world, family, MANY);
        println!("{shares:?}");
        for (pod, capacity) in all.iter().zip(capacities) {
            let share = shares[&pod.at(family, PORT)];
            let part = f64::from(capacity) / 8.0;
            assert!(is_fair(share.all, MANY, part), "{}: {share:?}", pod.name);
        }
    }
    assert_all_running(&mut mesh);
}

#[test]
fn a_preference_for_the_own_node_falls_back_to_other_nodes() {
    let world = World::builder().node("a", 3).node("b", 1).build().unwrap();
    let all = backends(&world);
    let mut mesh = mesh(&world)
        .settings(|settings| {
            let prefer = json!({ "routingPreference": ["NODE"], "mode": "Failover" });
            for service in &mut settings.services {
                service
                    .extra
                    .insert("loadBalancing".to_owned(), prefer.clone());
            }
        })
        .start()
        .unwrap();
    let _servers: Vec<_> = all
        .iter()
        .map(|pod| pod.serve(Kind::Http, PORT).unwrap())
        .collect();
    let away = all[2].at(Family::V4, PORT);
    let total = |shares: &BTreeMap<SocketAddr, Share>| -> usize {
        shares.values().map(|share| share.direct).sum()
    };
    let at_first = shares(&world, Family::V4, 100);
    assert!(!at_first.contains_key(&away), "{at_first:?}");
    // All connections but the first.
    assert!(total(&at_first) >= 98, "{at_first:?}");
    change(&mut mesh, |settings| {
        for pod in &all[..2] {
            put(settings, pod, "status", json!("Unhealthy"));
        }
    });
    let alone = shares(&world, Family::V4, 100);
    assert_eq!((alone[&away].all, total(&alone)), (100, 0), "{alone:?}");
    change(&mut mesh, |settings| {
        put(settings, all[1], "status", json!("Healthy"));
    });
    let again = shares(&world, Family::V4, 100);
    assert_eq!(again[&all[1].at(Family::V4, PORT)].all, 100, "{again:?}");
    assert!(total(&again) >= 98, "{again:?}");
    assert_all_running(&mut mesh);
}

#[test]
fn backends_may_differ_in_target_port_and_address_family() {
    const MANY: usize = 600;
    const OTHER: u16 = 9000;
    let world = World::builder().node("a", 4).node("b", 1).build().unwrap();
    let all = backends(&world);
    let key = format!("default/{}", service_hostname(all[0]));
    let mut mesh = mesh(&world)
        .settings(|settings| {
            // The service lets each backend set its target port.
            for service in &mut settings.services {
                service.ports.insert(80, 0);
            }
            let one = workload(settings, all[1]);
            one.services.insert(key.clone(), [(80, OTHER)].into());
            let six = workload(settings, all[2]);
            six.workload_ips.retain(std::net::IpAddr::is_ipv6);
        })
        .start()
        .unwrap();
    let ports = [PORT, OTHER, PORT, PORT];
    let _servers: Vec<_> = all
        .iter()
        .zip(ports)
        .map(|(pod, port)| pod.serve(Kind::Http, port).unwrap())
        .collect();
    for family in Family::BOTH {
        let shares = shares(&world, family, MANY);
        println!("{family:?}: {shares:?}");
        for (index, (pod, port)) in all.iter().zip(ports).enumerate() {
            let own = if index == 2 { Family::V6 } else { family };
            let share = shares[&pod.at(own, port)];
            assert!(is_fair(share.all, MANY, 0.25), "{}: {share:?}", pod.name);
            // The first connection may have gone to any backend.
            let wanted = match (index, family) {
                (3, _) | (2, Family::V4) => 0,
                _ => share.all - 1,
            };
            assert!(share.direct >= wanted, "{}: {share:?}", pod.name);
            assert!(wanted > 0 || share.direct == 0, "{}: {share:?}", pod.name);
        }
    }
    assert_all_running(&mut mesh);
}
