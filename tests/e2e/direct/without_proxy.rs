//! Fast-path connections do not need the proxy: they continue while it is killed, ends or is
//! replaced, and the next proxy knows them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{Kind, Stream};

use crate::assertions::{
    PORT, TIMEOUT, assert_all_running, assert_terminated, call, eventually, exchange, policy_for,
    send_request,
};

/// The way in which a proxy ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Terminated,
}

impl Exit {
    const BOTH: [Self; 2] = [Self::Killed, Self::Terminated];

    fn apply(self, mesh: &mut Mesh<'_>) {
        match self {
            Self::Killed => mesh.proxy("a").kill().unwrap(),
            Self::Terminated => {
                let started = Instant::now();
                mesh.proxy("a").terminate(TIMEOUT).unwrap();
                // The proxy does not wait for fast-path connections.
                assert!(started.elapsed() < DEADLINE / 2, "{:?}", started.elapsed());
            }
        }
    }
}

/// The time that a proxy waits for the connections that it carries after SIGTERM.
const DEADLINE: Duration = Duration::from_secs(20);

fn destinations(topology: &Topology) -> Vec<SocketAddr> {
    let service = Mesh::service(topology.server());
    let families = Family::BOTH.into_iter();
    families
        .flat_map(|family| [topology.server().at(family, PORT), service.at(family, 80)])
        .collect()
}

fn mesh(topology: &Topology) -> Mesh<'_> {
    topology
        .mesh()
        .settings(move |settings| settings.set_deadline(&format!("{}s", DEADLINE.as_secs())))
        .start()
        .unwrap()
}

/// Waits until the proxy has recorded the end of the connections that it carried, so that
/// termination has nothing to wait for.
fn wait_for_records(topology: &Topology, mesh: &mut Mesh<'_>, open: usize) {
    eventually("the connections that the proxy carried have ended", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let labels = [("reporter", "source")];
        let closed = metrics.sum("istio_tcp_connections_closed_total", &labels);
        (closed + open as f64 == topology.dialled() as f64).then_some(())
    });
}

on_paths!(an_open_connection_survives: direct, joined, auto);
fn an_open_connection_survives(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = mesh(&topology);
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let pairs: Vec<_> = destinations(&topology)
        .into_iter()
        .map(|to| topology.connect(to, &listener).unwrap())
        .collect();
    pairs.iter().for_each(exchange);
    wait_for_records(&topology, &mut mesh, pairs.len());
    for leaving in Exit::BOTH {
        leaving.apply(&mut mesh);
        for _ in 0..100 {
            pairs.iter().for_each(exchange);
        }
        mesh.proxy("a").start().unwrap();
        for _ in 0..100 {
            pairs.iter().for_each(exchange);
        }
    }
    assert_all_running(&mut mesh);
}

/// The time without a proxy.
const AWAY: Duration = Duration::from_secs(3);

on_paths!(a_transfer_continues_while_the_proxy_is_replaced: direct, joined);
/// Data is transferred before, during and after the replacement.
fn a_transfer_continues_while_the_proxy_is_replaced(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = mesh(&topology);
    let _echo = topology.serve(Kind::Echo, PORT).unwrap();
    let end = topology
        .dial(topology.client(), topology.server().at(Family::V4, PORT))
        .unwrap();
    let longest = thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let talking = scope.spawn(move || longest_answer(end, &stopped));
        for leaving in Exit::BOTH {
            leaving.apply(&mut mesh);
            thread::sleep(AWAY);
            mesh.proxy("a").start().unwrap();
            thread::sleep(Duration::from_millis(300));
        }
        drop(stop);
        talking.join().unwrap()
    });
    // Both threads may be late. If the transfer needed the proxy, the pause would be at least as
    // long as the time without it.
    assert!(longest < AWAY.mul_f64(0.8), "{longest:?} without a byte");
    assert_all_running(&mut mesh);
}

/// Exchanges data with an echo until stopped. Returns the longest time of an answer.
fn longest_answer(mut end: Stream, stopped: &std::sync::mpsc::Receiver<()>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut received = [0; 1000];
    while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        let started = Instant::now();
        end.write_all(&[5; 1000]).unwrap();
        end.read_exact(&mut received).unwrap();
        longest = longest.max(started.elapsed());
    }
    longest
}

on_paths!(only_connections_with_an_entry_succeed_while_no_proxy_runs: direct, joined);
fn only_connections_with_an_entry_succeed_while_no_proxy_runs(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = mesh(&topology);
    let (outside, neighbour) = (topology.world().outside(), topology.servers()[1]);
    let _servers = [topology.server(), outside, neighbour].map(|host| {
        host.serve_as(Kind::Http, PORT, data_path.io_mode())
            .unwrap()
    });
    let _other_port = topology.serve(Kind::Http, 9000).unwrap();
    let mut with_entry = destinations(&topology);
    with_entry.extend(Family::BOTH.map(|family| outside.at(family, PORT)));
    for to in &with_entry {
        topology.get(*to, "first").unwrap();
    }
    let inbound: Vec<_> = Family::BOTH
        .into_iter()
        .map(|family| topology.server().at(family, PORT))
        .collect();
    for to in &inbound {
        call(outside, *to).unwrap();
    }
    wait_for_records(&topology, &mut mesh, 0);
    for leaving in Exit::BOTH {
        leaving.apply(&mut mesh);
        for to in &with_entry {
            let sent = send_request(&topology, topology.client(), *to).unwrap();
            assert!(sent.direct, "{to}");
        }
        for to in &inbound {
            call(outside, *to).unwrap();
        }
        for family in Family::BOTH {
            for (from, to) in [
                (topology.client(), topology.server().at(family, 9000)),
                (topology.client(), neighbour.at(family, PORT)),
                (topology.client(), Mesh::service(neighbour).at(family, 80)),
                (topology.clients()[1], topology.server().at(family, PORT)),
                (topology.client(), outside.at(family, 1)),
            ] {
                let outcome = topology.dial_once(from, to);
                let refused = outcome.map_err(|error| error.kind());
                assert_eq!(
                    refused.err(),
                    Some(ErrorKind::ConnectionRefused),
                    "{} to {to}",
                    from.name
                );
            }
            let outcome = call(outside, neighbour.at(family, PORT));
            assert!(outcome.is_err(), "{outcome:?}");
        }
        mesh.proxy("a").start().unwrap();
        // The entries are still valid.
        for to in &with_entry {
            let sent = send_request(&topology, topology.client(), *to).unwrap();
            assert!(sent.direct, "{to}: authorized again");
        }
    }
    assert_all_running(&mut mesh);
}

on_paths!(the_next_proxy_records_connections_of_the_previous_one: direct, joined);
fn the_next_proxy_records_connections_of_the_previous_one(data_path: DataPath) {
    const BYTES: usize = 700_001;
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = mesh(&topology);
    let _echo = topology.serve(Kind::Echo, PORT).unwrap();
    for (family, leaving) in Family::BOTH.into_iter().zip(Exit::BOTH) {
        let to = topology.server().at(family, PORT);
        let mut before = topology.dial(topology.client(), to).unwrap();
        let mut chat = |bytes: usize| {
            before.write_all(&vec![1; bytes]).unwrap();
            before.read_exact(&mut vec![0; bytes]).unwrap();
        };
        chat(BYTES);
        leaving.apply(&mut mesh);
        chat(BYTES);
        // A connection that was opened and closed while no proxy ran.
        let mut meanwhile = topology.dial_once(topology.client(), to).unwrap();
        meanwhile.write_all(&[2; 1000]).unwrap();
        meanwhile.read_exact(&mut [0; 1000]).unwrap();
        drop(meanwhile);
        mesh.proxy("a").start().unwrap();
        chat(BYTES);
        before.shutdown(std::net::Shutdown::Both).unwrap();
        drop(before);
        let wanted = 3.0 * BYTES as f64 + 1000.0;
        for reporter in ["source", "destination"] {
            let labels = [("reporter", reporter)];
            let now = || {
                let metrics = mesh.proxy("a").metrics().unwrap();
                ["connections_closed", "received_bytes", "sent_bytes"]
                    .map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels))
            };
            let mut now = now;
            let reached = ztunnel_tests::eventually(Duration::from_secs(10), || {
                now() == [2.0, wanted, wanted]
            });
            assert!(reached, "{leaving:?}, {reporter}: {:?}", now());
        }
    }
    assert_all_running(&mut mesh);
}

on_paths!(a_new_proxy_terminates_connections_that_its_settings_deny: direct, joined);
fn a_new_proxy_terminates_connections_that_its_settings_deny(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = mesh(&topology);
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let [one, other] = topology.clients();
    let open = |from| -> Vec<(Stream, Stream)> {
        let connect = |to| topology.connect_from(from, to, &listener).unwrap();
        destinations(&topology).into_iter().map(connect).collect()
    };
    let mut affected = open(one);
    let unaffected = open(other);
    mesh.proxy("a").kill().unwrap();
    mesh.change(|settings| settings.policies.push(policy_for(one, "no-longer", "Deny")))
        .unwrap();
    affected.iter().for_each(exchange);
    mesh.proxy("a").start().unwrap();
    for pair in &mut affected {
        assert_terminated(pair, "denied by the settings of the new proxy");
    }
    for to in destinations(&topology) {
        let outcome = topology
            .dial_once(one, to)
            .and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    unaffected.iter().for_each(exchange);
    assert_all_running(&mut mesh);
}

/// A suspended proxy is not replaced. Connections with a fast-path entry do not need it.
#[test]
fn connections_with_an_entry_succeed_while_the_proxy_is_suspended() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = mesh(&topology);
    let _http = topology.serve(Kind::Http, PORT).unwrap();
    for to in destinations(&topology) {
        topology.get(to, "first").unwrap();
    }
    mesh.proxy("a").pause(Pause::Suspend).unwrap();
    for to in destinations(&topology) {
        for _ in 0..20 {
            assert!(
                send_request(&topology, topology.client(), to)
                    .unwrap()
                    .direct,
                "{to}"
            );
        }
    }
    mesh.proxy("a").pause(Pause::Resume).unwrap();
    wait_for_records(&topology, &mut mesh, 0);
    assert_all_running(&mut mesh);
}
