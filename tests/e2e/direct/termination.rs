//! An open connection that is no longer allowed is soon reset at both ends. Connections that are
//! still allowed are not affected.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology, bypasses_the_proxy};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Settings, workload_uid};
use ztunnel_tests::traffic::{Kind, Stream};

use crate::assertions::{
    PORT, SOON, TIMEOUT, assert_all_running, assert_terminated, change, disable_access_log,
    eventually, exchange, policy_for, send_request, strict, tunnel_same_node,
};

/// The expected result of the first client's next connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// They are refused.
    Refused,
    /// The proxy carries each of them.
    Tunnelled,
}

/// Opens connections of a client to the pod and service addresses in both families.
fn open(topology: &Topology, client: usize, listener: &TcpListener) -> Vec<(Stream, Stream)> {
    let service = Mesh::service(topology.server());
    let families = Family::BOTH.into_iter();
    families
        .flat_map(|family| [topology.server().at(family, PORT), service.at(family, 80)])
        .map(|to| {
            let from = topology.clients()[client];
            let pair = topology.connect_from(from, to, listener).unwrap();
            exchange(&pair);
            pair
        })
        .collect()
}

/// Makes a change that affects only the first client, and checks its open and its next connections.
fn assert_only_first_client_affected(
    data_path: DataPath,
    before: impl Fn(&Topology, &mut Settings),
    after: impl Fn(&Topology, &mut Settings),
    next: Next,
) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(|settings| before(&topology, settings))
        .start()
        .unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let mut affected = open(&topology, 0, &listener);
    let unaffected = open(&topology, 1, &listener);

    change(&mut mesh, |settings| after(&topology, settings));
    for pair in &mut affected {
        let case = format!("{:?}", pair.0.peer_addr());
        assert_terminated(pair, &case);
    }
    for pair in &unaffected {
        exchange(pair);
    }
    drop(listener);
    // A process that another test has just forked may hold a copy of the listener for a moment.
    let _http = eventually("the port is free", || topology.serve(Kind::Http, PORT).ok());
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        for _ in 0..3 {
            match (next, send_request(&topology, topology.client(), to)) {
                (Next::Refused, Err(_)) => {}
                (Next::Tunnelled, Ok(sent)) if !sent.direct => {}
                (_, other) => panic!("{to}: {:?}", other.map(|sent| sent.direct)),
            }
        }
        topology
            .get_from(topology.clients()[1], to, "as before")
            .unwrap();
    }
    assert_all_running(&mut mesh);
}

on_paths!(an_added_deny_terminates_the_denied_connections: direct, joined, auto);
fn an_added_deny_terminates_the_denied_connections(data_path: DataPath) {
    assert_only_first_client_affected(
        data_path,
        |_, _| {},
        |topology, settings| {
            let deny = policy_for(topology.client(), "no-longer", "Deny");
            settings.policies.push(deny);
        },
        Next::Refused,
    );
}

on_paths!(a_removed_allow_terminates_the_connections: direct, joined);
fn a_removed_allow_terminates_the_connections(data_path: DataPath) {
    assert_only_first_client_affected(
        data_path,
        |topology, settings| {
            for (client, name) in topology.clients().into_iter().zip(["one", "other"]) {
                settings.policies.push(policy_for(client, name, "Allow"));
            }
        },
        |_, settings| settings.policies.retain(|policy| policy.name == "other"),
        Next::Refused,
    );
}

on_paths!(a_changed_service_account_terminates_the_connections: direct, joined);
fn a_changed_service_account_terminates_the_connections(data_path: DataPath) {
    assert_only_first_client_affected(
        data_path,
        |topology, settings| {
            for (client, name) in topology.clients().into_iter().zip(["one", "other"]) {
                settings.policies.push(policy_for(client, name, "Allow"));
            }
        },
        |topology, settings| {
            for workload in &mut settings.workloads {
                if workload.name == topology.client().name {
                    "other-account".clone_into(&mut workload.service_account);
                }
            }
        },
        Next::Refused,
    );
}

on_paths!(a_tunnel_override_terminates_the_connections_of_the_workload: direct, joined);
fn a_tunnel_override_terminates_the_connections_of_the_workload(data_path: DataPath) {
    assert_only_first_client_affected(
        data_path,
        |_, _| {},
        |topology, settings| {
            let uid = workload_uid(topology.client());
            let overrides = json!([{ "workload": uid, "sameNode": "tunnel" }]);
            settings.extra.insert("overrides".to_owned(), overrides);
        },
        Next::Tunnelled,
    );
}

/// This change affects both clients.
#[test]
fn same_node_tunnel_terminates_the_connections_inside_the_node() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let mut pairs = open(&topology, 0, &listener);
    pairs.extend(open(&topology, 1, &listener));
    change(&mut mesh, tunnel_same_node);
    for pair in &mut pairs {
        assert_terminated(pair, "sameNode: tunnel");
    }
    assert_all_running(&mut mesh);
}

/// Changes of other workloads and policies do not affect open connections.
#[test]
fn unrelated_changes_do_not_affect_connections() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let pairs = open(&topology, 0, &listener);
    for round in 0..5 {
        let name = format!("not-there-{round}");
        change(&mut mesh, |settings| {
            let mut policy = policy_for(topology.clients()[1], &name, "Deny");
            "elsewhere".clone_into(&mut policy.namespace);
            settings.policies.push(policy);
        });
        pairs.iter().for_each(exchange);
    }
    let service = Mesh::service(topology.server());
    for family in Family::BOTH {
        for to in [topology.server().at(family, PORT), service.at(family, 80)] {
            // The fast-path entries are kept.
            let near = topology.dial_once(topology.client(), to).unwrap();
            let pair = (near, topology.accept(&listener).unwrap());
            let direct = bypasses_the_proxy(topology.client(), &pair.0).unwrap();
            assert!(direct, "{to} was authorized again");
        }
    }
    assert_all_running(&mut mesh);
}

on_paths!(a_connection_opened_during_a_policy_change_is_terminated: direct, joined);
/// The kernel has admitted the connection, and the proxy has not read its event, when the policy
/// changes.
fn a_connection_opened_during_a_policy_change_is_terminated(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(disable_access_log)
        .start()
        .unwrap();
    let _echo = topology.serve(Kind::Echo, PORT).unwrap();
    let to = Family::BOTH.map(|family| topology.server().at(family, PORT));
    for round in 0..5 {
        for to in to {
            drop(topology.dial(topology.client(), to).unwrap());
        }
        let (stop, open) = (AtomicBool::new(false), Mutex::new(VecDeque::new()));
        thread::scope(|scope| {
            for to in to {
                let (topology, stop, open) = (&topology, &stop, &open);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // The policy refuses it.
                        let knocked = topology.dial_once(topology.client(), to);
                        let mut open = open.lock().unwrap();
                        open.extend(knocked);
                        // Each connection needs file descriptors, which other tests of this process
                        // need, too. Only the last ones matter.
                        if open.len() > 1000 {
                            open.pop_front();
                        }
                    }
                });
            }
            change(&mut mesh, |settings| {
                settings.policies = vec![policy_for(topology.client(), "no-longer", "Deny")];
            });
            stop.store(true, Ordering::Relaxed);
        });
        let open = open.into_inner().unwrap();
        println!("round {round}: {} connections", open.len());
        thread::sleep(SOON);
        for mut end in open {
            end.set_read_timeout(Some(TIMEOUT / 30)).unwrap();
            let outcome = end.read(&mut [0]);
            let alive = outcome
                .as_ref()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!alive, "round {round}: a connection is still open");
        }
        change(&mut mesh, |settings| settings.policies.clear());
    }
    assert_all_running(&mut mesh);
}

/// The two directions of a half-closed connection are in different states.
#[test]
fn a_half_closed_connection_is_terminated() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let to = topology.server().at(Family::V4, PORT);
    let [mut one, mut other] = [0; 2].map(|_| topology.connect(to, &listener).unwrap());
    one.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(one.1.read(&mut [0]).unwrap(), 0);
    other.1.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(other.0.read(&mut [0]).unwrap(), 0);
    change(&mut mesh, |settings| {
        let deny = policy_for(topology.client(), "no-longer", "Deny");
        settings.policies.push(deny);
    });
    // The end that can still receive gets the error.
    for (name, end) in [("client", &mut one.0), ("server", &mut other.1)] {
        end.set_read_timeout(Some(SOON)).unwrap();
        let outcome = end.read(&mut [0]);
        let waits = outcome
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(outcome.is_err() && !waits, "the {name} saw {outcome:?}");
    }
    assert_all_running(&mut mesh);
}

/// A client that leaves the mesh has no identity any more.
#[test]
fn a_client_that_leaves_the_mesh_loses_connections_that_need_an_identity() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().policy(strict()).start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let mut affected = open(&topology, 0, &listener);
    let unaffected = open(&topology, 1, &listener);
    let uid = workload_uid(topology.client());
    change(&mut mesh, |settings| {
        settings.pods.retain(|pod| pod.workload != uid);
        settings.workloads.retain(|workload| workload.uid != uid);
    });
    for pair in &mut affected {
        assert_terminated(pair, "a client without an identity");
    }
    unaffected.iter().for_each(exchange);
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        let outcome = topology.dial_once(topology.client(), to);
        let outcome = outcome.and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    assert_all_running(&mut mesh);
}
