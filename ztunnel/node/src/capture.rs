//! What takes the pods' connections to the proxy on this node: the kernel programs, or the redirection
//! rules that istio-cni puts into its pods.
//!
//! The DaemonSet of Istio's chart shows its container neither the host's cgroups nor its BPF file
//! system, so with nothing but another image there the rules are all there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, assembly};
use crate::bpf::{self, Kernel};
use crate::handover::{ActiveLock, Handover, StandbyLock};
use admin::Pending;
use settings::{CaptureBy, Settings};

/// The programs, and the locks that say whose they are.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) kernel: Arc<Kernel>,
    pub(super) handover: Handover,
    /// Being in charge from the start, where nobody was before.
    pub(super) own: Option<(ActiveLock, StandbyLock)>,
}

/// How often what stands in the way is said again.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Programs of another proxy, as a rule of this one's predecessor, that capture pods where rules are
/// to. They are not ended from here: a pod without rules would be without a mesh then, and only the
/// operator knows that no such pod is left and nobody needs the programs any more.
#[derive(Debug, Default)]
pub(super) struct ForeignPrograms {
    /// The node is not ready as long as they are at work.
    pending: Option<Pending>,
    said: Option<Instant>,
}

impl ForeignPrograms {
    /// What readiness waits for then.
    pub(super) const TASK: &str = "the end of another proxy's eBPF programs, which capture pods \
        (`ztunnel kernel remove` on the node)";

    /// Writes down whether they are at work.
    pub(super) fn note(&mut self, at_work: bool, wait: impl FnOnce() -> Pending) {
        if at_work {
            self.pending.get_or_insert_with(wait);
            self.complain(
                "the eBPF programs of another proxy capture pods of this node, and this proxy is to \
                 be reached by rules (capture.by): those pods are not served by it and the node is \
                 not ready until that proxy has ended, if it runs, and `ztunnel kernel remove` was \
                 run on the node",
            );
        } else if let Some(pending) = self.pending.take() {
            tracing::info!("no programs of another proxy capture pods any more");
            pending.done();
        }
    }

    /// A connection has come without its destination, and the kernel does not say whether programs
    /// capture the pod. An application may as well have called the proxy's port itself, so the node
    /// stays ready.
    pub(super) fn suspect(&mut self, error: &std::io::Error) {
        let text = format!(
            "connections come to port 15001 of a pod without their destination, and are refused: if \
             a proxy with eBPF programs has run on this node, run `ztunnel kernel remove` there; \
             whether programs are at work cannot be seen from here: {error}"
        );
        self.complain(&text);
    }

    fn complain(&mut self, text: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::error!("{text}");
        }
    }
}

/// Says which wishes the rules do not know, where the settings alone could not tell that rules
/// capture.
pub(super) fn warn_of_exemptions(settings: &Settings) {
    if settings.capture.by == CaptureBy::Auto {
        for warning in settings.capture.ignored_by_rules() {
            tracing::warn!("{warning}");
        }
    }
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
            warn_of_exemptions(settings);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn load(settings: &Settings) -> Result<Programs, bpf::Error> {
    let config = assembly::kernel(settings);
    // First: where only part of the cgroups is seen nothing is to be mounted either.
    bpf::find_cgroup(&config)?;
    let handover = Handover::open(&config.directory)?;
    let own = handover.take()?;
    let kernel = Arc::new(Kernel::load(&config)?);
    Ok(Programs {
        kernel,
        handover,
        own,
    })
}

/// Whether a node that cannot have the programs, for this reason, has somebody else to capture for it.
pub(super) fn can_do_without(settings: &Settings, error: &bpf::Error) -> bool {
    let auto = settings.capture.by == CaptureBy::Auto;
    auto && settings.node_agent.is_some() && error.is_of_the_place()
}
