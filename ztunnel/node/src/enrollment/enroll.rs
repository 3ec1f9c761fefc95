//! Enrolls one pod: opens its listeners, or takes those back that are still open, and captures it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::enrolled::{Enrolled, identity};
use super::error::EnrollError;
use super::prepare::{
    capture, capture_listeners, captured_addresses, prepare, refuse_captured, warn_of_missing,
};
use super::{DesiredPod, EnrollContext, Enrollment, HANDSHAKES};
use crate::pods::{self, Netns, Opened};
use mesh::NetnsCookie;

impl Enrollment {
    /// Enrolls a pod that is not enrolled.
    ///
    /// # Errors
    /// When the pod cannot be served or captured.
    pub(super) fn enroll(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
    ) -> Result<(), EnrollError> {
        let netns = Netns::of(&desired.netns)?;
        let cookie = NetnsCookie(netns.cookie());
        let mut others = self.pods.iter();
        if let Some((other, _)) = others.find(|(_, other)| other.cookie() == cookie) {
            let other = other.clone();
            return Err(EnrollError::NetnsInUse { other });
        }
        if self.shared.kernel.is_none() {
            refuse_captured(&netns)?;
        }
        let mut enrolled = match self.take_back(context, desired, cookie) {
            Some(enrolled) => enrolled,
            None => self.serve(context, desired, netns)?,
        };
        if let Err(error) = self.capture(context, desired, &mut enrolled) {
            // What the kernel captures by now stays captured and is refused.
            self.end(context, enrolled);
            return Err(error);
        }
        self.last_number += 1;
        enrolled.number = self.last_number;
        self.changed = true;
        self.shared.telemetry.pod_added();
        tracing::info!(pod = %desired.key, workload = %desired.uid, netns = %desired.netns, addresses = ?enrolled.captured, "pod enrolled");
        self.pods.insert(desired.key.clone(), enrolled);
        Ok(())
    }

    /// The pod of a namespace that has just left and comes back: its listeners are still open. If
    /// another workload comes, the listeners are closed.
    fn take_back(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
        cookie: NetnsCookie,
    ) -> Option<Enrolled> {
        let left = self.leaving.take(cookie)?;
        let redirected = left.pod.netns.visit(pods::is_redirected).unwrap_or(false);
        left.pod.redirected.store(redirected, Ordering::Relaxed);
        let is_captured = self.shared.kernel.is_some() || redirected;
        if left.has_same_workload(desired) && left.accepting && is_captured {
            return Some(left);
        }
        self.end(context, left);
        None
    }

    /// Opens listeners in a pod's namespace, and lets the workers serve them.
    fn serve(
        &self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
        netns: Netns,
    ) -> Result<Enrolled, EnrollError> {
        let kernel = self.shared.kernel.as_ref();
        let (pod, opened) = prepare(desired, netns, &self.shared, context.mesh)?;
        if kernel.is_none() && !pod.redirected.load(Ordering::Relaxed) {
            return Err(EnrollError::NoRules);
        }
        let Opened { sets, missing } = opened;
        let listeners = sets.first().map_or(Ok(None), capture_listeners);
        let listeners = listeners.map_err(EnrollError::Duplicate)?;
        context.workers.add(&pod, sets);
        warn_of_missing(&missing, &desired.key, kernel.is_some());
        Ok(Enrolled {
            pod,
            identity: None,
            listeners,
            accepting: true,
            captured: Vec::new(),
            settles: None,
            number: 0,
        })
    }

    /// Captures the connections of a pod that the workers serve, and requests its certificate.
    fn capture(
        &mut self,
        context: EnrollContext<'_>,
        desired: &DesiredPod,
        enrolled: &mut Enrolled,
    ) -> Result<(), EnrollError> {
        let pod = &enrolled.pod;
        enrolled.captured = captured_addresses(pod, context.mesh);
        if let (Some(kernel), Some(listeners)) = (&self.shared.kernel, &enrolled.listeners) {
            let netns = &pod.netns;
            capture(kernel, netns, &enrolled.captured, listeners)?;
            enrolled.settles = Some(Instant::now() + HANDSHAKES);
            if !kernel.covers_machine() {
                self.coverage.add(&desired.key, netns, Instant::now());
            }
        }
        let identity = identity(pod, desired, context.mesh);
        if let Some(identity) = &identity {
            self.shared.certificates.prefetch(identity);
        }
        let previous = std::mem::replace(&mut enrolled.identity, identity);
        if previous != enrolled.identity {
            self.forget_certificate(previous);
        }
        Ok(())
    }
}
