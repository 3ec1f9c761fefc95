//! `ztunnel config`: validates settings without running the proxy.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde_json::Value;

use super::output::Output;

/// Validate settings without running the proxy
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ztunnel config check --config node-a.yaml\n\n\
    Exit codes: 0 success, 1 failure, 2 usage error.")]
pub(super) enum ConfigCommand {
    Check(CheckArgs),
}

/// Validate the settings and print them with all defaults
///
/// Flags, environment and file are merged as `ztunnel proxy` would merge them. Needs no
/// privileges and touches nothing.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel config check --config node-a.yaml\n  \
    ztunnel config check --config node-a.yaml -o json | jq .pods\n\n\
    Exit codes: 0 the settings are valid, 1 they are not, 2 usage error.")]
pub(super) struct CheckArgs {
    /// The settings file (YAML); without it, only environment and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The format of the result
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
                "# The settings are valid. With all defaults they are:\n{}",
                text.trim_end()
            )?;
        }
    }
    Ok(())
}
