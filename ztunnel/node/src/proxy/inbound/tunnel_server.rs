//! Serves the tunnels of a peer: the TLS handshake with the pod's certificate, then one inbound
//! connection for each CONNECT request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use futures::FutureExt as _;
use tokio::net::TcpStream;

use super::super::connection::{Accepted, Connection};
use super::super::connection_info::ConnectionInfo;
use super::super::far_end::FarEnd;
use super::super::inputs::Inputs;
use super::super::pod_context::PodContext;
use super::super::policy::Revoked;
use super::super::relay::{self, Side};
use super::super::report::ConnectionReport;
use super::super::tunnel_client;
use super::admit::{Delivered, admit};
use super::caller::{InboundCaller, TunnelPeer};
use super::error::{InboundError, PeerError};
use crate::pods::{self, PeerEnd, abort_on_drop};
use mesh::Identity;
use telemetry::Reporter;
use tunnel::hbone::{self, RevokedMark};
use tunnel::tls;

/// The peer of a connection that carries tunnels.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// The local address of the connection.
    local: SocketAddr,
    /// The identity that the peer proved.
    identity: Identity,
    /// Whether the connection was ended because the peer's certificate was revoked.
    revoked: RevokedMark,
}

/// Serves the tunnels of one peer.
pub(in super::super) async fn serve_tunnels(context: Rc<PodContext>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        accepted_at,
    } = accepted;
    let Ok(local) = pods::local_of(&stream) else {
        return;
    };
    let (stream, identity) = match Box::pin(handshake(&context, stream, accepted_at)).await {
        Ok(secured) => secured,
        Err(error) => {
            tracing::warn!(%peer, pod = %context.pod.uid.0, reason = error.reason(), "refused the connection of a tunnel peer: {error}");
            report_refused(&context, peer, local, accepted_at, &error);
            return;
        }
    };
    let mark = RevokedMark::default();
    let from = Peer {
        address: peer,
        local,
        identity,
        revoked: mark.clone(),
    };
    let serve_one = {
        let context = context.clone();
        move |request: hbone::Request| {
            context.spawn(carry_tunnel(context.clone(), request, from.clone()));
        }
    };
    let revocations = context.proxy.certificates.revocations();
    let revoked = revocations.revoked(stream.peer_chain());
    let (hbone, drain) = (&context.worker.hbone, context.drain.clone());
    let serving = hbone::serve(stream, hbone, drain, serve_one);
    let served = tokio::select! {
        served = serving => served,
        // Marked before the connection ends: its tunnels see only that the connection is gone.
        () = revoked.map(|()| mark.set()) => {
            tracing::warn!(%peer, pod = %context.pod.uid.0, reason = "cert_revoked", "the tunnels of a peer are closed: its certificate was revoked");
            return;
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, pod = %context.pod.uid.0, reason = error.reason(), "the connection of a tunnel peer failed: {error}");
    }
}

/// The report of a connection that is closed before its first CONNECT request.
fn report_refused(
    context: &PodContext,
    peer: SocketAddr,
    local: SocketAddr,
    accepted: Instant,
    error: &PeerError,
) {
    let connection = context.connection(peer, local, accepted);
    let view = context.proxy.fast_path.view_owned();
    let network = &context.proxy.config.network;
    let source = view.mesh.workload_by_address(network, peer.ip());
    let info = ConnectionInfo {
        source: source.cloned(),
        workload: context.pod.workload(&view.mesh).cloned(),
        ..ConnectionInfo::new(Reporter::Destination, &connection)
    };
    ConnectionReport::open(&context.worker.reports, connection.id, info).fail(error);
}

async fn handshake(
    context: &PodContext,
    stream: TcpStream,
    accepted: Instant,
) -> Result<(tls::Stream<TcpStream>, Identity), PeerError> {
    let proxy = &context.proxy;
    let identity = own_identity(context, &stream, accepted).await?;
    let timeout = proxy.config.handshake_timeout;
    let secured = async {
        let credentials = proxy.certificates.get(&identity).await?;
        tls::accept(stream, &credentials).await
    };
    let stream = tokio::time::timeout(timeout, secured)
        .await
        .map_err(|_elapsed| PeerError::Timeout { after: timeout })??;
    tunnel_client::log_established(&stream, &identity);
    let peer = stream.peer().clone();
    Ok((stream, peer))
}

/// The pod's own identity, which may have to be discovered on demand or may not have been pushed
/// yet. The peer waits for its handshake, so the wait is bounded by the handshake timeout.
async fn own_identity(
    context: &PodContext,
    peer: &TcpStream,
    accepted: Instant,
) -> Result<Identity, PeerError> {
    let timeout = context.proxy.config.handshake_timeout;
    let mut inputs = Inputs::inbound(context, accepted).wait_at_most(timeout);
    loop {
        let view = context.proxy.fast_path.view_owned();
        if let Some(workload) = context.pod.workload(&view.mesh) {
            return Ok(workload.identity.clone());
        }
        let missing = inputs.own_workload(&view);
        // A half-closed connection cannot complete a handshake.
        let peer_gone = pods::peer_gone(peer, PeerEnd::IsAll);
        inputs.obtain(missing, &view, peer_gone).await?;
    }
}

/// Handles one tunnel from CONNECT to its end. The set-up is boxed and takes its inputs before the
/// future begins, so that its memory is freed while the tunnel is open.
fn carry_tunnel(
    context: Rc<PodContext>,
    request: hbone::Request,
    peer: Peer,
) -> impl Future<Output = ()> {
    let mark = peer.revoked.clone();
    let opening = Box::pin(accept_tunnel(context, request, peer));
    async move {
        if let Some((tunnel, delivered)) = opening.await {
            let Delivered { app, guard, report } = delivered;
            let (series, revoked) = (report.series(), guard.revoked());
            let ended = relay::tunnelled(app, tunnel, Side::Destination, series, revoked).await;
            report.end(&ended.explained(&mark, FarEnd::default()));
        }
    }
}

/// Delivers the connection of a CONNECT request, then accepts the request.
async fn accept_tunnel(
    context: Rc<PodContext>,
    mut request: hbone::Request,
    peer: Peer,
) -> Option<(hbone::Tunnel, Delivered)> {
    let connection = context.connection(peer.address, peer.local, Instant::now());
    let caller = InboundCaller {
        connection: Connection {
            trace: request.traceparent.unwrap_or(connection.trace),
            ..connection
        },
        tunnel: Some(TunnelPeer {
            identity: peer.identity,
            authority: request.authority.clone(),
            forwarded: request.forwarded,
            host: request.host.take(),
            baggage: std::mem::take(&mut request.baggage),
        }),
    };
    let delivered = match admit(&context, caller, request.cancelled()).await {
        Ok(delivered) => delivered,
        Err(status) => {
            request.refuse(status);
            return None;
        }
    };
    match request.accept() {
        Ok(tunnel) => Some((tunnel, delivered)),
        Err(error) => {
            abort_on_drop(&delivered.app);
            delivered.report.fail(&if peer.revoked.is_set() {
                InboundError::Revoked(Revoked::Certificate)
            } else {
                InboundError::Gone(error)
            });
            None
        }
    }
}
