//! Measures the time from a batch of changes of a large mesh until readers see it, and the cost of
//! unlikely extremes. Run one at a time:
//! `cargo test --release -p mesh --lib cost::changing -- --ignored --nocapture`, and so on. The cost
//! of a push of the whole mesh is measured by `cargo xtask bench --only store`.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::*;
use crate::Interner;

mod world;
use world::World;

const LARGE: World = World {
    workloads: 100_000,
    services: 10_000,
};

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}

/// Runs the work and prints its time and memory.
fn measured<T>(what: &str, world: World, work: impl FnOnce() -> T) -> T {
    let (began, before) = (Instant::now(), resident());
    let result = work();
    let (took, grown) = (began.elapsed(), resident() - before);
    println!(
        "{what:44} {:6.3} s {:8.1} MB {:6.0} bytes per workload",
        took.as_secs_f64(),
        grown / 1e6,
        grown / f64::from(world.workloads)
    );
    result
}

/// Loads the mesh in parts of 1000 changes.
fn load(world: World, texts: &mut Interner) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut changes = world.changes(texts);
    loop {
        let part: Vec<Change> = changes.by_ref().take(1000).collect();
        if part.is_empty() {
            return snapshot;
        }
        snapshot.apply_all(part);
    }
}

#[test]
#[ignore = "a measurement: needs its own process and a quiet machine"]
fn changing() {
    let mut texts = Interner::new();
    let published = ArcSwap::from_pointee(load(LARGE, &mut texts));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&published, &stop));
        let mut next = 0;
        for (size, rounds) in [(1, 2000), (10, 1000), (1000, 80)] {
            let before = resident();
            let mut took: Vec<Duration> = (0..rounds)
                .map(|_| {
                    next += size;
                    publish(
                        &published,
                        LARGE.replacements(next - size..next, &mut texts),
                    )
                })
                .collect();
            took.sort();
            println!(
                "{size:5} pods replaced: p50 {:?}, p99 {:?}, most {:?}; {:+.1} MB",
                took[took.len() / 2],
                took[took.len() * 99 / 100],
                took[took.len() - 1],
                (resident() - before) / 1e6
            );
        }
        stop.store(true, Ordering::Relaxed);
        println!("meanwhile: {}", reader.join().unwrap());
    });
    assert_eq!(published.load().workloads().len(), 100_000);
}

/// Unlikely extremes.
#[test]
#[ignore = "a measurement: needs its own process and a quiet machine"]
fn extremes() {
    let mut texts = Interner::new();
    let one = World {
        workloads: 100_000,
        services: 1,
    };
    let snapshot = measured("all workloads behind one service", one, || {
        load(one, &mut texts)
    });
    let published = ArcSwap::from_pointee(snapshot);
    for pods in [0..1, 1..1001] {
        let batch = one.replacements(pods.clone(), &mut texts);
        println!(
            "{:5} of its pods replaced: {:?}",
            pods.len(),
            publish(&published, batch)
        );
    }
    let few = World {
        workloads: 10_000,
        services: 1000,
    };
    measured("10,000 workloads of one address", few, || {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let changes = few.changes(&mut texts).map(|change| match change {
            Change::Workload(mut workload) => {
                workload.workload_ips = [address].into();
                Change::Workload(workload)
            }
            other => other,
        });
        let mut snapshot = Snapshot::default();
        snapshot.apply_all(changes);
        snapshot
    });
}

/// The time from a batch until readers see it.
fn publish(published: &ArcSwap<Snapshot>, batch: Vec<Change>) -> Duration {
    let began = Instant::now();
    let mut next = Snapshot::clone(&published.load());
    assert!(next.apply_all(batch));
    let former = published.swap(Arc::new(next));
    drop(former);
    began.elapsed()
}

/// Looks up services until `stop` is set.
fn read(published: &ArcSwap<Snapshot>, stop: &AtomicBool) -> String {
    let mut took = Vec::new();
    for number in (0..LARGE.workloads).cycle().step_by(977) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        for address in (number..number + 100).map(world::vip) {
            let snapshot = published.load();
            black_box(snapshot.entry_by_vip("network-1", address.into(), "default"));
        }
        took.push(began.elapsed() / 100);
    }
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 1000];
    format!(
        "{} lookups of a service, p50 {:?}, p99.9 {:?} (mean of a hundred)",
        took.len() * 100,
        at(500),
        at(999)
    )
}
