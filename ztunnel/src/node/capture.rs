//! What takes the pods' connections to the proxy on this node: the kernel programs, or the redirection
//! rules that istio-cni puts into its pods.
//!
//! The DaemonSet of Istio's chart shows its container neither the host's cgroups nor its BPF file
//! system, so with nothing but another image there the rules are all there is.

use std::sync::Arc;

use super::{Error, assembly};
use crate::config::{CaptureBy, Settings};
use crate::kernel::{self, Charge, Heir, Kernel, Succession};

/// The programs, and the locks that say whose they are.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) kernel: Arc<Kernel>,
    pub(super) succession: Succession,
    /// Being in charge from the start, where nobody was before.
    pub(super) own: Option<(Charge, Heir)>,
}

/// Loads the programs. None where rules capture: nothing in the kernel is ours then, and processes
/// beside each other need no order.
///
/// # Errors
/// When the programs are needed and cannot be had.
pub(super) fn programs(settings: &Settings) -> Result<Option<Programs>, Error> {
    if settings.capture.by == CaptureBy::Rules {
        tracing::info!("the pods' connections come by the redirection rules in the pods");
        return Ok(None);
    }
    match load(settings) {
        Ok(programs) => Ok(Some(programs)),
        Err(error) if can_do_without(settings, &error) => {
            tracing::warn!(
                %error,
                "no kernel programs here: the pods' connections come by the node agent's \
                 redirection rules, and everything goes through the proxy"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn load(settings: &Settings) -> Result<Programs, kernel::Error> {
    let config = assembly::kernel(settings);
    // First: where only part of the cgroups is seen nothing is to be mounted either.
    kernel::find_cgroup(&config)?;
    let succession = Succession::open(&config.directory)?;
    let own = succession.take()?;
    let kernel = Arc::new(Kernel::load(&config)?);
    Ok(Programs {
        kernel,
        succession,
        own,
    })
}

/// Whether a node that cannot have the programs, for this reason, has somebody else to capture for it.
pub(super) fn can_do_without(settings: &Settings, error: &kernel::Error) -> bool {
    let auto = settings.capture.by == CaptureBy::Auto;
    auto && settings.node_agent.is_some() && error.is_of_the_place()
}
