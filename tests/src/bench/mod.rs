//! The benchmark: the same work with and without the mesh, in the same simulated nodes.
//!
//! Pod 0 of node `a` is in the mesh, pod 1 is not. Each sends requests to its own servers on another
//! node, on the same node, or outside ([`MeasuredPath`]), over the same links. Every client and every
//! server is a process, so that `/proc` separates its CPU time from that of the proxies. Rounds
//! interleave the two variants and alternate their order. A sample that other processes disturbed is
//! dropped, by the same rule for both variants ([`machine::Usage::disturbed`]).

pub mod chart;
pub mod machine;
mod measured_path;
mod memory;
mod report;
mod rows;
mod setup;
mod work;

use std::time::Duration;

use anyhow::{Result, ensure};

pub use measured_path::{MeasuredPath, Target};
pub use report::{json, table, targets};
pub use rows::{Better, Results, Row};
use setup::Setup;
use work::Work;

/// The largest number of retries of one disturbed sample.
const RETRIES: usize = 2;

/// The parameters of a benchmark.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number of rounds. Each round measures every kind of work in both variants.
    pub rounds: usize,
    /// The length of one sample.
    pub sample: Duration,
    /// Measures only rows whose name, such as `direct/bulk_1`, contains this text.
    pub only: Option<String>,
    /// The numbers of idle connections at which memory is measured.
    pub idle: Vec<usize>,
    /// The largest number of retries of disturbed samples in the whole run. Each sample is retried at most
    /// [`RETRIES`] times, so that both variants have the same chances.
    pub retries: usize,
    /// The number of starts for the time to ready.
    pub starts: usize,
    /// The log filter of the proxies. The access log has the level `info`.
    pub log: String,
    /// The congestion control of every route.
    pub congestion: String,
}

impl Plan {
    /// The full benchmark, which takes about a quarter of an hour.
    #[must_use]
    pub fn full() -> Self {
        Self {
            rounds: 7,
            sample: Duration::from_secs(2),
            only: None,
            idle: vec![1000, 5000],
            retries: 120,
            starts: 7,
            log: "info".to_owned(),
            congestion: "cubic".to_owned(),
        }
    }

    /// A short benchmark, which takes a few minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            sample: Duration::from_millis(700),
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
    /// Between pods outside the mesh.
    Plain,
    /// Between pods in the mesh.
    Mesh,
}

/// Runs the benchmark. Prints its progress to standard error.
///
/// # Errors
/// When nodes or proxies cannot be started, or work fails.
pub fn run(plan: &Plan) -> Result<Results> {
    let world = crate::net::World::builder()
        .node("a", 7)
        .node("b", 2)
        .congestion(&plan.congestion)
        .build()?;
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name.contains(only));
    let works = works(wanted);
    let mut paths: Vec<MeasuredPath> = works.iter().map(|(path, _)| *path).collect();
    // Memory is measured with tunnel connections.
    paths.push(MeasuredPath::Tunnel);
    let mut setup = Setup::new(&world, &plan.log, &paths)?;
    let mut results = Results::new(wanted);
    if works.is_empty() {
        ensure!(
            results.wants_memory(),
            "no row has a name that contains {:?}",
            plan.only
        );
    }
    // The proxy carries the first connection of a kind; only later ones are measured.
    for work in &works {
        for variant in [Variant::Plain, Variant::Mesh] {
            setup.measure(*work, variant, Duration::from_millis(300))?;
        }
    }
    let mut retries = plan.retries;
    for round in 0..plan.rounds {
        for work in &works {
            let (path, what) = work;
            let round_of = format!("round {} of {}", round + 1, plan.rounds);
            eprintln!("{round_of}: {}: {what}", path.name());
            let order = if round % 2 == 0 {
                [Variant::Plain, Variant::Mesh]
            } else {
                [Variant::Mesh, Variant::Plain]
            };
            for variant in order {
                sample(
                    &setup,
                    *work,
                    variant,
                    plan.sample,
                    &mut retries,
                    &mut results,
                )?;
            }
        }
    }
    if results.wants_memory() {
        memory::measure(&mut setup, plan, &mut results)?;
    }
    Ok(results)
}

/// The paths and kinds of work of which at least one row is selected.
fn works(wanted: impl Fn(&str) -> bool) -> Vec<(MeasuredPath, Work)> {
    let all = MeasuredPath::ALL
        .into_iter()
        .flat_map(|path| path.works().iter().map(move |work| (path, *work)));
    let fills = |path, work: &Work| {
        let rows = work.rows();
        rows.iter()
            .any(|row| wanted(&rows::full_name(path, row.name)))
    };
    all.filter(|(path, work)| fills(*path, work)).collect()
}

fn sample(
    setup: &Setup<'_>,
    work: (MeasuredPath, Work),
    variant: Variant,
    length: Duration,
    retries: &mut usize,
    results: &mut Results,
) -> Result<()> {
    for tried in 0..=RETRIES {
        let (measured, usage) = setup.measure(work, variant, length)?;
        if !usage.disturbed() {
            results.keep_sample(variant, &measured);
            return Ok(());
        }
        results.drop_sample(variant, &measured, &usage);
        if *retries == 0 || tried == RETRIES {
            return Ok(());
        }
        *retries -= 1;
    }
    Ok(())
}
