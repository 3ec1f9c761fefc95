//! `ztunnel kernel`: what the proxy leaves in the kernel.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Look after what the proxy leaves in the kernel
#[derive(Debug, Subcommand)]
pub(super) enum KernelCommand {
    Remove(RemoveArgs),
}

/// End capture: detach the programs and remove their pins
///
/// Capture outlives the proxy on purpose: while no proxy runs, captured connections are refused
/// rather than sent in the clear. This command ends capture for good. The pods of this node then
/// have no mesh: their connections leave unencrypted and no policy is enforced. Stop the proxy
/// first.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel kernel remove                           the directory of the environment and defaults\n  \
    ztunnel kernel remove --config node-a.yaml      the directory that these settings name\n  \
    ztunnel kernel remove --directory /sys/fs/bpf/ztunnel-node-a\n\n\
    Exit codes: 0 capture has ended, or nothing was pinned; 1 failed; 2 called wrongly.")]
pub(crate) struct RemoveArgs {
    /// The settings file (YAML) that the proxy runs with; it names the directory of the pins
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The directory of the pins, whatever the settings say [settings: capture.bpfDirectory]
    #[arg(long, short, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// What `kernel remove` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The directory of the pins.
    pub directory: PathBuf,
    /// Whether anything was pinned there.
    pub pinned: bool,
}

pub(super) fn run(
    command: &KernelCommand,
    remove: fn(&RemoveArgs) -> anyhow::Result<Removed>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let KernelCommand::Remove(args) = command;
    let Removed { directory, pinned } = remove(args)?;
    let directory = directory.display();
    if pinned {
        writeln!(out, "capture by {directory} has ended")?;
    } else {
        writeln!(
            out,
            "nothing is pinned in {directory}: capture was not at work there. If a proxy captures \
             with other settings, name them with --config, or its directory with --directory"
        )?;
    }
    Ok(())
}
