//! The demo program; `cargo xtask demo` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use ztunnel_tests::cleanup;
use ztunnel_tests::demo::{self, OnExit};

/// Shows the mesh in two simulated nodes.
#[derive(Parser)]
struct Arguments {
    /// Keep nodes and proxies running at the end, and print commands to try.
    #[arg(long)]
    keep: bool,
    /// Only remove the resources of an earlier run with --keep.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.clean {
        demo::clean();
        return ExitCode::SUCCESS;
    }
    let on_exit = if arguments.keep {
        OnExit::Keep
    } else {
        OnExit::CleanUp
    };
    cleanup::exit(demo::run(on_exit))
}
