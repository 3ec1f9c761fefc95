//! `cargo xtask demo`: checks the requirements, builds, and runs the demo (a program of the tests).

use std::process::ExitCode;

use anyhow::Result;

use crate::{requirements, shell};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Keep nodes and proxies running at the end, and print commands to try.
    #[arg(long)]
    keep: bool,
    /// Only remove the nodes of an earlier run with --keep.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    requirements::for_running()?;
    let mut forwarded = Vec::new();
    if arguments.keep {
        forwarded.push("--keep".to_owned());
    }
    if arguments.clean {
        forwarded.push("--clean".to_owned());
    }
    shell::run_release("demo", &forwarded)
}
