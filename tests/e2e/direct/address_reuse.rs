//! An address that is reused by another pod: no fast-path entry of the old pod lets a connection
//! reach the new pod, or come from it.

use std::io::{Read as _, Write as _};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::proxy::{Mesh, PodEntry, Settings, identity, workload_uid};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    PORT, TIMEOUT, assert_all_running, call, change, policy_for, send_request,
};

/// Whether the proxy runs while the address is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Runs,
    Killed,
}

/// Replaces a pod by another one, with another workload and another service account.
fn replace_workload(settings: &mut Settings, old: &Host, new: &Host) {
    for entry in &mut settings.pods {
        if entry.workload == workload_uid(old) {
            *entry = PodEntry {
                workload: workload_uid(new),
                netns: new.namespace.path().to_owned(),
            };
        }
    }
    for workload in &mut settings.workloads {
        if workload.name == old.name {
            workload.uid = workload_uid(new);
            workload.name.clone_from(&new.name);
            workload.service_account.clone_from(&new.name);
        }
    }
}

/// Asserts that a request gets no answer, whether it is refused at once or after the connect.
fn assert_no_answer(topology: &Topology, from: &Host, to: std::net::SocketAddr) {
    let outcome = topology.dial_once(from, to).and_then(|mut end| {
        end.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        end.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        end.read_exact(&mut [0])
    });
    assert!(outcome.is_err(), "{} got an answer from {to}", from.name);
}

fn replace_the_server(proxy: Proxy) {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let client = topology.client();
    // The client may not connect to the next owner of this address.
    let mut mesh = topology.mesh().start().unwrap();
    let old = topology.server();
    let before = old.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(old);
    let addresses = Family::BOTH.map(|family| [old.at(family, PORT), service.at(family, 80)]);
    for to in addresses.into_iter().flatten() {
        topology.get(to, "first").unwrap();
    }
    if proxy == Proxy::Killed {
        mesh.proxy("a").kill().unwrap();
    }
    drop(before);
    let new = topology.world().replace_pod("a", 2).unwrap();
    let running = new.serve(Kind::Http, PORT).unwrap();
    for to in addresses.into_iter().flatten() {
        for _ in 0..2 {
            assert_no_answer(&topology, client, to);
        }
    }
    let deny = |settings: &mut Settings| {
        replace_workload(settings, old, &new);
        settings
            .policies
            .push(policy_for(client, "not-the-new-one", "Deny"));
    };
    match proxy {
        Proxy::Runs => change(&mut mesh, deny),
        Proxy::Killed => {
            mesh.change(deny).unwrap();
            mesh.proxy("a").start().unwrap();
        }
    }
    mesh.proxy("a").wait_for_log(&new.name, TIMEOUT).unwrap();
    for to in addresses.into_iter().flatten() {
        for _ in 0..2 {
            assert_no_answer(&topology, client, to);
        }
    }
    // The new pod is reached by the clients that its policy allows.
    for family in Family::BOTH {
        let to = new.at(family, PORT);
        let last = (0..3).map(|_| send_request(&topology, topology.clients()[1], to).unwrap());
        let fast_path: Vec<_> = last.map(|sent| sent.direct).collect();
        assert_eq!(fast_path, [false, true, true], "{to}");
    }
    let accepted = running.accepted();
    assert_eq!(accepted, 6, "a client that is not allowed was admitted");
    assert_all_running(&mut mesh);
}

#[test]
fn a_server_pod_is_replaced_while_the_proxy_runs() {
    replace_the_server(Proxy::Runs);
}

#[test]
fn a_server_pod_is_replaced_while_no_proxy_runs() {
    replace_the_server(Proxy::Killed);
}

fn replace_the_client(proxy: Proxy) {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let old = topology.client();
    // Only the old client.
    let mut mesh = topology
        .mesh()
        .policy(policy_for(old, "only-the-old-one", "Allow"))
        .start()
        .unwrap();
    let running = topology.serve(Kind::Http, PORT).unwrap();
    let server = topology.server();
    for family in Family::BOTH {
        topology.get(server.at(family, PORT), "first").unwrap();
    }
    let accepted = running.accepted();
    if proxy == Proxy::Killed {
        mesh.proxy("a").kill().unwrap();
    }
    let new = topology.world().replace_pod("a", 0).unwrap();
    let all_fail = || {
        for family in Family::BOTH {
            for _ in 0..2 {
                let outcome = call(&new, server.at(family, PORT));
                assert!(outcome.is_err(), "{family:?}: {outcome:?}");
            }
        }
    };
    all_fail();
    let other = |settings: &mut Settings| replace_workload(settings, old, &new);
    match proxy {
        Proxy::Runs => change(&mut mesh, other),
        Proxy::Killed => {
            mesh.change(other).unwrap();
            mesh.proxy("a").start().unwrap();
        }
    }
    mesh.proxy("a").wait_for_log(&new.name, TIMEOUT).unwrap();
    all_fail();
    assert_eq!(running.accepted(), accepted);
    change(&mut mesh, |settings| settings.policies.clear());
    for family in Family::BOTH {
        let to = server.at(family, PORT);
        let fast_path = [0; 3].map(|_| send_request(&topology, &new, to).unwrap().direct);
        assert_eq!(fast_path, [false, true, true], "{to}");
    }
    // Connections of the new pod have its own identity.
    mesh.proxy("a")
        .wait_for_log(&identity(&new), TIMEOUT)
        .unwrap();
    assert_all_running(&mut mesh);
}

#[test]
fn a_client_pod_is_replaced_while_the_proxy_runs() {
    replace_the_client(Proxy::Runs);
}

#[test]
fn a_client_pod_is_replaced_while_no_proxy_runs() {
    replace_the_client(Proxy::Killed);
}
