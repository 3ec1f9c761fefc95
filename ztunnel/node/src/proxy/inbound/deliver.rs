//! Authorizes an inbound connection and connects it to the application in the pod.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::super::authorized::{AuthorizationContext, ConnectionGuard};
use super::super::pod_context::PodContext;
use super::super::policy;
use super::super::proxy_protocol;
use super::caller::InboundCaller;
use super::error::InboundError;
use crate::pods::abort_on_drop;
use mesh::authorize::InboundRequest;
use mesh::fastpath;
use mesh::inbound::{TunnelTarget, delivery_address};
use mesh::{View, Workload};

/// Where in the pod an inbound connection leads, by one view.
pub(super) struct LocalDestination {
    pub(super) view: Arc<View>,
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The pod's workload.
    pub(super) workload: Arc<Workload>,
    pub(super) target: TunnelTarget,
}

impl LocalDestination {
    /// The address of the application. Connections from a tunnel go to the application's own
    /// tunnel, if it has one; plaintext goes to its original destination.
    fn address(&self, caller: &InboundCaller, localhost_app_tunnel: bool) -> SocketAddr {
        let original = self.target.destination;
        match &caller.tunnel {
            Some(_) => delivery_address(&self.workload, original, localhost_app_tunnel),
            None => original,
        }
    }
}

/// Authorizes a connection and connects it to the application.
///
/// # Errors
/// When a policy denies it, or the application cannot be reached.
pub(super) async fn deliver(
    context: &PodContext,
    caller: &InboundCaller,
    to: &LocalDestination,
) -> Result<(TcpStream, ConnectionGuard), InboundError> {
    let identity = caller.identity();
    let destination = to.address(caller, false);
    let request = InboundRequest {
        workload: &to.workload,
        source: identity,
        source_ip: to.client.ip(),
        destination,
        http: None,
    };
    let trials = context.proxy.telemetry.trials();
    let authorization = policy::check(&to.view.mesh, &request, trials)?;
    let pod = caller.connection.pod;
    // The kernel may carry later plaintext connections of the client.
    if let Some(entry) = fastpath::inbound_entry(pod, &request, &authorization, &to.view) {
        let fast_path = &context.proxy.fast_path;
        fast_path.insert_inbound_entry(&entry, &to.view);
    }
    let app = connect(context, caller, to).await?;
    let authorized = AuthorizationContext {
        pod,
        source: identity.cloned(),
        peer: caller.peer().ip(),
        named: caller.stated_client(),
        destination,
    };
    let now = context.proxy.fast_path.view();
    match context.worker.authorized.admit(authorized, &to.view, &now) {
        Ok(guard) => Ok((app, guard)),
        Err(revoked) => {
            abort_on_drop(&app);
            Err(revoked.into())
        }
    }
}

async fn connect(
    context: &PodContext,
    caller: &InboundCaller,
    destination: &LocalDestination,
) -> Result<TcpStream, InboundError> {
    let config = &context.proxy.config;
    let to = destination.address(caller, config.localhost_app_tunnel);
    let failed = |source| InboundError::Application {
        destination: to,
        source,
    };
    let peer = caller.peer();
    // The source address is the tunnel peer's: a waypoint passes the client's address by itself.
    // Only a loopback source can reach a loopback address; there the PROXY header carries the
    // client's address.
    let is_loopback = to.ip().is_loopback();
    let address = if is_loopback { to.ip() } else { peer.ip() };
    let mut app = config
        .dial
        .deliver(&context.pod.netns, to, address)
        .await
        .map_err(failed)?;
    let tunnel = destination.workload.application_tunnel;
    let with_header = tunnel.filter(|tunnel| tunnel.proxy_protocol);
    if let Some((_, identity)) = with_header.zip(caller.identity()) {
        let dialled = destination.target.dialled;
        let header = proxy_protocol::header(peer, dialled, Some(identity));
        app.write_all(&header).await.map_err(failed)?;
    }
    Ok(app)
}
