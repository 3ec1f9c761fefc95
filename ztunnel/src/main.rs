//! The binary: it sets the allocator and passes the command line to `cli`.

mod cli;

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use cli::{ProxyArgs, RemoveArgs, Removed, Roles};
use node::bpf::Kernel;

/// Connections are allocated and freed on different worker threads: mimalloc frees across threads
/// without a lock, and returns memory to the system after bursts.
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
        None => settings::bpf_directory(args.config.as_deref())?,
    };
    let pinned = Kernel::remove_pins(&directory)?;
    if !pinned && let Some(name) = node::bpf::ip_netns_exec() {
        bail!(
            "cannot look for pins in {}: `ip netns exec {name}` hides the BPF file system, because it \
             mounts another /sys; run `nsenter --net=/run/netns/{name} ztunnel kernel remove` instead",
            directory.display()
        );
    }
    Ok(Removed { directory, pinned })
}
