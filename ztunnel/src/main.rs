//! The binary: it sets the allocator and passes the command line to `cli`.

mod cli;

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use cli::{CleanupArgs, PrepareArgs, ProxyArgs, RemoveArgs, Removed, Roles};
use node::bpf::{Kernel, NodePreparation};

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
            prepare,
            unmount,
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
    must_not_run(&directory)?;
    if Kernel::remove_pins(&directory)? {
        return Ok(Removed::Pins(directory));
    }
    if let Some(name) = node::bpf::ip_netns_exec() {
        bail!(
            "cannot look for pins in {}: `ip netns exec {name}` hides the BPF file system, because it \
             mounts another /sys; run `nsenter --net=/run/netns/{name} ztunnel kernel remove` instead",
            directory.display()
        );
    }
    let is_named = args.directory.is_some() || args.config.is_some();
    let elsewhere = node::bpf::pin_directories();
    match elsewhere.as_slice() {
        [only] if !is_named => {
            must_not_run(only)?;
            Kernel::remove_pins(only)?;
            Ok(Removed::Pins(only.clone()))
        }
        [_, ..] if !is_named => {
            let found: Vec<_> = elsewhere
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            bail!(
                "the pins of more than one proxy are visible: name one of these directories with \
                 --directory: {}",
                found.join(", ")
            )
        }
        _ => Ok(Removed::None {
            directory,
            elsewhere,
        }),
    }
}

/// A proxy that runs would restore what is removed.
fn must_not_run(directory: &Path) -> anyhow::Result<()> {
    if node::bpf::is_in_use(directory) {
        bail!(
            "the proxy that captures with {} runs: stop it first",
            directory.display()
        );
    }
    Ok(())
}

fn prepare(args: &PrepareArgs) -> anyhow::Result<NodePreparation> {
    Ok(node::bpf::prepare_node(&args.mount_point)?)
}

fn unmount(args: &CleanupArgs) -> anyhow::Result<bool> {
    let left = node::bpf::pin_directories();
    if let Some(first) = left.first() {
        bail!(
            "there are pins of a proxy in {}: name it with --directory",
            first.display()
        );
    }
    Ok(node::bpf::unmount_prepared(&args.mount_point)?)
}
