//! Obtains the resources that an authorization needs and the mesh does not contain yet: the pod's
//! own workload and, with a partial view of the mesh, other resources.

use std::pin::pin;
use std::sync::Arc;

use super::super::inputs::{InputError, Inputs};
use super::super::pod_context::PodContext;
use super::caller::InboundCaller;
use mesh::inbound::{self, LocalEndpoint};
use mesh::{Missing, ResourceKey, View};

/// Obtains the resources that the authorization of a connection needs, and returns the view that
/// contains them. `client_gone` resolves when the client closes the connection.
///
/// # Errors
/// When a resource cannot be obtained. The view is then the one in force.
pub(super) async fn discover(
    context: &PodContext,
    caller: &InboundCaller,
    client_gone: impl Future<Output = ()>,
) -> (Arc<View>, Result<(), InputError>) {
    let mut client_gone = pin!(client_gone);
    let mut inputs = Inputs::inbound(context, caller.connection.accepted);
    let mut has_requested_name = false;
    loop {
        let view = context.proxy.fast_path.view_owned();
        let missing = if context.pod.workload(&view.mesh).is_none() {
            inputs.own_workload(&view)
        } else if let Some(key) = missing_resource(context, caller, &view, inputs.absent()) {
            Missing::Resource(key)
        } else if let Some(key) = client_key(context, caller, &view).filter(|_| !has_requested_name)
        {
            // The name of the client is for the report only: without a timely answer the
            // connection continues. The view may have changed in between.
            has_requested_name = true;
            if let Some(on_demand) = context.proxy.on_demand.as_deref() {
                let limit = &context.inbound_limit;
                on_demand.fetch_client_name(&key, limit).await;
            }
            continue;
        } else {
            return (view, Ok(()));
        };
        let obtained = inputs.obtain(missing, &view, client_gone.as_mut()).await;
        if obtained.is_err() {
            return (context.proxy.fast_path.view_owned(), obtained);
        }
    }
}

/// The key of the client's workload, if a partial view lacks it.
fn client_key(context: &PodContext, caller: &InboundCaller, view: &View) -> Option<ResourceKey> {
    let workload = context.pod.workload(&view.mesh).map(|workload| &**workload);
    let client = caller.client(workload, view).ip();
    inbound::unknown_address_key(&context.proxy.config.network, client, &view.mesh)
}

/// The next resource that the authorization needs and a partial view lacks.
fn missing_resource(
    context: &PodContext,
    caller: &InboundCaller,
    view: &View,
    absent: &[ResourceKey],
) -> Option<ResourceKey> {
    let endpoint = LocalEndpoint {
        workload: context.pod.workload(&view.mesh)?,
        addresses: &context.pod.addresses,
        at: caller.local().ip(),
    };
    let on_behalf = caller.stated_client().is_some();
    inbound::next_key(&caller.authority(), on_behalf, endpoint, &view.mesh, absent)
}
