//! The command line: `ztunnel proxy | version | config check | doctor | kernel remove`, a file each.
//!
//! It only reads arguments, prints, and turns results into exit codes: 0 fine, 1 failed, 2
//! called wrongly. What the commands do is handed in by `main` as [`Roles`], so that this room
//! needs nothing of the rooms behind them. Errors are printed with all their causes.

mod config;
mod doctor;
mod kernel;
mod output;
mod proxy;
mod version;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use node::doctor::Check;

pub(crate) use kernel::{RemoveArgs, Removed};
pub(crate) use proxy::ProxyArgs;

/// What the commands do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roles {
    /// Runs the node proxy until it is asked to stop.
    pub proxy: fn(ProxyArgs) -> anyhow::Result<()>,
    /// Reads and validates settings without running them; answers with what would run.
    pub check: fn(Option<&Path>) -> anyhow::Result<serde_json::Value>,
    /// Looks whether this machine has what a node with these settings needs.
    pub doctor: fn(Option<&Path>) -> Vec<Check>,
    /// Detaches the kernel programs that are pinned where the command says and removes their pins;
    /// answers with what it found.
    pub remove: fn(&RemoveArgs) -> anyhow::Result<Removed>,
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
                  ztunnel config check --config node-a.yaml  say what would run, and what is wrong\n  \
                  ztunnel doctor --config node-a.yaml        is this machine fit to run it\n  \
                  ztunnel kernel remove                      end capture: pods are then without a mesh\n\n\
                  Exit codes: 0 fine, 1 failed, 2 called wrongly."
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
}

/// Runs the command line and returns the process's exit code.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>, roles: &Roles) -> ExitCode {
    let (mut out, mut complaints) = (io::stdout(), io::stderr());
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
    };
    output::finish(result, &mut complaints)
}

#[cfg(test)]
mod tests;
