//! `cargo xtask bench`: checks the requirements, builds, and runs the benchmark (a program of the
//! tests).

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use crate::{requirements, shell};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Short samples and three rounds; takes a few minutes.
    #[arg(long)]
    quick: bool,
    /// The number of rounds. Each round measures every row with and without the mesh.
    #[arg(long)]
    rounds: Option<usize>,
    /// Measure only rows whose name contains this text, for example `http` or `direct/`. Two values
    /// select a measurement of their own, which needs no root: `store` measures the cost of a mesh
    /// of 100,000 workloads, `tls` compares the CPU time of the TLS record layer with tokio-rustls.
    #[arg(long)]
    only: Option<String>,
    /// The congestion control of every route; the default is `cubic`.
    #[arg(long)]
    congestion: Option<String>,
    /// Write the rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The file of the chart; the default is `bench.svg` in the target directory.
    #[arg(long)]
    chart: Option<PathBuf>,
}

impl Arguments {
    /// Whether an option is given that applies to rows of traffic only.
    const fn has_row_options(&self) -> bool {
        self.quick
            || self.rounds.is_some()
            || self.congestion.is_some()
            || self.json.is_some()
            || self.chart.is_some()
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let own = match arguments.only.as_deref() {
        Some("store") => Some(("node", "store")),
        Some("tls") => Some(("tunnel", "tls")),
        _ => None,
    };
    if let Some((package, name)) = own {
        ensure!(
            !arguments.has_row_options(),
            "`--only {name}` is a measurement of its own and takes no other option"
        );
        return cargo_bench(package, name);
    }
    requirements::for_running()?;
    let chart = match &arguments.chart {
        Some(path) => absolute(path)?,
        None => shell::target().join("bench.svg"),
    };
    let mut forwarded = vec!["--chart".to_owned(), text(&chart)];
    if arguments.quick {
        forwarded.push("--quick".to_owned());
    }
    if let Some(rounds) = arguments.rounds {
        forwarded.extend(["--rounds".to_owned(), rounds.to_string()]);
    }
    if let Some(only) = &arguments.only {
        forwarded.extend(["--only".to_owned(), only.clone()]);
    }
    if let Some(congestion) = &arguments.congestion {
        forwarded.extend(["--congestion".to_owned(), congestion.clone()]);
    }
    if let Some(json) = &arguments.json {
        forwarded.extend(["--json".to_owned(), text(&absolute(json)?)]);
    }
    shell::run_release("bench", &forwarded)
}

/// Runs a benchmark of one package with `cargo bench`.
fn cargo_bench(package: &str, name: &str) -> Result<ExitCode> {
    requirements::for_building()?;
    let mut bench = shell::cargo(["bench", "--package", package, "--bench", name]);
    shell::must(&mut bench)?;
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(env::current_dir()
        .context("reading the working directory")?
        .join(path))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
