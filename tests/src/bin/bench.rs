//! The benchmark program; `cargo xtask bench` builds and runs it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use ztunnel_tests::bench::{self, Plan};
use ztunnel_tests::cleanup;

/// Compares the mesh with plain TCP.
#[derive(Parser)]
struct Arguments {
    /// Short samples and three rounds; takes a few minutes.
    #[arg(long)]
    quick: bool,
    /// The number of rounds. Each round measures every row with and without the mesh.
    #[arg(long)]
    rounds: Option<usize>,
    /// The length of one sample, in seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Measure only rows whose name contains this text, for example `direct/`.
    #[arg(long)]
    only: Option<String>,
    /// The log filter of the proxies. The access log has the level `info`.
    #[arg(long)]
    log: Option<String>,
    /// The congestion control of every route; the kernel must support it.
    #[arg(long)]
    congestion: Option<String>,
    /// Write the rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the rows into this file as SVG.
    #[arg(long)]
    chart: Option<PathBuf>,
}

fn main() -> ExitCode {
    cleanup::exit(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    let mut plan = if arguments.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    plan.only.clone_from(&arguments.only);
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds);
    plan.log = arguments.log.unwrap_or(plan.log);
    plan.congestion = arguments.congestion.unwrap_or(plan.congestion);
    if let Some(seconds) = arguments.seconds {
        plan.sample = std::time::Duration::from_secs_f64(seconds);
    }
    let results = bench::run(&plan)?;
    let cpus = std::thread::available_parallelism().context("counting CPUs")?;
    let setting = format!(
        "{cpus} CPUs for clients, servers and both proxies; congestion control {}; log filter {}",
        plan.congestion, plan.log
    );
    println!("{setting}\n{}", bench::table(&results));
    print!("{}", bench::targets(&results));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string(&bench::json(&results)).context("writing JSON")?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &arguments.chart {
        let title = format!("the data paths compared with plain TCP, {cpus} CPUs");
        fs::write(path, bench::chart::svg(&results, &title))
            .with_context(|| format!("writing {}", path.display()))?;
        println!("chart: {}", path.display());
    }
    Ok(())
}
