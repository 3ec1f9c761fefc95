//! What takes the pods' connections to the proxy on this node: the kernel programs, or the redirection
//! rules that istio-cni puts into its pods.
//!
//! The DaemonSet of Istio's chart shows its container neither the host's cgroups nor its BPF file
//! system, so with nothing but another image there the rules are all there is.

use super::{Error, assembly};
use crate::config::{CaptureBy, Settings};
use crate::kernel::{self, Kernel};

/// The kernel programs at work; none where redirection rules capture the pods, because the operator
/// says so, or because this container cannot have the programs and a node agent brings rules.
pub(super) fn programs(settings: &Settings) -> Result<Option<Kernel>, Error> {
    let by = settings.capture.by;
    if by == CaptureBy::Rules {
        tracing::info!("the pods' connections come by the redirection rules in the pods");
        return Ok(None);
    }
    match Kernel::open(&assembly::kernel(settings)) {
        Ok(kernel) => Ok(Some(kernel)),
        Err(error) if can_do_without(settings, &error) => {
            tracing::warn!(
                %error,
                "no kernel programs here: the pods' connections come by the node agent's redirection rules, \
                 and everything goes through the proxy"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether a node that cannot have the programs, for this reason, has somebody else to capture for it.
pub(super) fn can_do_without(settings: &Settings, error: &kernel::Error) -> bool {
    let auto = settings.capture.by == CaptureBy::Auto;
    auto && settings.node_agent.is_some() && error.is_of_the_place()
}
