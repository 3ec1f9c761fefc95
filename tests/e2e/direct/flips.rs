//! A rule that changes again and again while connections are opened all the time: each one is
//! judged by the rule that was in force, never by one from before.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::{self, Kind};

use crate::proof::{MARKER, PATIENCE, PORT, about, change, quiet, unharmed};

const CLIENTS: usize = 50;
const CONNECTIONS: usize = 10_000;
/// How long a rule is in force before the next one is written.
const FLIP: Duration = Duration::from_millis(100);

/// What the rule said between two moments, in which nothing was about to change.
#[derive(Debug, Clone, Copy)]
struct Phase {
    allowed: bool,
    in_force: Instant,
    next_written: Instant,
}

/// What became of a connection.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    ended: Instant,
    outcome: Result<(), String>,
}

on_lanes!(every_connection_meets_the_rule_that_is_in_force: tunnel, direct, joined);
fn every_connection_meets_the_rule_that_is_in_force(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    // The log tells when a change is in force; it need not tell ten thousand connections.
    let mut mesh = scene.mesh().settings(quiet).start().unwrap();
    let _running = scene.serve(Kind::Http, PORT).unwrap();
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let attempts = Mutex::new(Vec::with_capacity(2 * CONNECTIONS));
    let phases = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (scene, stop, made, attempts) = (&scene, &stop, &made, &attempts);
            scope.spawn(move || {
                let own = connect_all_the_time(scene, client, stop, made);
                attempts.lock().unwrap().extend(own);
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            flip_all_the_time(&scene, &mut mesh, &made)
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap()
    });
    let attempts = attempts.into_inner().unwrap();
    check(&attempts, &phases);
    unharmed(&mut mesh);
}

fn connect_all_the_time(
    scene: &Scene,
    client: usize,
    stop: &AtomicBool,
    made: &AtomicUsize,
) -> Vec<Attempt> {
    let from = scene.clients()[client % 2];
    let service = Mesh::service(scene.server());
    let family = Family::BOTH[client / 2 % 2];
    let to = match client / 4 % 2 {
        0 => scene.server().at(family, PORT),
        _ => service.at(family, 80),
    };
    from.enter(|| {
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let outcome = traffic::get_as(scene.lane().manner(), to, MARKER, PATIENCE);
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

fn flip_all_the_time(scene: &Scene, mesh: &mut Mesh<'_>, made: &AtomicUsize) -> Vec<Phase> {
    let denials: Vec<Policy> = scene
        .clients()
        .into_iter()
        .zip(["not-one", "not-the-other"])
        .map(|(client, name)| about(client, name, "Deny"))
        .collect();
    let mut phases = Vec::new();
    let mut allowed = true;
    let mut in_force = Instant::now();
    while made.load(Ordering::Relaxed) < CONNECTIONS || phases.len() < 20 {
        // Where connections are slow, so are the rules: enough of them have to fit in.
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
    let mut judged = [0; 2];
    let mut wrong = Vec::new();
    for attempt in attempts {
        let phase = phases
            .iter()
            .find(|phase| attempt.began >= phase.in_force && attempt.ended <= phase.next_written);
        // One that saw the change itself may come out either way.
        let Some(phase) = phase else { continue };
        judged[usize::from(phase.allowed)] += 1;
        match (phase.allowed, &attempt.outcome) {
            (true, Err(error)) => wrong.push(format!("refused though allowed: {error}")),
            (false, Ok(())) => wrong.push(format!(
                "let through {:?} after the rule was in force",
                attempt.began - phase.in_force
            )),
            _ => {}
        }
    }
    println!(
        "{} connections, {} flips; in quiet moments {} while denied, {} while allowed",
        attempts.len(),
        phases.len(),
        judged[0],
        judged[1]
    );
    assert!(judged[0] > 500 && judged[1] > 500, "{judged:?}");
    let some = &wrong[..wrong.len().min(5)];
    assert!(wrong.is_empty(), "{} of {judged:?}: {some:?}", wrong.len());
}
