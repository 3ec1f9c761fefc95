//! Obtains the resources that an authorization needs and the mesh does not contain yet: the pod's
//! own workload and, with a partial view of the mesh, other resources.

use std::pin::pin;

use super::super::inputs::{InputError, Inputs};
use super::super::pod_context::PodContext;
use super::caller::InboundCaller;
use mesh::inbound::{self, LocalEndpoint};
use mesh::{DemandKey, Missing, View};

/// Obtains the resources that the authorization of a connection needs. `client_gone` resolves when
/// the client closes the connection.
///
/// # Errors
/// When a resource cannot be obtained.
pub(super) async fn discover(
    context: &PodContext,
    caller: &InboundCaller,
    client_gone: impl Future<Output = ()>,
) -> Result<(), InputError> {
    let mut client_gone = pin!(client_gone);
    let mut inputs = Inputs::inbound(context, caller.connection.accepted);
    let view = loop {
        let view = context.proxy.fast_path.view_owned();
        let missing = if context.pod.workload(&view.mesh).is_none() {
            inputs.own_workload(&view)
        } else if let Some(key) = missing_resource(context, caller, &view, inputs.absent()) {
            Missing::Resource(key)
        } else {
            break view;
        };
        inputs.obtain(missing, &view, client_gone.as_mut()).await?;
    };
    discover_client_name(context, caller, &view).await;
    Ok(())
}

/// Obtains the workload of the client, so that the report names it. The authorization does not need
/// it: without a timely answer the connection continues.
async fn discover_client_name(context: &PodContext, caller: &InboundCaller, view: &View) {
    let Some(on_demand) = context.proxy.on_demand.as_deref() else {
        return;
    };
    let workload = context.pod.workload(&view.mesh).map(|workload| &**workload);
    let client = caller.client(workload, view).ip();
    let network = &context.proxy.config.network;
    if let Some(key) = inbound::unknown_address_key(network, client, &view.mesh) {
        on_demand
            .fetch_client_name(&key, &context.inbound_limit)
            .await;
    }
}

/// The next resource that the authorization needs and a partial view lacks.
fn missing_resource(
    context: &PodContext,
    caller: &InboundCaller,
    view: &View,
    absent: &[DemandKey],
) -> Option<DemandKey> {
    let endpoint = LocalEndpoint {
        workload: context.pod.workload(&view.mesh)?,
        addresses: &context.pod.addresses,
        at: caller.connection.destination.ip(),
    };
    let on_behalf = caller.stated_client().is_some();
    inbound::next_key(&caller.authority(), on_behalf, endpoint, &view.mesh, absent)
}
