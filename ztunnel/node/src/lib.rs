//! The node proxy: it builds every module from the settings, connects them, and runs until a
//! signal stops it.
//!
//! The order matters at both ends. At the start the proxy takes over the kernel programs of the
//! previous proxy before any traffic could bypass them; a running previous proxy hands over first
//! ([`handover`]). At the end the proxy detaches nothing: its pods stay captured, so their
//! connections are refused until the next proxy takes over.

mod admin_listeners;
pub mod agent;
mod assembly;
pub mod bpf;
mod capture;
mod capture_watch;
mod deadline;
pub mod discovery;
pub mod dns;
pub mod doctor;
mod dump;
mod enrollment;
mod error;
mod event_loop;
pub mod fastpath;
pub mod handover;
mod mesh_updates;
mod node;
pub mod pods;
mod program_log;
pub mod proxy;
mod reauthorization;
mod reload;
mod roots;
mod serving;
mod signals;

use std::path::PathBuf;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use settings::Overrides;
use telemetry::{LogGuard, init_logging};

pub use admin_listeners::OnPortConflict;
pub use error::Error;
pub use mesh_updates::pause_after;
use node::Node;
use reload::SettingsSource;

/// Runs one node until a signal or the admin server stops it. `on_port_conflict` says what to do
/// when another process holds the admin, metrics and readiness ports.
///
/// # Errors
/// When a module cannot be built, or when this process cannot become the active proxy although it
/// is its turn. The pins in the kernel stay as they were.
pub fn run(
    file: Option<PathBuf>,
    overrides: Overrides,
    on_port_conflict: OnPortConflict,
) -> Result<(), Error> {
    let began = Instant::now();
    raise_file_limit();
    let settings = settings::load(file.as_deref(), &overrides)?;
    let (log, guard) = init_logging(&assembly::log(&settings)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        let source = SettingsSource { file, overrides };
        let node = Node::build(source, settings, log, on_port_conflict)?;
        tracing::info!(after = ?began.elapsed(), "started");
        Box::pin(event_loop::run(node)).await
    })?;
    drop::<LogGuard>(guard);
    Ok(())
}

/// A connection uses two descriptors, and a pod uses some more: with the usual soft limit of 1024
/// the proxy would be full at about five hundred connections.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        eprintln!("warning: cannot raise the limit on open files to the hard limit: {error}");
    }
}
