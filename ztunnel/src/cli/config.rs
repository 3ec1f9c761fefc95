//! `ztunnel config`: look at settings without running them.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde_json::Value;

use super::output::Output;

/// Look at settings without running them
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    Check(CheckArgs),
}

/// Read and validate settings, and print what would run
///
/// Flags, environment and file are merged as `ztunnel proxy` would merge them. Needs no
/// privileges and touches nothing.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel config check --config node-a.yaml\n  \
    ztunnel config check --config node-a.yaml -o json | jq .pods")]
pub(super) struct CheckArgs {
    /// The settings file (YAML); without it, environment and defaults alone
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How to print it
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(
    command: &ConfigCommand,
    check: fn(Option<&Path>) -> anyhow::Result<Value>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let ConfigCommand::Check(args) = command;
    let settings = check(args.config.as_deref())?;
    match args.output {
        Output::Json => writeln!(out, "{settings:#}")?,
        Output::Text => {
            let text = serde_yaml_ng::to_string(&settings).context("cannot print the settings")?;
            writeln!(
                out,
                "# The settings are fine. This would run:\n{}",
                text.trim_end()
            )?;
        }
    }
    Ok(())
}
