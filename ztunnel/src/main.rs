//! The one binary. It only picks the allocator and hands the command line to [`ztunnel::cli`].

use std::path::Path;
use std::process::ExitCode;

use ztunnel::cli::{self, ProxyArgs, Roles};
use ztunnel::kernel::Kernel;
use ztunnel::{config, node};

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
            doctor: node::doctor::examine,
            remove,
        },
    )
}

fn proxy(args: ProxyArgs) -> anyhow::Result<()> {
    let taken = if args.take_over {
        node::Taken::Wait
    } else {
        node::Taken::Fail
    };
    Ok(node::run(args.config, args.overrides.into(), taken)?)
}

fn check(file: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    let settings = config::load(file, &config::Overrides::default())?;
    Ok(serde_json::to_value(settings)?)
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    Ok(Kernel::remove_pins(directory)?)
}
