//! What takes the pods' connections to the proxy on this node: the kernel programs, or the redirection
//! rules that istio-cni puts into its pods.
//!
//! The DaemonSet of Istio's chart shows its container neither the host's cgroups nor its BPF file
//! system, so with nothing but another image there the rules are all there is.

use std::sync::Arc;

use super::{Error, assembly};
use crate::config::{CaptureBy, Settings};
use crate::kernel::{self, Charge, Heir, Kernel, Succession};

/// What takes the connections.
#[derive(Debug)]
pub(super) enum Capture {
    /// The programs, and the locks that say whose they are.
    Programs(Arc<Kernel>, Succession),
    /// Rules. Nothing in the kernel is ours, and processes beside each other need no order.
    Rules,
}

/// Being in charge from the start, where nobody was before.
pub(super) type Own = Option<(Charge, Heir)>;

impl Capture {
    /// Loads the programs, where they are to be used and can be.
    ///
    /// # Errors
    /// When the programs are needed and cannot be had.
    pub(super) fn open(settings: &Settings) -> Result<(Self, Own), Error> {
        if settings.capture.by == CaptureBy::Rules {
            tracing::info!("the pods' connections come by the redirection rules in the pods");
            return Ok((Self::Rules, None));
        }
        match programs(settings) {
            Ok((kernel, succession, own)) => {
                Ok((Self::Programs(Arc::new(kernel), succession), own))
            }
            Err(error) if can_do_without(settings, &error) => {
                tracing::warn!(
                    %error,
                    "no kernel programs here: the pods' connections come by the node agent's \
                     redirection rules, and everything goes through the proxy"
                );
                Ok((Self::Rules, None))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The programs, where there are some.
    pub(super) fn kernel(&self) -> Option<Arc<Kernel>> {
        match self {
            Self::Programs(kernel, _) => Some(kernel.clone()),
            Self::Rules => None,
        }
    }
}

fn programs(settings: &Settings) -> Result<(Kernel, Succession, Own), kernel::Error> {
    let config = assembly::kernel(settings);
    // First: where only part of the cgroups is seen nothing is to be mounted either.
    kernel::find_cgroup(&config)?;
    let succession = Succession::open(&config.directory)?;
    let own = succession.take()?;
    Ok((Kernel::load(&config)?, succession, own))
}

/// Whether a node that cannot have the programs, for this reason, has somebody else to capture for it.
pub(super) fn can_do_without(settings: &Settings, error: &kernel::Error) -> bool {
    let auto = settings.capture.by == CaptureBy::Auto;
    auto && settings.node_agent.is_some() && error.is_of_the_place()
}
