//! A connection that a pod's application opened: accept → decide → tunnel, fast path or passthrough
//! → relay → report. The proxy carries only the first connection of a kind that needs no tunnel. It
//! then writes a fast-path entry, and the kernel carries the later ones.

mod decide;
mod error;
mod reports;
mod retry;
mod socks_destination;

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::connection::{Accepted, Connection};
use super::connection_info::ConnectionInfo;
use super::far_end::FarEnd;
use super::passthrough;
use super::pod_context::PodContext;
use super::policy::{self, Revoked};
use super::relay::{self, Side};
use super::report::ConnectionReport;
use super::socks5;
use super::tunnel_client::{OpenTunnel, TunnelRequest};
use crate::bpf::{ApplicationSocket, BackendChoice, CapturedDestination};
use crate::pods::{self, PeerEnd};
use mesh::NetnsCookie;
use mesh::authorize::InboundRequest;
use mesh::fastpath;
use mesh::route::Route;
use telemetry::Reporter;
use tunnel::hbone::RevocationFuture;

use decide::{Decided, decide};
use error::OutboundError;
use reports::ConnectionReports;
use retry::Retries;
use socks_destination::socks_destination;

/// The upstream side of a connection.
enum Upstream {
    Tunnel(OpenTunnel),
    /// A plain connection. The cookie is that of the destination pod if it is on this node.
    Plain(TcpStream, Option<NetnsCookie>),
}

/// A connection whose upstream side is connected.
struct Opened {
    upstream: Upstream,
    reports: ConnectionReports,
}

/// Handles one connection that the kernel programs captured, from accept to close.
pub(super) async fn carry_captured(context: Rc<PodContext>, accepted: Accepted) {
    let captured = captured_destination(&context, &accepted);
    carry(context, accepted, captured).await;
}

/// As [`carry_captured`], for a connection that rules inside the pod redirected.
pub(super) async fn carry_redirected(context: Rc<PodContext>, accepted: Accepted) {
    let redirected = redirected_destination(&context, &accepted);
    carry(context, accepted, redirected).await;
}

async fn carry(
    context: Rc<PodContext>,
    accepted: Accepted,
    captured: Result<CapturedDestination, OutboundError>,
) {
    // Boxed, so that the memory of the set-up is freed while the connection is open.
    match Box::pin(open_captured(&context, &accepted, captured)).await {
        Ok(opened) => relay(&context, accepted.stream, opened).await,
        Err(_refused) => context.refusals.reset(accepted.stream).await,
    }
}

/// Handles one connection whose destination the application names by SOCKS.
pub(super) async fn carry_socks(context: Rc<PodContext>, mut accepted: Accepted) {
    if let Some(opened) = Box::pin(open_requested(&context, &mut accepted)).await {
        relay(&context, accepted.stream, opened).await;
    }
}

async fn open_captured(
    context: &PodContext,
    accepted: &Accepted,
    captured: Result<CapturedDestination, OutboundError>,
) -> Result<Opened, OutboundError> {
    match captured {
        Ok(captured) => {
            let connection = Connection {
                application: captured.application,
                ..connection(context, accepted, captured.destination)
            };
            open(context, &connection, captured.choice, &accepted.stream).await
        }
        Err(error) => Err(refuse(context, accepted, error)),
    }
}

async fn open_requested(context: &PodContext, accepted: &mut Accepted) -> Option<Opened> {
    let request = match socks5::read_request(&mut accepted.stream).await {
        Ok(request) => request,
        Err(error) => {
            tracing::debug!(pod = %context.pod.uid.0, "cannot read a SOCKS request: {error}");
            return None;
        }
    };
    // The connection begins with its request: the client may take its time before.
    accepted.accepted_at = Instant::now();
    let opened = match socks_destination(context, &request, accepted).await {
        Ok(destination) => {
            let connection = connection(context, accepted, destination);
            open(context, &connection, BackendChoice::Any, &accepted.stream).await
        }
        Err(error) => Err(refuse(context, accepted, error)),
    };
    match opened {
        Ok(opened) => {
            let confirmed = socks5::confirm(&mut accepted.stream).await;
            // A report that is dropped without an end is recorded as a failure.
            confirmed.is_ok().then_some(opened)
        }
        Err(error) => {
            socks5::refuse(&mut accepted.stream, &error.reply().message()).await;
            None
        }
    }
}

fn connection(context: &PodContext, accepted: &Accepted, destination: SocketAddr) -> Connection {
    let client = context.pod.external_address(accepted.peer);
    context.connection(client, destination, accepted.accepted_at)
}

/// The original destination of a connection that the programs captured: the accepted socket's own
/// address.
fn captured_destination(
    context: &PodContext,
    accepted: &Accepted,
) -> Result<CapturedDestination, OutboundError> {
    let client = accepted.peer;
    let Some(kernel) = &context.proxy.kernel else {
        return Err(OutboundError::NotCaptured { client });
    };
    let destination = pods::local_of(&accepted.stream).map_err(OutboundError::Original)?;
    let mark = pods::mark_of(&accepted.stream).map_err(OutboundError::Original)?;
    let captured = kernel.captured(context.cookie(), client, destination, mark)?;
    captured.ok_or(OutboundError::UnknownSocket { client })
}

/// The original destination of a connection that arrives by the loopback device: rules redirected it, or
/// programs of the version before have captured it.
fn redirected_destination(
    context: &PodContext,
    accepted: &Accepted,
) -> Result<CapturedDestination, OutboundError> {
    let client = accepted.peer;
    let kernel = context.proxy.kernel.as_ref();
    if let Some(kernel) = kernel
        && let Some(captured) = kernel.original_destination(context.cookie(), client)?
    {
        return Ok(captured);
    }
    // With programs, too: where a node agent has put rules into the pods, these capture until the
    // programs do.
    let original = pods::redirected_from(&accepted.stream).map_err(OutboundError::Original)?;
    if original.is_none() && kernel.is_none() {
        // Applications do not dial this port; programs of another component may have redirected the
        // connection.
        context.proxy.recheck.add(context.cookie());
    }
    Ok(CapturedDestination {
        destination: original.ok_or(OutboundError::NotCaptured { client })?,
        choice: BackendChoice::Any,
        application: ApplicationSocket::default(),
    })
}

/// Reports a connection whose destination is not known. The report names the listener that accepted
/// it.
fn refuse(context: &PodContext, accepted: &Accepted, error: OutboundError) -> OutboundError {
    let listener = pods::local_of(&accepted.stream).unwrap_or(accepted.peer);
    report_refused(context, &connection(context, accepted, listener), &error);
    error
}

fn report_refused(context: &PodContext, connection: &Connection, error: &OutboundError) {
    let view = context.proxy.fast_path.view_owned();
    let info = ConnectionInfo {
        source: context.client(&view.mesh),
        ..ConnectionInfo::new(Reporter::Source, connection)
    };
    ConnectionReport::open(&context.worker.reports, connection.id, info).fail(error);
}

/// Decides where a connection goes and connects its upstream side, with another attempt where the far
/// end cannot be reached.
async fn open(
    context: &PodContext,
    connection: &Connection,
    choice: BackendChoice,
    app: &TcpStream,
) -> Result<Opened, OutboundError> {
    let client_gone = || pods::peer_gone(app, PeerEnd::MayBeHalf);
    let mut retries = Retries::default();
    let (decided, connected) = loop {
        let decided = match decide(context, connection, choice, app, retries.failed()).await {
            Ok(decided) => decided,
            Err(error) => {
                report_refused(context, connection, &error);
                return Err(error);
            }
        };
        let connected = connect(context, connection, &decided).await;
        match &connected {
            Err(error) if retries.again(context, &decided, error, client_gone()).await => {
                tracing::debug!(%error, pod = %context.pod.uid.0, "trying another way");
            }
            _ => break (decided, connected),
        }
    };
    let reports = ConnectionReports::open(&context.worker.reports, connection, &decided);
    match connected {
        Ok(upstream) => {
            // Only after success: a fast-path entry for a destination that cannot be reached would keep
            // the kernel trying it. And only if the mesh contains the client: every entry is checked
            // against the mesh.
            let is_in_mesh = decided.view.workload(connection.pod).is_some();
            if choice == BackendChoice::Any && context.proxy.kernel.is_some() && is_in_mesh {
                insert_fast_path_entry(context, connection, &decided);
            }
            Ok(Opened { upstream, reports })
        }
        Err(error) => {
            reports.fail(&error);
            Err(error)
        }
    }
}

/// Writes the fast-path entry for later connections, if the decision gives one.
fn insert_fast_path_entry(context: &PodContext, connection: &Connection, decided: &Decided) {
    let key = connection.fast_path_key();
    let entry = fastpath::entry(&key, &decided.routed.destinations, &decided.view);
    if let Some(entry) = entry {
        let fast_path = &context.proxy.fast_path;
        fast_path.insert_entry(&key, &entry, &decided.view);
    }
}

async fn connect(
    context: &PodContext,
    connection: &Connection,
    decided: &Decided,
) -> Result<Upstream, OutboundError> {
    let source = &decided.source;
    let (to, server) = match &decided.routed.route {
        Route::Passthrough { to, .. } => (*to, None),
        Route::Direct {
            to,
            server,
            workload,
            ..
        } => {
            policy::check(
                &decided.view.mesh,
                &InboundRequest {
                    workload,
                    source: Some(&source.identity),
                    source_ip: connection.client.ip(),
                    destination: *to,
                    http: None,
                },
                context.proxy.telemetry.trials(),
            )?;
            (*to, Some(*server))
        }
        Route::Tunnel(hop) => {
            let request = TunnelRequest {
                pod: &context.pod,
                source,
                client: connection.client,
                hop,
                trace: connection.trace,
                baggage: context.baggage(source),
            };
            let far_end = FarEnd::of(&hop.kind);
            let opened = context.worker.tunnels.open(request).await;
            let failed = |source| OutboundError::Tunnel { far_end, source };
            return opened.map(Upstream::Tunnel).map_err(failed);
        }
    };
    let connected = passthrough::connect(context, connection, to, server).await;
    let failed = |source| OutboundError::Connect { to, source };
    connected
        .map(|stream| Upstream::Plain(stream, server))
        .map_err(failed)
}

async fn relay(context: &PodContext, app: TcpStream, opened: Opened) {
    let Opened { upstream, reports } = opened;
    let series = reports.series();
    let ended = match upstream {
        Upstream::Tunnel(opened) => {
            let (tunnel, revoked) = (opened.tunnel, certificate_revoked(opened.revoking));
            let ended = relay::tunnelled(app, tunnel, Side::Source, series, revoked).await;
            ended.explained(&opened.revoked, opened.far_end)
        }
        Upstream::Plain(server, pod) => {
            let ended = relay::plain(app, server, context.copy_mode(), series, pending()).await;
            // The kernel resets the connection if rules inside the pod redirected it.
            let proxy = &context.proxy;
            if let (Some(pod), Some(_), Some(_)) = (pod, &ended.broken, &proxy.kernel) {
                proxy.recheck.add(pod);
            }
            ended
        }
    };
    reports.end(&ended);
}

/// Resolves when the certificate of the tunnel's peer is revoked.
async fn certificate_revoked(revoking: Option<RevocationFuture>) -> Revoked {
    match revoking {
        Some(revoking) => revoking.await,
        None => pending().await,
    }
    Revoked::Certificate
}
