//! Obtains the resources of the mesh that the decisions about one connection lack.

use std::time::{Duration, Instant};

use super::pod_context::PodContext;
use super::wait::{WaitDeadline, WaitError};
use crate::discovery::{Discovered, DiscoveryFailed, RateLimiter};
use mesh::{Missing, ResourceKey, View};
use telemetry::WaitKind;

/// The resources that were obtained for one connection.
pub(super) struct Inputs<'a> {
    context: &'a PodContext,
    /// The pod's limit for on-demand discovery in the direction of the connection.
    limit: &'a RateLimiter,
    deadline: WaitDeadline,
    discovered: Discovered,
}

/// A resource could not be obtained.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// The workload of the pod, or of another pod of this node, was not pushed in time.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// On-demand discovery failed.
    #[error(transparent)]
    Discovery(#[from] DiscoveryFailed),
}

impl InputError {
    /// The reason as one of a closed set of strings, for logs.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Wait(error) => error.reason(),
            Self::Discovery(_) => "not_told",
        }
    }
}

impl<'a> Inputs<'a> {
    /// For an outbound connection that was accepted at this time.
    pub(super) fn outbound(context: &'a PodContext, accepted: Instant) -> Self {
        Self {
            context,
            limit: &context.outbound_limit,
            deadline: context.proxy.waits.deadline(WaitKind::Outbound, accepted),
            discovered: Discovered::default(),
        }
    }

    /// For an inbound connection that was accepted at this time.
    pub(super) fn inbound(context: &'a PodContext, accepted: Instant) -> Self {
        Self {
            context,
            limit: &context.inbound_limit,
            deadline: context.proxy.waits.deadline(WaitKind::Inbound, accepted),
            discovered: Discovered::default(),
        }
    }

    /// Limits all waits for workloads to a time from now.
    pub(super) fn wait_at_most(mut self, limit: Duration) -> Self {
        self.deadline = self.deadline.at_most(limit);
        self
    }

    /// The keys that the control plane does not have.
    pub(super) fn absent(&self) -> &[ResourceKey] {
        &self.discovered.absent
    }

    /// What is missing if `view` does not contain the pod's own workload.
    pub(super) fn own_workload(&self, view: &View) -> Missing {
        Missing::own_workload(&self.context.pod.uid, &view.mesh, self.absent())
    }

    /// Obtains the workload of the pod, which `view` lacks, or lets the pod act with the announced
    /// one.
    ///
    /// # Errors
    /// When the workload cannot be obtained in time, and none is announced.
    pub(super) async fn obtain_client(
        &mut self,
        view: &View,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), InputError> {
        match self.own_workload(view) {
            missing @ Missing::Resource(_) => match self.obtain(missing, view, client_gone).await {
                Err(InputError::Discovery(_)) if self.context.use_announcement() => Ok(()),
                obtained => obtained,
            },
            _ => {
                let waited = self.context.wait_for_client(self.deadline, client_gone);
                Ok(waited.await?)
            }
        }
    }

    /// Obtains a resource that a decision by `view` lacks. `client_gone` resolves when the client
    /// closes the connection.
    ///
    /// # Errors
    /// When the resource cannot be obtained in time.
    pub(super) async fn obtain(
        &mut self,
        missing: Missing,
        view: &View,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), InputError> {
        let (context, deadline) = (self.context, self.deadline);
        match missing {
            Missing::Resource(key) => {
                let on_demand = context.proxy.on_demand.as_deref();
                let discovered = &mut self.discovered;
                if !discovered.found_only_service(on_demand, &key, &view.mesh) {
                    discovered.fetch(on_demand, self.limit, key).await?;
                }
            }
            Missing::OwnWorkload(_) => {
                context.wait_for_own_workload(deadline, client_gone).await?;
            }
            Missing::LocalWorkload(uid) => {
                context
                    .wait_for_local_workload(&uid, deadline, client_gone)
                    .await?;
            }
        }
        Ok(())
    }
}
