//! Runs the checks on the cluster that `kubectl` is configured for, one after another, and prints one
//! line for each.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use ztunnel_tests::cluster::{ALL, Cluster, demo};

/// The checks on a real cluster.
#[derive(Parser)]
struct Arguments {
    /// The checks to run; all short ones if none is named
    names: Vec<String>,
    /// Run the checks that take minutes, too
    #[arg(long)]
    long: bool,
    /// Print the checks and end
    #[arg(long)]
    list: bool,
    /// Run the demo instead of the checks
    #[arg(long)]
    demo: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every check passed.
fn run(arguments: &Arguments) -> Result<bool> {
    let checks = ALL;
    if arguments.list {
        for check in checks {
            println!("{:<20} {}", check.name, check.shows);
        }
        return Ok(true);
    }
    if arguments.demo {
        return demo().map(|()| true);
    }
    for name in &arguments.names {
        let known = checks.iter().any(|check| check.name == name);
        ensure!(known, "there is no check {name:?}; --list prints all");
    }
    let cluster = Cluster::connect()?;
    let (mut passed, mut failed) = (0, 0);
    for check in checks {
        let is_named = arguments.names.iter().any(|name| name == check.name);
        let is_default = arguments.names.is_empty() && (arguments.long || !check.is_long);
        if !is_named && !is_default {
            continue;
        }
        let began = Instant::now();
        let result = (check.run)(&cluster);
        let took = began.elapsed().as_secs_f64();
        match result {
            Ok(figures) => {
                passed += 1;
                println!(
                    "ok     {:<20} {took:>5.0} s  {}: {figures}",
                    check.name, check.shows
                );
            }
            Err(error) => {
                failed += 1;
                println!(
                    "FAILED {:<20} {took:>5.0} s  {}: {error:#}",
                    check.name, check.shows
                );
            }
        }
    }
    println!("test result: {passed} passed; {failed} failed");
    Ok(failed == 0)
}
