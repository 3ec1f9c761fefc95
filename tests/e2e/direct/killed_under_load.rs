//! Clients that call all the time do not notice that the proxy is killed and started again, as
//! long as they call what they have called before.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::proof::{MARKER, PATIENCE, PORT, eventually, unharmed};

/// Between two blows.
const ROUNDS: usize = 5;
/// Between two requests of a client.
const HASTE: Duration = Duration::from_millis(1);
/// The same where events wait for the next proxy: all must fit in their ring, however long it takes to
/// start.
const PACE: Duration = Duration::from_millis(8);

on_lanes!(known_calls_never_fail: direct, joined);
fn known_calls_never_fail(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let (server, outside) = (scene.server(), scene.world().outside());
    let _servers = [server, outside].map(|host| host.serve(Kind::Http, PORT).unwrap());
    let service = Mesh::service(server);
    let mut calls = Vec::new();
    for from in scene.clients() {
        for family in Family::BOTH {
            for to in [
                server.at(family, PORT),
                service.at(family, 80),
                outside.at(family, PORT),
            ] {
                scene.get_from(from, to, "known").unwrap();
                calls.push((from, to));
            }
        }
    }
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = calls
            .iter()
            .map(|(from, to)| scope.spawn(|| load(lane, from, (*to, HASTE), &stop, &answers)))
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            blows(&mut mesh, &answers);
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
    unharmed(&mut mesh);
}

fn blows(mesh: &mut Mesh<'_>, answers: &AtomicU64) {
    let a_while = || {
        let wanted = answers.load(Ordering::Relaxed) + 500;
        eventually("five hundred answers", || {
            (answers.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    };
    for round in 0..ROUNDS {
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
    lane: Lane,
    from: &Host,
    (to, pace): (SocketAddr, Duration),
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> io::Result<()> {
    from.enter(|| {
        while !stop.load(Ordering::Relaxed) {
            let answer = traffic::get_as(lane.manner(), to, MARKER, PATIENCE)
                .map_err(|error| io::Error::new(error.kind(), format!("{to}: {error}")))?;
            assert_eq!(answer.client_peer, to);
            answers.fetch_add(1, Ordering::Relaxed);
            thread::sleep(pace);
        }
        Ok(())
    })
}

/// A proxy that is asked to end passes on what it has not heard of: no connection is missing in
/// the access log, and none is there twice.
#[test]
fn every_connection_has_its_line_whichever_proxy_was_there() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    let calls = Family::BOTH.map(|family| scene.server().at(family, PORT));
    for to in calls {
        scene.get(to, "known").unwrap();
    }
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let client = scene.client();
        for to in calls {
            let (stop, answers) = (&stop, &answers);
            scope.spawn(move || load(Lane::Direct, client, (to, PACE), stop, answers).unwrap());
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                let wanted = answers.load(Ordering::Relaxed) + 200;
                eventually("two hundred answers", || {
                    (answers.load(Ordering::Relaxed) >= wanted).then_some(())
                });
                mesh.proxy("a").terminate(PATIENCE).unwrap();
                thread::sleep(Duration::from_millis(200));
                mesh.proxy("a").start().unwrap();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    let truth = usize::try_from(answers.load(Ordering::Relaxed) + scene.knocks()).unwrap();
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
            twice(&lines)
        );
    }
    unharmed(&mut mesh);
}

/// The lines of the access log about one direction.
fn lines<'log>(log: &'log str, direction: &str) -> Vec<&'log str> {
    let wanted = format!("direction=\"{direction}\"");
    log.lines()
        .filter(|line| line.contains("\taccess\t") && line.contains(&wanted))
        .collect()
}

/// Lines about one and the same client's port.
fn twice<'log>(lines: &[&'log str]) -> Vec<Vec<&'log str>> {
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
