//! Admits an inbound connection: obtains what its authorization needs, opens its report, authorizes
//! it and delivers it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use tokio::net::TcpStream;

use super::super::authorized::ConnectionGuard;
use super::super::connection_info::{ConnectionInfo, Tunnelled};
use super::super::pod_context::PodContext;
use super::super::report::ConnectionReport;
use super::caller::InboundCaller;
use super::deliver::{LocalDestination, deliver};
use super::discover::discover;
use super::error::InboundError;
use mesh::inbound::{LocalEndpoint, TargetError, TunnelTarget, target};
use mesh::{Authority, HBONE_PORT, Uid, View, Workload};
use telemetry::Reporter;

/// A connection that was delivered to the application.
pub(super) struct Delivered {
    /// The connection to the application.
    pub(super) app: TcpStream,
    /// Reports when the connection is no longer allowed.
    pub(super) guard: ConnectionGuard,
    pub(super) report: ConnectionReport,
}

/// Authorizes an inbound connection and connects it to the application. `client_gone` resolves when
/// the client closes the connection. A refused connection is reported; the error is the status for a
/// CONNECT request.
pub(super) async fn admit(
    context: &PodContext,
    caller: InboundCaller,
    client_gone: impl Future<Output = ()>,
) -> Result<Delivered, StatusCode> {
    let (view, discovered) = discover(context, &caller, client_gone).await;
    let pending = PendingConnection::new(context, &caller, view);
    let info = pending.info(&caller, &context.proxy.config.network);
    let report = ConnectionReport::open(&context.worker.reports, caller.connection.id, info);
    let destination = discovered
        .map_err(InboundError::from)
        .and_then(|()| pending.destination(&context.pod.uid));
    let delivered = match destination {
        Ok(destination) => deliver(context, &caller, &destination).await,
        Err(error) => Err(error),
    };
    match delivered {
        Ok((app, guard)) => Ok(Delivered { app, guard, report }),
        Err(error) => {
            let status = error.status();
            report.fail(&error);
            Err(status)
        }
    }
}

/// An inbound connection before it is authorized, by one view: a change in between must not mix two
/// states of the mesh.
struct PendingConnection {
    view: Arc<View>,
    /// The client's address. The port is 0 if the peer of a tunnel states the address.
    client: SocketAddr,
    /// The pod's workload; `None` if the mesh does not contain it.
    workload: Option<Arc<Workload>>,
    /// Where in the pod the connection leads; `None` if the workload is unknown.
    target: Option<Result<TunnelTarget, TargetError>>,
}

impl PendingConnection {
    fn new(context: &PodContext, caller: &InboundCaller, view: Arc<View>) -> Self {
        let workload = context.pod.workload(&view.mesh).cloned();
        let find_target = |workload: &Arc<Workload>| {
            let endpoint = LocalEndpoint {
                workload,
                addresses: &context.pod.addresses,
                at: caller.local().ip(),
            };
            target(&caller.authority(), endpoint, &view.mesh)
        };
        Self {
            client: caller.client(workload.as_deref(), &view),
            target: workload.as_ref().map(find_target),
            workload,
            view,
        }
    }

    /// What the report says about the connection.
    fn info(&self, caller: &InboundCaller, network: &str) -> ConnectionInfo {
        let target = self.target.as_ref().and_then(|target| target.as_ref().ok());
        let (workload, identity) = (self.workload.as_ref(), caller.identity());
        let authority = caller.authority();
        let destination = match (target, &authority) {
            (Some(target), _) => target.destination,
            (None, Authority::Address(address)) => *address,
            (None, Authority::Host(_, port)) => SocketAddr::new(caller.local().ip(), *port),
        };
        ConnectionInfo {
            client: self.client,
            source: caller.source(self.client, network, &self.view),
            destination,
            // As at the source: the tunnel ends at the pod's HBONE port.
            hbone: caller.tunnel.is_some().then(|| Tunnelled {
                at: SocketAddr::new(destination.ip(), HBONE_PORT),
                authority,
            }),
            source_identity: identity.cloned(),
            destination_identity: identity.and(workload).map(|w| w.identity.clone()),
            service: caller.service(target, workload.map(|workload| &**workload), &self.view),
            workload: workload.cloned(),
            ..ConnectionInfo::new(Reporter::Destination, &caller.connection)
        }
    }

    /// The destination of the connection in the pod of this workload.
    fn destination(self, uid: &Uid) -> Result<LocalDestination, InboundError> {
        let (Some(workload), Some(target)) = (self.workload, self.target) else {
            return Err(InboundError::UnknownWorkload { uid: uid.0.clone() });
        };
        Ok(LocalDestination {
            view: self.view,
            client: self.client,
            workload,
            target: target?,
        })
    }
}
