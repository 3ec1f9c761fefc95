//! `ztunnel version`: what this binary is.

use std::env::consts::{ARCH, OS};
use std::io::Write;

use clap::Parser;
use serde_json::json;

use super::output::Output;

/// Say what this binary is
#[derive(Debug, Parser)]
pub(super) struct VersionArgs {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: &VersionArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Output::Text => writeln!(out, "ztunnel {version} ({OS} {ARCH})")?,
        Output::Json => {
            let value =
                json!({ "component": "ztunnel", "version": version, "os": OS, "arch": ARCH });
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(())
}
