//! `ztunnel node`: prepares a Kubernetes node for the proxy, and cleans it up.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::Roles;
use super::kernel::{RemoveArgs, print_removed};
use node::bpf::{NODE_BPF_FS, NodePreparation};

/// Prepare a node for the proxy, or clean it up
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ztunnel node prepare   mount the node's BPF file system, in an init container\n  \
    ztunnel node cleanup   end capture and remove everything of the proxy from the node\n\n\
    Exit codes: 0 success, 1 failure, 2 usage error.")]
pub(super) enum NodeCommand {
    Prepare(PrepareArgs),
    Cleanup(Box<CleanupArgs>),
}

/// Mount the node's BPF file system where it is missing
///
/// The proxy pins its programs there, so that they outlive it. Nodes with systemd have the file
/// system; nodes that are containers (kind, k3d, minikube) do not. Run this in a privileged init
/// container with the node's /sys/fs/bpf as a volume whose mountPropagation is Bidirectional. It does
/// nothing where the file system is mounted. The proxy's own container needs no privileges for it.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel node prepare\n\n\
    Exit codes: 0 the file system is mounted, 1 failure, 2 usage error.")]
pub(crate) struct PrepareArgs {
    /// The mount point
    #[arg(long, value_name = "DIRECTORY", default_value = NODE_BPF_FS)]
    pub mount_point: PathBuf,
}

/// End capture and remove everything of the proxy from the node
///
/// As `ztunnel kernel remove`, and unmounts the BPF file system if `ztunnel node prepare` has mounted
/// it and nothing else is pinned there. Stop the proxy first.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel node cleanup                  the pins that are found, if they are of one proxy\n  \
    ztunnel node cleanup --config a.yaml  the pins of the proxy with these settings\n\n\
    Exit codes: 0 no pins are left, 1 failure or other pins are left, 2 usage error.")]
pub(crate) struct CleanupArgs {
    #[command(flatten)]
    pub remove: RemoveArgs,

    /// The mount point of the BPF file system
    #[arg(long, value_name = "DIRECTORY", default_value = NODE_BPF_FS)]
    pub mount_point: PathBuf,
}

pub(super) fn run(
    command: &NodeCommand,
    roles: &Roles,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        NodeCommand::Prepare(args) => {
            let text = match (roles.prepare)(args)? {
                NodePreparation::Present => "is a BPF file system already",
                NodePreparation::Mounted => "is a BPF file system now",
            };
            writeln!(out, "{} {text}", args.mount_point.display())?;
        }
        NodeCommand::Cleanup(args) => {
            print_removed(&(roles.remove)(&args.remove)?, out)?;
            if (roles.unmount)(args)? {
                let place = args.mount_point.display();
                writeln!(out, "the BPF file system at {place} is unmounted")?;
            }
        }
    }
    Ok(())
}
