//! How the pods' connections are captured on this node: by the kernel programs, or by the
//! redirection rules that istio-cni puts into its pods.
//!
//! The DaemonSet of Istio's chart gives its container neither the host's cgroups nor the host's BPF
//! file system. Where only the image of that DaemonSet was replaced, the rules capture.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, assembly};
use crate::bpf::{self, Kernel};
use crate::handover::{ActiveLock, Handover, StandbyLock};
use crate::pods::{self, Netns, NetnsSource};
use admin::Pending;
use settings::{CaptureBy, Settings};

/// The programs, and the locks that say which process owns them.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) kernel: Arc<Kernel>,
    pub(super) handover: Handover,
    /// Both locks from the start, where no other proxy held one.
    pub(super) locks: Option<(ActiveLock, StandbyLock)>,
}

/// How often a lasting problem is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Programs of another proxy, usually of the previous one, that capture pods although redirection
/// rules should. This process does not detach them: a pod without rules would bypass the mesh. Only
/// the operator knows that no such pod is left.
#[derive(Debug, Default)]
pub(super) struct ForeignPrograms {
    /// Keeps the node unready while they capture.
    pending: Option<Pending>,
    last_logged: Option<Instant>,
    /// Pods of the node agent that the other proxy serves. While it does, the node agent is left to
    /// it.
    served: Vec<NetnsSource>,
}

impl ForeignPrograms {
    /// The readiness task while they capture.
    pub(super) const TASK: &str = "the end of another proxy's eBPF programs, which capture pods \
        (`ztunnel kernel remove` on the node)";

    /// Updates readiness, and logs the problem from time to time. `capturing` says whether such
    /// programs capture a pod now.
    pub(super) fn update(&mut self, capturing: bool, wait: impl FnOnce() -> Pending) {
        if capturing {
            self.pending.get_or_insert_with(wait);
            self.log(
                "the eBPF programs of another proxy capture pods of this node, but this proxy \
                 expects redirection rules to capture (capture.by): it cannot serve those pods, and \
                 the node is not ready; stop that proxy if it runs, then run `ztunnel kernel remove` \
                 on the node",
            );
        } else if let Some(pending) = self.pending.take() {
            tracing::info!("the eBPF programs of another proxy no longer capture pods");
            pending.done();
        }
    }

    /// Remembers the pods that the other proxy serves.
    pub(super) fn watch(&mut self, served: Vec<NetnsSource>) {
        self.served = served;
    }

    /// Whether the other proxy still serves one of the pods that [`Self::watch`] was called with: its
    /// programs capture the pod, and it listens there.
    pub(super) fn still_served(&mut self) -> bool {
        self.served.retain(|pod| {
            let Ok(netns) = Netns::of(pod) else {
                return false;
            };
            let captured = bpf::is_captured(netns.as_fd()).unwrap_or(true);
            captured && netns.visit(pods::is_served).unwrap_or(false)
        });
        !self.served.is_empty()
    }

    /// A connection arrived without its original destination, and the kernel cannot say whether
    /// programs capture the pod. The node stays ready, because an application may also have
    /// connected to the proxy's port itself.
    pub(super) fn suspect(&mut self, error: &std::io::Error) {
        let text = format!(
            "connections to port 15001 of a pod arrive without their original destination and are \
             refused; this process cannot check whether eBPF programs capture the pod: {error}; if \
             a proxy with eBPF programs has run on this node, run `ztunnel kernel remove` there"
        );
        self.log(&text);
    }

    fn log(&mut self, text: &str) {
        if self
            .last_logged
            .is_none_or(|last| last.elapsed() >= LOG_INTERVAL)
        {
            self.last_logged = Some(Instant::now());
            tracing::error!("{text}");
        }
    }
}

/// Warns of capture settings that rules ignore. With `auto` it is known only now that rules
/// capture.
pub(super) fn warn_of_exemptions(settings: &Settings) {
    if settings.capture.by == CaptureBy::Auto {
        for warning in settings.capture.ignored_by_rules() {
            tracing::warn!("{warning}");
        }
    }
}

/// Loads the programs. None where rules capture: then this process owns nothing in the kernel, and
/// no handover is needed.
///
/// # Errors
/// When the programs are needed and cannot be loaded.
pub(super) fn programs(settings: &Settings) -> Result<Option<Programs>, Error> {
    if settings.capture.by == CaptureBy::Rules {
        tracing::info!("redirection rules inside the pods capture their connections");
        return Ok(None);
    }
    match load(settings) {
        Ok(programs) => Ok(Some(programs)),
        Err(error) if can_do_without(settings, &error) => {
            tracing::warn!(
                %error,
                "cannot use kernel programs here: the node agent's redirection rules capture, and \
                 the proxy carries every connection"
            );
            warn_of_exemptions(settings);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn load(settings: &Settings) -> Result<Programs, bpf::Error> {
    let config = assembly::kernel(settings);
    // First: where only a part of the cgroups is visible, nothing may be mounted either.
    bpf::check_cgroup(&config)?;
    if settings.capture.by == CaptureBy::Auto && settings.node_agent.is_some() {
        bpf::require_bpf_fs(&config.directory)?;
    }
    let handover = Handover::open(&config.directory)?;
    let locks = handover.try_acquire()?;
    let kernel = Arc::new(Kernel::load(&config)?);
    Ok(Programs {
        kernel,
        handover,
        locks,
    })
}

/// Whether redirection rules can capture on a node where the programs failed with this error.
pub(super) fn can_do_without(settings: &Settings, error: &bpf::Error) -> bool {
    let auto = settings.capture.by == CaptureBy::Auto;
    auto && settings.node_agent.is_some() && error.is_restricted_environment()
}
