//! The demonstration as a program; `cargo xtask demo` builds and runs it.

use std::process::ExitCode;

use clap::Parser;
use ztunnel_tests::cleanup;
use ztunnel_tests::demo::{self, Afterwards};

/// Shows the mesh at work in two simulated nodes.
#[derive(Parser)]
struct Arguments {
    /// Leave nodes and proxies running at the end, and print what to try.
    #[arg(long)]
    keep: bool,
    /// Only remove what an earlier run with --keep left.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.clean {
        demo::clean();
        return ExitCode::SUCCESS;
    }
    let afterwards = if arguments.keep {
        Afterwards::Keep
    } else {
        Afterwards::CleanUp
    };
    cleanup::exit(demo::run(afterwards))
}
