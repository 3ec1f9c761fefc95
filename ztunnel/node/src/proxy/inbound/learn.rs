//! Lookups before the authorization: the pod's own workload and, with a partial view of the mesh,
//! the other resources that the authorization needs.

use std::sync::Arc;

use super::super::worker::PodContext;
use super::caller::InboundCaller;
use super::error::InboundError;
use crate::discovery::{Discovered, DiscoveryFailed};
use mesh::DemandKey;
use mesh::View;
use mesh::inbound;
use mesh::inbound::LocalEndpoint;
use telemetry::WaitKind;

/// As [`learn`], after waiting for the pod's workload if it has not been pushed yet.
pub(super) async fn learn_in_time(
    context: &PodContext,
    caller: &InboundCaller,
    gone: impl Future<Output = ()>,
) -> (Arc<View>, Result<(), InboundError>) {
    let shared = &context.worker.proxy;
    let patience = (WaitKind::Inbound, shared.waits.deadline());
    let (view, told) = learn(context, caller).await;
    if told.is_err() || context.pod.workload(&view.mesh).is_some() {
        return (view, told.map_err(Into::into));
    }
    if let Err(error) = context.wait_for_own(patience, gone).await {
        return (shared.fast_path.view_owned(), Err(error.into()));
    }
    let (view, told) = learn(context, caller).await;
    (view, told.map_err(Into::into))
}

/// Discovers the resources that the authorization needs and the mesh does not contain; returns the
/// view that is in force then.
async fn learn(
    context: &PodContext,
    caller: &InboundCaller,
) -> (Arc<View>, Result<(), DiscoveryFailed>) {
    let shared = &context.worker.proxy;
    let mut discovered = Discovered::default();
    let mut named = false;
    loop {
        let view = shared.fast_path.view_owned();
        let Some(on_demand) = shared.on_demand.as_deref() else {
            return (view, Ok(()));
        };
        if let Some(key) = lacks(context, caller, &view, &discovered) {
            if let Err(error) = discovered
                .fetch(Some(on_demand), &context.inbound_limit, key)
                .await
            {
                return (view, Err(error));
            }
            continue;
        }
        let client = caller.client(context.pod.workload(&view.mesh).map(|w| &**w), &view);
        match inbound::unknown_address_key(&shared.config.network, client.ip(), &view.mesh) {
            Some(key) if !named => {
                named = true;
                on_demand
                    .fetch_client_name(&key, &context.inbound_limit)
                    .await;
            }
            _ => return (view, Ok(())),
        }
    }
}

fn lacks(
    context: &PodContext,
    caller: &InboundCaller,
    view: &View,
    discovered: &Discovered,
) -> Option<DemandKey> {
    let Some(workload) = context.pod.workload(&view.mesh) else {
        return inbound::own_workload_key(&context.pod.uid, &view.mesh, &discovered.absent);
    };
    let asked = LocalEndpoint {
        workload,
        addresses: &context.pod.addresses,
        at: caller.at.ip(),
    };
    inbound::next_key(
        &caller.authority(),
        caller.named().is_some(),
        asked,
        &view.mesh,
        &discovered.absent,
    )
}
