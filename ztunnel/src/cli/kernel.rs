//! `ztunnel kernel`: manages the proxy's programs in the kernel.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::proxy::Overrides;

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
    ztunnel kernel remove                       the pins that are found, if they are of one proxy\n  \
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

    /// The other flags of `ztunnel proxy`, accepted so that its arguments can be reused.
    #[command(
        flatten,
        next_help_heading = "Flags of `ztunnel proxy`, without effect here"
    )]
    pub proxy: Overrides,
}

/// The result of `kernel remove`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The pins of this directory were removed.
    Pins(PathBuf),
    /// This directory has no pins.
    None {
        /// The directory.
        directory: PathBuf,
        /// The directories that have pins.
        elsewhere: Vec<PathBuf>,
    },
}

pub(super) fn run(
    command: &KernelCommand,
    remove: fn(&RemoveArgs) -> anyhow::Result<Removed>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let KernelCommand::Remove(args) = command;
    print_removed(&remove(args)?, out)
}

pub(super) fn print_removed(removed: &Removed, out: &mut impl Write) -> anyhow::Result<()> {
    match removed {
        Removed::Pins(directory) => {
            writeln!(out, "capture by {} has ended", directory.display())?;
        }
        Removed::None {
            directory,
            elsewhere,
        } => {
            let directory = directory.display();
            writeln!(
                out,
                "nothing is pinned in {directory}: no proxy captures with this directory"
            )?;
            for other in elsewhere {
                writeln!(
                    out,
                    "there are pins in {}: name it with --directory",
                    other.display()
                )?;
            }
        }
    }
    Ok(())
}
