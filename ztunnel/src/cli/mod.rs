//! The command line: `ztunnel proxy | version | config check | doctor | kernel remove | node`, a file
//! each.
//!
//! It reads arguments, prints results, and returns exit codes: 0 success, 1 failure, 2 a usage error.
//! `main` passes the functions behind the commands as [`Roles`], so that tests can replace them.
//! Errors are printed with all their causes.

mod config;
mod doctor;
mod kernel;
mod node;
mod output;
mod proxy;
mod version;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use ::node::bpf::NodePreparation;
use ::node::doctor::Check;

pub(crate) use self::node::{CleanupArgs, PrepareArgs};
pub(crate) use kernel::{RemoveArgs, Removed};
pub(crate) use proxy::ProxyArgs;

/// The functions behind the commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roles {
    /// Runs the node proxy until a signal or a request stops it.
    pub proxy: fn(ProxyArgs) -> anyhow::Result<()>,
    /// Reads and validates settings; returns the complete settings.
    pub check: fn(Option<&Path>) -> anyhow::Result<serde_json::Value>,
    /// Checks whether this machine meets the requirements of a node with these settings.
    pub doctor: fn(Option<&Path>) -> Vec<Check>,
    /// Detaches the kernel programs that are pinned in the command's directory and removes their
    /// pins; returns the result.
    pub remove: fn(&RemoveArgs) -> anyhow::Result<Removed>,
    /// Mounts the node's BPF file system.
    pub prepare: fn(&PrepareArgs) -> anyhow::Result<NodePreparation>,
    /// Unmounts the node's BPF file system if `prepare` has mounted it; returns whether it has.
    pub unmount: fn(&CleanupArgs) -> anyhow::Result<bool>,
}

/// A node proxy for service meshes.
#[derive(Debug, Parser)]
#[command(
    name = "ztunnel",
    version,
    about,
    long_about = "A node proxy for service meshes: captures the TCP connections of a node's pods with eBPF, \
                  gives every pod a SPIFFE identity, and carries traffic between nodes in mutually \
                  authenticated HBONE tunnels.",
    after_help = "Examples:\n  \
                  ztunnel proxy --config node-a.yaml         run this node\n  \
                  ztunnel config check --config node-a.yaml  validate the settings\n  \
                  ztunnel doctor --config node-a.yaml        check the requirements of this machine\n  \
                  ztunnel kernel remove                      end capture: the pods leave the mesh\n\n\
                  Exit codes: 0 success, 1 failure, 2 usage error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Proxy(Box<ProxyArgs>),
    Version(version::VersionArgs),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    #[command(subcommand)]
    Node(node::NodeCommand),
}

/// Runs the command line and returns the process's exit code.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>, roles: &Roles) -> ExitCode {
    let (mut out, mut errors) = (io::stdout(), io::stderr());
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => cli.command,
        Err(error) => return output::usage(&error),
    };
    let result = match command {
        Command::Proxy(args) => (roles.proxy)(*args),
        Command::Version(args) => version::run(&args, &mut out),
        Command::Config(command) => config::run(&command, roles.check, &mut out),
        Command::Doctor(args) => doctor::run(&args, roles.doctor, &mut out),
        Command::Kernel(command) => kernel::run(&command, roles.remove, &mut out),
        Command::Node(command) => node::run(&command, roles, &mut out),
    };
    output::finish(result, &mut errors)
}

#[cfg(test)]
mod tests;
