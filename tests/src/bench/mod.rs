//! The benchmark: the same work with and without the mesh, in the same simulated nodes.
//!
//! Node `a` has the clients, node `b` the servers. Pod 0 of each is in the mesh, pod 1 is not:
//! its traffic takes the same links and meets no proxy. Every client and every server is a
//! process of its own, so that `/proc` tells its CPU time from the proxies'. Rounds interleave
//! the two variants, and take turns in which goes first; samples that something else on the
//! machine disturbed are dropped by one rule for both ([`machine::Usage::disturbed`]).

pub mod chart;
pub mod machine;
mod memory;
mod report;
mod rows;
mod stage;
mod work;

use std::time::Duration;

use anyhow::{Result, ensure};

pub use report::{json, table};
pub use rows::{Better, Results, Row};
use stage::Stage;
use work::Work;

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds; each measures every kind of work in both variants.
    pub rounds: usize,
    /// The length of one sample.
    pub sample: Duration,
    /// Only rows whose name holds this text.
    pub only: Option<String>,
    /// The numbers of idle connections at which memory is measured.
    pub idle: Vec<usize>,
    /// How many disturbed samples are taken again, in the whole run; the others are missing.
    pub retries: usize,
    /// Starts of the proxies for the time to ready.
    pub starts: usize,
    /// The proxies' log filter. Access logs are written at `info`.
    pub log: String,
}

impl Plan {
    /// The full benchmark: about ten minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            rounds: 7,
            sample: Duration::from_secs(3),
            only: None,
            idle: vec![1000, 5000],
            retries: 60,
            starts: 7,
            log: "info".to_owned(),
        }
    }

    /// Under two minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            sample: Duration::from_millis(1000),
            idle: vec![1000],
            retries: 12,
            starts: 3,
            ..Self::full()
        }
    }
}

/// With or without the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Between two pods that are not in the mesh.
    Plain,
    /// Between two pods that are.
    Mesh,
}

/// Runs the benchmark; says on standard error how far it is.
///
/// # Errors
/// When nodes or proxies cannot be started, or work fails.
pub fn run(plan: &Plan) -> Result<Results> {
    let world = crate::net::World::two_nodes()?;
    let mut stage = Stage::set(&world, &plan.log)?;
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name.contains(only));
    let works: Vec<_> = Work::ALL
        .into_iter()
        .filter(|work| work.rows().iter().any(|row| wanted(row.name)))
        .collect();
    let mut results = Results::new(wanted);
    if works.is_empty() {
        ensure!(
            results.wants_memory(),
            "no row's name holds {:?}",
            plan.only
        );
    }
    for work in &works {
        for variant in [Variant::Plain, Variant::Mesh] {
            stage.measure(work, variant, Duration::from_millis(300))?;
        }
    }
    let mut retries = plan.retries;
    for round in 0..plan.rounds {
        for work in &works {
            eprintln!("round {} of {}: {work}", round + 1, plan.rounds);
            let order = if round % 2 == 0 {
                [Variant::Plain, Variant::Mesh]
            } else {
                [Variant::Mesh, Variant::Plain]
            };
            for variant in order {
                sample(
                    &stage,
                    work,
                    variant,
                    plan.sample,
                    &mut retries,
                    &mut results,
                )?;
            }
        }
    }
    if results.wants_memory() {
        memory::measure(&mut stage, plan, &mut results)?;
    }
    Ok(results)
}

fn sample(
    stage: &Stage<'_>,
    work: &Work,
    variant: Variant,
    length: Duration,
    retries: &mut usize,
    results: &mut Results,
) -> Result<()> {
    loop {
        let (measured, usage) = stage.measure(work, variant, length)?;
        if !usage.disturbed() {
            results.keep_sample(variant, &measured);
            return Ok(());
        }
        results.drop_sample(variant, &measured, &usage);
        if *retries == 0 {
            return Ok(());
        }
        *retries -= 1;
    }
}
