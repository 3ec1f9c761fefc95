//! `ztunnel kernel`: manages the proxy's programs in the kernel.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Manage the proxy's programs in the kernel
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ztunnel kernel remove --config node-a.yaml\n\n\
    Exit codes: 0 success, 1 failure, 2 usage error.")]
pub(super) enum KernelCommand {
    Remove(RemoveArgs),
}

/// End capture: detach the programs and remove their pins
///
/// Capture outlives the proxy on purpose: while no proxy runs, captured connections are refused
/// and not sent in plaintext. This command ends capture. The pods of this node then leave the mesh:
/// their connections are not encrypted and no policy is enforced. Stop the proxy first.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel kernel remove                       with the default directory, /sys/fs/bpf/ztunnel\n  \
    ztunnel kernel remove --config node-a.yaml  with the directory of these settings\n  \
    ztunnel kernel remove --directory /sys/fs/bpf/ztunnel-node-a\n\n\
    Exit codes: 0 capture has ended or nothing was pinned, 1 failure, 2 usage error.")]
pub(crate) struct RemoveArgs {
    /// The settings file (YAML) of the proxy; only its directory of the pins is used
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The directory of the pins, instead of that of the settings [settings: capture.bpfDirectory]
    #[arg(long, short, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// The result of `kernel remove`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The directory of the pins.
    pub directory: PathBuf,
    /// Whether programs were pinned there.
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
            "nothing is pinned in {directory}: no proxy captures with this directory. For a proxy with \
             other settings, use --config or --directory"
        )?;
    }
    Ok(())
}
