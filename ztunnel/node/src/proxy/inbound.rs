//! An inbound connection: in a tunnel of a peer, or as plaintext.
//!
//! accept → discover → authorize → deliver with the client's address → relay → report. The
//! destination's node is authoritative: it evaluates every policy, whatever the client's node
//! decided.

mod caller;
mod claimed_client;
mod deliver;
mod discover;
mod error;
mod tunnel_server;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use tokio::net::TcpStream;

use super::authorized::ConnectionGuard;
use super::connection::Accepted;
use super::connection_info::{ConnectionInfo, Tunnelled};
use super::pod_context::PodContext;
use super::relay;
use super::report::ConnectionReport;
use crate::pods::{self, PeerEnd, abort_on_drop};
use mesh::inbound::{LocalEndpoint, TargetError, TunnelTarget, target};
use mesh::{Authority, HBONE_PORT, Uid, View, Workload};
use telemetry::Reporter;

use caller::InboundCaller;
use deliver::{Destination, deliver};
use discover::discover;
use error::InboundError;
pub(super) use tunnel_server::serve_tunnels;

/// A connection that was delivered to the application.
struct Delivered {
    /// The connection to the application.
    app: TcpStream,
    /// Reports when the connection is no longer allowed.
    guard: ConnectionGuard,
    report: ConnectionReport,
}

/// Handles one plaintext connection that the kernel programs redirected to the proxy, or that a
/// rule inside the pod redirected.
pub(super) async fn carry_plain(context: Rc<PodContext>, accepted: Accepted) {
    let Accepted { stream, peer, at } = accepted;
    let Ok((destination, redirected)) = pods::dialled_of(&stream) else {
        return;
    };
    if redirected {
        context.set_redirected();
    }
    let caller = InboundCaller {
        connection: context.connection(peer, destination, at),
        tunnel: None,
    };
    let client_gone = pods::peer_gone(&stream, PeerEnd::MayBeHalf);
    match Box::pin(admit(&context, &caller, client_gone)).await {
        Ok(delivered) => {
            let Delivered { app, guard, report } = delivered;
            let (series, revoked) = (report.series(), guard.revoked());
            let ended = relay::plain(stream, app, context.copy_mode(), series, revoked).await;
            report.end(&ended);
        }
        Err(_status) => abort_on_drop(&stream),
    }
}

/// Authorizes an inbound connection and connects it to the application. `client_gone` resolves when
/// the client closes the connection. A refused connection is reported; the error is the status for a
/// CONNECT request.
async fn admit(
    context: &PodContext,
    caller: &InboundCaller,
    client_gone: impl Future<Output = ()>,
) -> Result<Delivered, StatusCode> {
    let discovered = discover(context, caller, client_gone)
        .await
        .map_err(InboundError::from);
    let arrival = Arrival::new(context, caller);
    let info = arrival.info(caller, &context.proxy.config.network);
    let report = ConnectionReport::open(&context.worker.reports, caller.connection.id, info);
    let delivered = match discovered.and_then(|()| arrival.destination(&context.pod.uid)) {
        Ok(destination) => deliver(context, caller, &destination).await,
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
struct Arrival {
    view: Arc<View>,
    /// The client's address. The port is 0 if the peer of a tunnel states the address.
    client: SocketAddr,
    /// The pod's workload; `None` if the mesh does not contain it.
    workload: Option<Arc<Workload>>,
    /// Where in the pod the connection leads; `None` if the workload is unknown.
    target: Option<Result<TunnelTarget, TargetError>>,
}

impl Arrival {
    fn new(context: &PodContext, caller: &InboundCaller) -> Self {
        let view = context.proxy.fast_path.view_owned();
        let workload = context.pod.workload(&view.mesh).cloned();
        let find_target = |workload: &Arc<Workload>| {
            let endpoint = LocalEndpoint {
                workload,
                addresses: &context.pod.addresses,
                at: caller.connection.destination.ip(),
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
            (None, Authority::Host(_, port)) => {
                SocketAddr::new(caller.connection.destination.ip(), *port)
            }
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
    fn destination(self, uid: &Uid) -> Result<Destination, InboundError> {
        let (Some(workload), Some(target)) = (self.workload, self.target) else {
            return Err(InboundError::UnknownWorkload { uid: uid.0.clone() });
        };
        Ok(Destination {
            view: self.view,
            client: self.client,
            workload,
            target: target?,
        })
    }
}
