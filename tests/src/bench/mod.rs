//! The benchmark: the same work with and without the mesh, in the same simulated nodes.
//!
//! Pod 0 of node `a` is in the mesh, pod 1 is not; each calls servers of its own kind, which are
//! on another node, on the same node, or outside ([`Way`]): the traffic of both takes the same
//! links, and one of the two meets the mesh. Every client and every server is a
//! process of its own, so that `/proc` tells its CPU time from the proxies'. Rounds interleave
//! the two variants, and take turns in which goes first; samples that something else on the
//! machine disturbed are dropped by one rule for both ([`machine::Usage::disturbed`]).

pub mod chart;
pub mod machine;
mod memory;
mod report;
mod rows;
mod stage;
mod way;
mod work;

use std::time::Duration;

use anyhow::{Result, ensure};

pub use report::{json, table, targets};
pub use rows::{Better, Results, Row};
use stage::Stage;
pub use way::{Target, Way};
use work::Work;

/// How often one disturbed sample is taken again.
const RETRIES: usize = 2;

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds; each measures every kind of work in both variants.
    pub rounds: usize,
    /// The length of one sample.
    pub sample: Duration,
    /// Only rows whose name, such as `direct/bulk_1`, holds this text.
    pub only: Option<String>,
    /// The numbers of idle connections at which memory is measured.
    pub idle: Vec<usize>,
    /// How many disturbed samples are taken again, in the whole run; the others are missing. No
    /// sample is taken again more than [`RETRIES`] times: both variants have the same chances.
    pub retries: usize,
    /// Starts of the proxies for the time to ready.
    pub starts: usize,
    /// The proxies' log filter. Access logs are written at `info`.
    pub log: String,
    /// The congestion control of every route.
    pub congestion: String,
}

impl Plan {
    /// The full benchmark: about a quarter of an hour.
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

    /// A few minutes.
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
    let world = crate::net::World::builder()
        .node("a", 7)
        .node("b", 2)
        .congestion(&plan.congestion)
        .build()?;
    let wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name.contains(only));
    let works = works(wanted);
    let mut ways: Vec<Way> = works.iter().map(|(way, _)| *way).collect();
    // Memory is measured with tunnels.
    ways.push(Way::Tunnel);
    let mut stage = Stage::set(&world, &plan.log, &ways)?;
    let mut results = Results::new(wanted);
    if works.is_empty() {
        ensure!(
            results.wants_memory(),
            "no row's name holds {:?}",
            plan.only
        );
    }
    // The first connection of a kind is the proxy's; what is measured are the others.
    for work in &works {
        for variant in [Variant::Plain, Variant::Mesh] {
            stage.measure(*work, variant, Duration::from_millis(300))?;
        }
    }
    let mut retries = plan.retries;
    for round in 0..plan.rounds {
        for work in &works {
            let (way, what) = work;
            let round_of = format!("round {} of {}", round + 1, plan.rounds);
            eprintln!("{round_of}: {}: {what}", way.name());
            let order = if round % 2 == 0 {
                [Variant::Plain, Variant::Mesh]
            } else {
                [Variant::Mesh, Variant::Plain]
            };
            for variant in order {
                sample(
                    &stage,
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
        memory::measure(&mut stage, plan, &mut results)?;
    }
    Ok(results)
}

/// What is done on each way, as far as one of its rows is wanted.
fn works(wanted: impl Fn(&str) -> bool) -> Vec<(Way, Work)> {
    let all = Way::ALL
        .into_iter()
        .flat_map(|way| way.works().iter().map(move |work| (way, *work)));
    let fills = |way, work: &Work| {
        let rows = work.rows();
        rows.iter()
            .any(|row| wanted(&rows::full_name(way, row.name)))
    };
    all.filter(|(way, work)| fills(*way, work)).collect()
}

fn sample(
    stage: &Stage<'_>,
    work: (Way, Work),
    variant: Variant,
    length: Duration,
    retries: &mut usize,
    results: &mut Results,
) -> Result<()> {
    for tried in 0..=RETRIES {
        let (measured, usage) = stage.measure(work, variant, length)?;
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
