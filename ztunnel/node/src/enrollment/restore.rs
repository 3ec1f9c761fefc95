//! Restores what another process has removed from a captured pod's namespace.

use std::os::fd::AsFd as _;

use super::Enrollment;
use super::enrolled::Enrolled;
use crate::bpf::Kernel;
use crate::capture_watch::kind;
use crate::pods::{
    self,
    routing::{self, Existing, Prepared},
};
use telemetry::{CaptureMetrics, RestoredKind};

impl Enrollment {
    /// Checks the pods with these numbers, and restores their program, its pin, and their
    /// routing. Returns how many cannot be restored.
    pub(crate) fn restore_capture(
        &self,
        kernel: &Kernel,
        metrics: &CaptureMetrics,
        is_checked: impl Fn(u64) -> bool,
    ) -> usize {
        let checked = self.pods.values().filter(|pod| is_checked(pod.number));
        let captured = checked.filter(|pod| !pod.captured.is_empty());
        let is_lost = |enrolled: &&Enrolled| match restore(enrolled, kernel, metrics) {
            Ok(()) => false,
            Err(error) => {
                tracing::error!(
                    %error, pod = %enrolled.pod.uid.0,
                    "something that captures the pod was removed and cannot be restored"
                );
                true
            }
        };
        captured.filter(is_lost).count()
    }
}

fn restore(
    enrolled: &Enrolled,
    kernel: &Kernel,
    metrics: &CaptureMetrics,
) -> Result<(), Box<dyn std::error::Error>> {
    let netns = &enrolled.pod.netns;
    let tell = |what: &str, kind| {
        metrics.restored(kind);
        tracing::error!(
            pod = %enrolled.pod.uid.0, what,
            "another process has removed what captures the pod: restored"
        );
    };
    if let Some(installed) = kernel.restore_pod(netns.as_fd(), enrolled.cookie())? {
        tell(
            "the program of inbound connections",
            kind(installed.missing),
        );
    }
    let prepare = || {
        let delivery = routing::prepare_delivery()?;
        let capture = routing::prepare_capture(&enrolled.captured, Existing::Keep)?;
        Ok([delivery, capture].contains(&Prepared::Now))
    };
    match netns.visit(prepare)? {
        Ok(false) => {}
        Ok(true) => tell(
            "a rule or a route of captured connections or deliveries",
            RestoredKind::Route,
        ),
        // The pod's sandbox is being removed: nothing is delivered there any more.
        Err(pods::Error::LoopbackDown) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
