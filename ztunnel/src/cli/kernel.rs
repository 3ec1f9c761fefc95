//! `ztunnel kernel`: what the proxy leaves in the kernel.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// Look after what the proxy leaves in the kernel
#[derive(Debug, Subcommand)]
pub(super) enum KernelCommand {
    Remove(RemoveArgs),
}

/// End capture: detach the programs and remove their pins
///
/// Capture outlives the proxy on purpose: what was captured is refused while no proxy runs,
/// rather than sent in the clear. This command ends it, for good. Pods of this node are then
/// without a mesh: their connections leave unencrypted and no policy is enforced. Stop the
/// proxy first.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel kernel remove\n  \
    ztunnel kernel remove --directory /sys/fs/bpf/ztunnel-node-a")]
pub(super) struct RemoveArgs {
    /// The directory of the pins [settings: capture.bpfDirectory]
    #[arg(
        long,
        short,
        value_name = "DIRECTORY",
        default_value = "/sys/fs/bpf/ztunnel"
    )]
    directory: PathBuf,
}

pub(super) fn run(
    command: &KernelCommand,
    remove: fn(&Path) -> anyhow::Result<()>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let KernelCommand::Remove(args) = command;
    remove(&args.directory)?;
    writeln!(out, "capture by {} has ended", args.directory.display())?;
    Ok(())
}
