//! An inbound connection: in a tunnel of a peer, or as plaintext.
//!
//! accept → authorize → deliver with the client's address → relay → report. The destination's node
//! is authoritative: it evaluates every policy, whatever the client's node decided.

mod caller;
mod claimed_client;
mod error;
mod learn;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::authorized::{AuthorizationContext, ConnectionGuard, Revoked};
use super::open_tunnel;
use super::policy;
use super::proxy_protocol;
use super::relay::{self, Side};
use super::report::{ConnectionInfo, ConnectionReport, Tunnelled};
use super::worker::PodContext;
use crate::discovery::Discovered;
use crate::pods::{self, PeerEnd, Source, abort_on_drop};
use mesh::Authority;
use mesh::HBONE_PORT;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::InboundRequest;
use mesh::fastpath::{self, InboundEntry};
use mesh::{Identity, Workload};
use telemetry::{Reporter, WaitKind};
use tunnel::hbone::{self, RevokedMark};
use tunnel::tls;

use caller::{InboundCaller, TunnelPeer};
use error::{InboundError, PeerError};
use learn::learn_in_time;
use mesh::inbound::{self, LocalEndpoint, TunnelTarget, delivery_address, target};

/// The peer of a connection that carries tunnels.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// The local address of the connection.
    at: SocketAddr,
    /// The identity that the peer proved.
    identity: Identity,
    /// Whether the connection was ended because the peer's certificate was revoked.
    revoked: RevokedMark,
}

/// Handles one plaintext connection that the kernel programs redirected to the proxy, or that a
/// rule inside the pod redirected.
pub(super) async fn carry_plain(context: Rc<PodContext>, stream: TcpStream, client: SocketAddr) {
    let Ok((destination, redirected)) = pods::dialled_of(&stream) else {
        return;
    };
    if redirected {
        context.redirected();
    }
    let caller = InboundCaller {
        peer: client,
        at: destination,
        tunnel: None,
    };
    let gone = pods::peer_gone(&stream, PeerEnd::MayBeHalf);
    match Box::pin(arrive(&context, caller, gone)).await {
        Ok((app, live, record)) => {
            let cut = live.revoked();
            let ended = relay::plain(stream, app, context.copy_mode(), record.series(), cut).await;
            record.end(&ended);
        }
        Err(_status) => abort_on_drop(&stream),
    }
}

/// Serves the tunnels of one peer.
pub(super) async fn serve_tunnels(context: Rc<PodContext>, stream: TcpStream, peer: SocketAddr) {
    let began = Instant::now();
    let Ok(at) = pods::local_of(&stream) else {
        return;
    };
    let handshake = Box::pin(handshake(&context, stream)).await;
    let (stream, identity) = match handshake {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(%peer, pod = %context.pod.uid.0, reason = error.reason(), "refused a tunnel peer: {error}");
            report_refused(&context, (peer, at), began, &error);
            return;
        }
    };
    let mark = RevokedMark::default();
    let from = Peer {
        address: peer,
        at,
        identity,
        revoked: mark.clone(),
    };
    let serve_one = {
        let context = context.clone();
        move |request: hbone::Request| {
            context.spawn(carry_tunnel(context.clone(), request, from.clone()));
        }
    };
    let revocations = context.worker.proxy.certificates.revocations();
    let revoked = revocations.revoked(stream.peer_chain());
    let serving = hbone::serve(
        stream,
        &context.worker.hbone,
        context.drain.clone(),
        serve_one,
    );
    let served = tokio::select! {
        served = serving => served,
        // Marked before the connection ends: its tunnels see only that the connection is gone.
        () = revoked.map(|()| mark.set()) => {
            tracing::warn!(%peer, pod = %context.pod.uid.0, reason = "cert_revoked", "the tunnels of a peer are ended: its certificate was revoked");
            return;
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, pod = %context.pod.uid.0, reason = error.reason(), "tunnel peer: {error}");
    }
}

/// The report of a connection that is closed before its first CONNECT request.
fn report_refused(
    context: &PodContext,
    (peer, at): (SocketAddr, SocketAddr),
    began: Instant,
    error: &PeerError,
) {
    let shared = &context.worker.proxy;
    let view = shared.fast_path.view_owned();
    let source = view
        .mesh
        .workload_by_address(&shared.config.network, peer.ip());
    let info = ConnectionInfo {
        reporter: Reporter::Destination,
        began,
        client: peer,
        dialled: at,
        source: source.cloned(),
        source_identity: None,
        destination: at,
        hbone: None,
        workload: context.pod.workload(&view.mesh).cloned(),
        destination_identity: None,
        service: None,
    };
    ConnectionReport::open(&context.worker, info).fail(error);
}

async fn handshake(
    context: &PodContext,
    stream: TcpStream,
) -> Result<(tls::Stream<TcpStream>, Identity), PeerError> {
    let shared = &context.worker.proxy;
    let identity = own_identity(context, &stream).await?;
    let timeout = shared.config.handshake_timeout;
    let secured = async {
        let credentials = shared.certificates.get(&identity).await?;
        tls::accept(stream, &credentials).await
    };
    let stream = tokio::time::timeout(timeout, secured)
        .await
        .map_err(|_elapsed| PeerError::Timeout { after: timeout })??;
    open_tunnel::log_established(&stream, &identity);
    let peer = stream.peer().clone();
    Ok((stream, peer))
}

/// The pod's own identity, which may have to be discovered on demand or may not have been pushed
/// yet. The peer waits for its handshake, so the wait is bounded by the handshake timeout.
async fn own_identity(context: &PodContext, peer: &TcpStream) -> Result<Identity, PeerError> {
    let shared = &context.worker.proxy;
    let longest = tokio::time::Instant::now() + shared.config.handshake_timeout;
    let patience = (WaitKind::Inbound, shared.waits.deadline().min(longest));
    let mut discovered = Discovered::default();
    loop {
        if let Some(workload) = context.workload() {
            return Ok(workload.identity.clone());
        }
        let view = shared.fast_path.view_owned();
        let key = inbound::own_workload_key(&context.pod.uid, &view.mesh, &discovered.absent);
        let Some(key) = key else {
            // A half-closed connection cannot complete a handshake.
            let gone = pods::peer_gone(peer, PeerEnd::IsAll);
            context.wait_for_own(patience, gone).await?;
            continue;
        };
        let on_demand = shared.on_demand.as_deref();
        discovered
            .fetch(on_demand, &context.inbound_limit, key)
            .await?;
    }
}

/// Handles one tunnel from CONNECT to its end. The set-up is boxed and takes its inputs before the
/// future begins, so that its memory is freed while the tunnel is open.
fn carry_tunnel(
    context: Rc<PodContext>,
    request: hbone::Request,
    peer: Peer,
) -> impl Future<Output = ()> {
    let revoked = peer.revoked.clone();
    let opening = Box::pin(open_tunnel(context, request, peer));
    async move {
        if let Some((app, tunnel, live, record)) = opening.await {
            let (side, cut) = (Side::Destination, live.revoked());
            let ended = relay::tunnelled(app, tunnel, side, record.series(), cut).await;
            record.end(&ended.explained(&revoked, open_tunnel::FarEnd::default()));
        }
    }
}

async fn open_tunnel(
    context: Rc<PodContext>,
    mut request: hbone::Request,
    peer: Peer,
) -> Option<(TcpStream, hbone::Tunnel, ConnectionGuard, ConnectionReport)> {
    let caller = InboundCaller {
        peer: peer.address,
        at: peer.at,
        tunnel: Some(TunnelPeer {
            identity: peer.identity,
            authority: request.authority.clone(),
            forwarded: request.forwarded,
            host: request.host.take(),
            baggage: std::mem::take(&mut request.baggage),
        }),
    };
    let arrived = arrive(&context, caller, request.cancelled()).await;
    let (app, live, record) = match arrived {
        Ok(arrived) => arrived,
        Err(status) => {
            request.refuse(status);
            return None;
        }
    };
    match request.accept() {
        Ok(tunnel) => Some((app, tunnel, live, record)),
        Err(error) => {
            abort_on_drop(&app);
            record.fail(&if peer.revoked.is_set() {
                InboundError::Revoked(Revoked::Certificate)
            } else {
                InboundError::Gone(error)
            });
            None
        }
    }
}

/// Authorizes an inbound connection and connects it to the application. `gone` resolves when the
/// client closes the connection.
async fn arrive(
    context: &PodContext,
    caller: InboundCaller,
    gone: impl Future<Output = ()>,
) -> Result<(TcpStream, ConnectionGuard, ConnectionReport), StatusCode> {
    // Each decision uses one view: a change in between must not mix two states of the mesh.
    let (view, told) = learn_in_time(context, &caller, gone).await;
    let workload = context.pod.workload(&view.mesh).cloned();
    let client = caller.client(workload.as_deref(), &view);
    let found = workload
        .as_deref()
        .map(|workload| find(context, &caller, workload, &view));
    let target = found.as_ref().and_then(|found| found.as_ref().ok());
    let info = describe(context, &caller, (client, target, workload.as_ref()), &view);
    let record = ConnectionReport::open(&context.worker, info);
    let delivered = match (told, found, workload) {
        (Err(error), ..) => Err(error),
        (_, Some(Ok(target)), Some(workload)) => {
            deliver(context, &view, &caller, &workload, &target, client).await
        }
        (_, Some(Err(error)), _) => Err(error),
        (_, _, None) | (_, None, _) => {
            let uid = context.pod.uid.0.clone();
            Err(InboundError::UnknownWorkload { uid })
        }
    };
    match delivered {
        Ok((app, live)) => Ok((app, live, record)),
        Err(error) => {
            let status = error.status();
            record.fail(&error);
            Err(status)
        }
    }
}

/// What is known about an inbound connection before it is authorized.
fn describe(
    context: &PodContext,
    caller: &InboundCaller,
    (client, target, workload): (SocketAddr, Option<&TunnelTarget>, Option<&Arc<Workload>>),
    view: &View,
) -> ConnectionInfo {
    let authority = caller.authority();
    let destination = match (target, &authority) {
        (Some(target), _) => target.destination,
        (None, Authority::Address(address)) => *address,
        (None, Authority::Host(_, port)) => SocketAddr::new(caller.at.ip(), *port),
    };
    ConnectionInfo {
        reporter: Reporter::Destination,
        began: Instant::now(),
        client,
        dialled: caller.at,
        source: caller.source(client, &context.worker.proxy.config.network, view),
        destination,
        // As at the source: the tunnel ends at the pod's HBONE port.
        hbone: caller.tunnel.is_some().then(|| Tunnelled {
            at: SocketAddr::new(destination.ip(), HBONE_PORT),
            authority,
        }),
        destination_identity: caller
            .identity()
            .and(workload)
            .map(|workload| workload.identity.clone()),
        source_identity: caller.identity().cloned(),
        service: caller.service(target, workload.map(|workload| &**workload), view),
        workload: workload.cloned(),
    }
}

fn find(
    context: &PodContext,
    caller: &InboundCaller,
    workload: &Workload,
    view: &View,
) -> Result<TunnelTarget, InboundError> {
    let asked = LocalEndpoint {
        workload,
        addresses: &context.pod.addresses,
        at: caller.at.ip(),
    };
    Ok(target(&caller.authority(), asked, &view.mesh)?)
}

async fn deliver(
    context: &PodContext,
    view: &Arc<View>,
    caller: &InboundCaller,
    workload: &Workload,
    target: &TunnelTarget,
    client: SocketAddr,
) -> Result<(TcpStream, ConnectionGuard), InboundError> {
    let identity = caller.identity();
    let destination = match &caller.tunnel {
        Some(_) => delivery_address(workload, target.destination, false),
        None => target.destination,
    };
    policy::check(
        &view.mesh,
        &InboundRequest {
            workload,
            source: identity,
            source_ip: client.ip(),
            destination,
        },
        context.worker.proxy.telemetry.trials(),
    )?;
    if identity.is_none() {
        remember(context, view, client, destination);
    }
    let app = connect(context, caller, workload, target).await?;
    let admitted = AuthorizationContext {
        pod: NetnsCookie(context.pod.netns.cookie()),
        source: identity.cloned(),
        peer: caller.peer.ip(),
        named: caller.named(),
        destination,
    };
    let now = context.worker.proxy.fast_path.view();
    match context.worker.live.admit(admitted, view, &now) {
        Ok(live) => Ok((app, live)),
        Err(revoked) => {
            abort_on_drop(&app);
            Err(revoked.into())
        }
    }
}

/// Connects to the application. Connections from a tunnel go to the application's own tunnel, if it
/// has one; plaintext goes to its original destination.
async fn connect(
    context: &PodContext,
    caller: &InboundCaller,
    workload: &Workload,
    target: &TunnelTarget,
) -> Result<TcpStream, InboundError> {
    let config = &context.worker.proxy.config;
    let to = match &caller.tunnel {
        Some(_) => delivery_address(workload, target.destination, config.localhost_app_tunnel),
        None => target.destination,
    };
    let failed = |source| InboundError::Application {
        destination: to,
        source,
    };
    // The source address is the tunnel peer's: a waypoint passes the client's address by itself.
    // Only a loopback source can reach a loopback address; there the PROXY header carries the
    // client's address.
    let address = if to.ip().is_loopback() {
        to.ip()
    } else {
        caller.peer.ip()
    };
    let source = Source::Client { address };
    let mut app = config
        .dial
        .connect(&context.pod.netns, to, source)
        .await
        .map_err(failed)?;
    let told = workload
        .application_tunnel
        .filter(|tunnel| tunnel.proxy_protocol)
        .zip(caller.identity());
    if let Some((_, identity)) = told {
        let header = proxy_protocol::header(caller.peer, target.dialled, Some(identity));
        app.write_all(&header).await.map_err(failed)?;
    }
    Ok(app)
}

/// Writes a fast-path entry, so that the kernel carries later plaintext connections of the client.
fn remember(context: &PodContext, view: &Arc<View>, client: SocketAddr, destination: SocketAddr) {
    let arrival = InboundEntry {
        pod: NetnsCookie(context.pod.netns.cookie()),
        to: destination,
        from: client.ip(),
    };
    if fastpath::inbound_allowed(&arrival, view) {
        context
            .worker
            .proxy
            .fast_path
            .insert_inbound_entry(&arrival, view);
    }
}
