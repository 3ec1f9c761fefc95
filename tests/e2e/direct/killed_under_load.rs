//! Clients under load do not notice that the proxy is killed and started again, as long as their
//! connections have a fast-path entry.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::assertions::{MARKER, PORT, TIMEOUT, assert_all_running, eventually};

/// The pause between two kills.
const KILLS: usize = 5;
/// The pause between two requests of a client.
const REQUEST_PAUSE: Duration = Duration::from_millis(1);
/// The pause if events wait for the next proxy: all of them must fit into the ring buffer until it
/// has started.
const POLL_INTERVAL: Duration = Duration::from_millis(8);

on_paths!(connections_with_a_fast_path_entry_never_fail: direct, joined);
fn connections_with_a_fast_path_entry_never_fail(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let (server, outside) = (topology.server(), topology.world().outside());
    let _servers = [server, outside].map(|host| host.serve(Kind::Http, PORT).unwrap());
    let service = Mesh::service(server);
    let mut calls = Vec::new();
    for from in topology.clients() {
        for family in Family::BOTH {
            for to in [
                server.at(family, PORT),
                service.at(family, 80),
                outside.at(family, PORT),
            ] {
                topology.get_from(from, to, "first").unwrap();
                calls.push((from, to));
            }
        }
    }
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = calls
            .iter()
            .map(|(from, to)| {
                scope.spawn(|| load(data_path, from, (*to, REQUEST_PAUSE), &stop, &answers))
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            kill_repeatedly(&mut mesh, &answers);
        }));
        stop.store(true, Ordering::Relaxed);
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        let failures = ended.filter_map(Result::err).collect();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        failures
    });
    assert!(failures.is_empty(), "{failures:?}");
    assert_all_running(&mut mesh);
}

fn kill_repeatedly(mesh: &mut Mesh<'_>, answers: &AtomicU64) {
    let a_while = || {
        let wanted = answers.load(Ordering::Relaxed) + 500;
        eventually("five hundred answers", || {
            (answers.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    };
    for round in 0..KILLS {
        a_while();
        mesh.proxy("a").kill().unwrap();
        if round % 2 == 0 {
            a_while();
        }
        mesh.proxy("a").start().unwrap();
    }
    a_while();
}

fn load(
    data_path: DataPath,
    from: &Host,
    (to, pace): (SocketAddr, Duration),
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> io::Result<()> {
    from.enter(|| {
        while !stop.load(Ordering::Relaxed) {
            let answer = traffic::get_as(data_path.io_mode(), to, MARKER, TIMEOUT)
                .map_err(|error| io::Error::new(error.kind(), format!("{to}: {error}")))?;
            assert_eq!(answer.client_peer, to);
            answers.fetch_add(1, Ordering::Relaxed);
            thread::sleep(pace);
        }
        Ok(())
    })
}

/// A proxy that gets SIGTERM leaves unread events to the next one: every connection is in the
/// access log exactly once.
#[test]
fn every_connection_is_logged_exactly_once_across_proxies() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let calls = Family::BOTH.map(|family| topology.server().at(family, PORT));
    for to in calls {
        topology.get(to, "first").unwrap();
    }
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let client = topology.client();
        for to in calls {
            let (stop, answers) = (&stop, &answers);
            scope.spawn(move || {
                load(DataPath::Direct, client, (to, POLL_INTERVAL), stop, answers).unwrap()
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                let wanted = answers.load(Ordering::Relaxed) + 200;
                eventually("two hundred answers", || {
                    (answers.load(Ordering::Relaxed) >= wanted).then_some(())
                });
                mesh.proxy("a").terminate(TIMEOUT).unwrap();
                thread::sleep(Duration::from_millis(200));
                mesh.proxy("a").start().unwrap();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    let truth = usize::try_from(answers.load(Ordering::Relaxed) + topology.dialled()).unwrap();
    let proxy = mesh.proxy("a");
    for direction in ["outbound", "inbound"] {
        let reached = ztunnel_tests::eventually(Duration::from_secs(10), || {
            lines(&proxy.log(), direction).len() == truth
        });
        let log = proxy.log();
        let lines = lines(&log, direction);
        assert!(
            reached,
            "{} lines, {truth} connections; twice: {:#?}",
            lines.len(),
            duplicates(&lines)
        );
    }
    assert_all_running(&mut mesh);
}

/// The lines of the access log with this direction.
fn lines<'log>(log: &'log str, direction: &str) -> Vec<&'log str> {
    let wanted = format!("direction=\"{direction}\"");
    log.lines()
        .filter(|line| line.contains("\taccess\t") && line.contains(&wanted))
        .collect()
}

/// Lines with the same client port.
fn duplicates<'log>(lines: &[&'log str]) -> Vec<Vec<&'log str>> {
    let mut by_client: BTreeMap<&str, Vec<&'log str>> = BTreeMap::new();
    for line in lines {
        let client = line
            .split_whitespace()
            .find(|word| word.starts_with("src.addr="));
        by_client
            .entry(client.unwrap_or_default())
            .or_default()
            .push(line);
    }
    by_client.retain(|_, lines| lines.len() > 1);
    by_client.into_values().collect()
}
