//! A policy changes repeatedly while connections are opened: each connection is decided by the
//! current policy, never by an earlier one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::{self, Kind};

use crate::assertions::{
    MARKER, PORT, TIMEOUT, assert_all_running, change, disable_access_log, policy_for,
};

const CLIENTS: usize = 50;
const CONNECTIONS: usize = 10_000;
/// The time between two changes.
const FLIP: Duration = Duration::from_millis(100);

/// The decision of the policy in a period without a change.
#[derive(Debug, Clone, Copy)]
struct Phase {
    allowed: bool,
    in_force: Instant,
    next_written: Instant,
}

/// The result of a connection attempt.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    ended: Instant,
    outcome: Result<(), String>,
}

on_paths!(every_connection_is_decided_by_the_current_policy: tunnel, direct, joined);
fn every_connection_is_decided_by_the_current_policy(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    // The log is polled for the effect of a change, so it must not contain ten thousand
    // connections.
    let mut mesh = topology
        .mesh()
        .settings(disable_access_log)
        .start()
        .unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let attempts = Mutex::new(Vec::with_capacity(2 * CONNECTIONS));
    let phases = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (topology, stop, made, attempts) = (&topology, &stop, &made, &attempts);
            scope.spawn(move || {
                let own = connect_repeatedly(topology, client, stop, made);
                attempts.lock().unwrap().extend(own);
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change_policy_repeatedly(&topology, &mut mesh, &made)
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap()
    });
    let attempts = attempts.into_inner().unwrap();
    check(&attempts, &phases);
    assert_all_running(&mut mesh);
}

fn connect_repeatedly(
    topology: &Topology,
    client: usize,
    stop: &AtomicBool,
    made: &AtomicUsize,
) -> Vec<Attempt> {
    let from = topology.clients()[client % 2];
    let service = Mesh::service(topology.server());
    let family = Family::BOTH[client / 2 % 2];
    let to = match client / 4 % 2 {
        0 => topology.server().at(family, PORT),
        _ => service.at(family, 80),
    };
    from.enter(|| {
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let outcome = traffic::get_as(topology.data_path().io_mode(), to, MARKER, TIMEOUT);
            all.push(Attempt {
                began,
                ended: Instant::now(),
                outcome: outcome.map(drop).map_err(|error| format!("{to}: {error}")),
            });
            made.fetch_add(1, Ordering::Relaxed);
        }
        all
    })
}

fn change_policy_repeatedly(
    topology: &Topology,
    mesh: &mut Mesh<'_>,
    made: &AtomicUsize,
) -> Vec<Phase> {
    let denials: Vec<Policy> = topology
        .clients()
        .into_iter()
        .zip(["not-one", "not-the-other"])
        .map(|(client, name)| policy_for(client, name, "Deny"))
        .collect();
    let mut phases = Vec::new();
    let mut allowed = true;
    let mut in_force = Instant::now();
    while made.load(Ordering::Relaxed) < CONNECTIONS || phases.len() < 20 {
        // On a slow path the changes are slower, too, so that enough connections fit into each
        // phase.
        let before = made.load(Ordering::Relaxed);
        thread::sleep(FLIP);
        while made.load(Ordering::Relaxed) < before + 3 * CLIENTS {
            thread::sleep(FLIP / 20);
        }
        phases.push(Phase {
            allowed,
            in_force,
            next_written: Instant::now(),
        });
        allowed = !allowed;
        change(mesh, |settings| {
            settings.policies = if allowed { Vec::new() } else { denials.clone() };
        });
        in_force = Instant::now();
    }
    phases
}

fn check(attempts: &[Attempt], phases: &[Phase]) {
    let mut decisions = [0; 2];
    let mut wrong = Vec::new();
    for attempt in attempts {
        let phase = phases
            .iter()
            .find(|phase| attempt.began >= phase.in_force && attempt.ended <= phase.next_written);
        // A connection during a change may have either result.
        let Some(phase) = phase else { continue };
        decisions[usize::from(phase.allowed)] += 1;
        match (phase.allowed, &attempt.outcome) {
            (true, Err(error)) => wrong.push(format!("refused although allowed: {error}")),
            (false, Ok(())) => wrong.push(format!(
                "allowed {:?} after the deny had taken effect",
                attempt.began - phase.in_force
            )),
            _ => {}
        }
    }
    println!(
        "{} connections, {} flips; in quiet moments {} while denied, {} while allowed",
        attempts.len(),
        phases.len(),
        decisions[0],
        decisions[1]
    );
    assert!(decisions[0] > 500 && decisions[1] > 500, "{decisions:?}");
    let some = &wrong[..wrong.len().min(5)];
    assert!(
        wrong.is_empty(),
        "{} of {decisions:?}: {some:?}",
        wrong.len()
    );
}
