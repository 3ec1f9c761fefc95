//! `ztunnel version`: prints version and platform.

use std::env::consts::{ARCH, OS};
use std::io::Write;

use clap::Parser;
use serde_json::json;

use super::output::Output;
use telemetry::build;

/// Print version and platform
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel version\n  \
    ztunnel version -o json | jq -r .version\n\n\
    Exit codes: 0 success, 2 usage error.")]
pub(super) struct VersionArgs {
    /// The format of the result
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: &VersionArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let version = build::VERSION;
    let revision = build::REVISION;
    match args.output {
        Output::Text => writeln!(out, "ztunnel {} ({OS} {ARCH})", build::version())?,
        Output::Json => {
            let value = json!({
                "component": "ztunnel",
                "version": version,
                "revision": revision,
                "os": OS,
                "arch": ARCH,
            });
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(())
}
