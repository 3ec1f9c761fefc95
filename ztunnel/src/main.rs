//! The one binary. It only picks the allocator and hands the command line to [`ztunnel::cli`].

use std::path::Path;
use std::process::ExitCode;

use ztunnel::cli::{self, ProxyArgs, Roles};

/// Connections come and go on every worker thread; mimalloc frees across threads without a
/// lock and returns memory after bursts.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(
        std::env::args_os(),
        &Roles {
            proxy,
            check,
            remove,
        },
    )
}

fn proxy(_args: ProxyArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build has no proxy role")
}

fn check(_file: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    anyhow::bail!("this build cannot check settings")
}

fn remove(_directory: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no kernel programs")
}
