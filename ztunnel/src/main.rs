//! The one binary. It only picks the allocator and hands the command line to `cli`.

mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cli::{ProxyArgs, RemoveArgs, Removed, Roles};
use node::bpf::Kernel;

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
    let on_conflict = if args.take_over {
        node::OnPortConflict::Wait
    } else {
        node::OnPortConflict::Fail
    };
    Ok(node::run(args.config, args.overrides.into(), on_conflict)?)
}

fn check(file: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    let settings = settings::load(file, &settings::Overrides::default())?;
    Ok(serde_json::to_value(settings)?)
}

fn remove(args: &RemoveArgs) -> anyhow::Result<Removed> {
    let directory = match &args.directory {
        Some(directory) => directory.clone(),
        None => pin_directory(args.config.as_deref())?,
    };
    let pinned = Kernel::remove_pins(&directory)?;
    Ok(Removed { directory, pinned })
}

/// The directory of the pins of a proxy that runs with these settings.
fn pin_directory(file: Option<&Path>) -> anyhow::Result<PathBuf> {
    let settings = settings::load(file, &settings::Overrides::default())?;
    Ok(settings.capture.bpf_directory)
}
