//! A connection that a pod's application opened: accept → route → tunnel, fast path or passthrough
//! → relay → report. The proxy carries only the first connection of a kind that needs no tunnel. It
//! then writes a fast-path entry, and the kernel carries the later ones.

mod decide;
mod error;
mod socks_destination;

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::authorized::Revoked;
use super::open_tunnel::{self, FarEnd, Opened};
use super::passthrough;
use super::policy;
use super::relay::{self, Ended, Side};
use super::report::{ConnectionInfo, ConnectionReport};
use super::socks5::{self, message::Destination};
use super::worker::PodContext;
use crate::pods::{self, PeerEnd, abort_on_drop};
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::InboundRequest;
use mesh::inbound::backed_service;
use mesh::route::Route;
use telemetry::Reporter;
use tunnel::hbone::RevocationFuture;

use decide::{OutboundDecision, find};
use error::OutboundError;

/// The upstream side of a connection.
enum Onward {
    Tunnel(Opened),
    /// A plain connection. The cookie is that of the destination pod if it is on this node.
    Plain(TcpStream, Option<NetnsCookie>),
}

/// The reports of one connection. A connection to a pod of this node without a tunnel is reported
/// at both ends, as if each pod had its own proxy.
struct ConnectionReports {
    source: ConnectionReport,
    destination: Option<ConnectionReport>,
}

impl ConnectionReports {
    fn open(
        context: &PodContext,
        info: ConnectionInfo,
        destination: Option<ConnectionInfo>,
    ) -> Self {
        let local = &context.worker;
        Self {
            source: ConnectionReport::open(local, info),
            destination: destination.map(|info| ConnectionReport::open(local, info)),
        }
    }

    fn end(self, ended: &Ended) {
        if let Some(destination) = self.destination {
            destination.end_beside(ended);
        }
        self.source.end(ended);
    }

    fn fail(self, error: &OutboundError) {
        if let Some(destination) = self.destination {
            destination.fail(error);
        }
        self.source.fail(error);
    }
}

/// Handles one captured connection from accept to close.
pub(super) async fn carry(context: Rc<PodContext>, app: TcpStream, client: SocketAddr) {
    // Boxed, so that the memory of the set-up is freed while the connection is open.
    match Box::pin(depart(&context, client, Dialled::captured(&app))).await {
        Ok(departed) => relay(&context, app, departed).await,
        // A refusal must reach the application as a reset, not as an orderly end.
        Err(_refused) => abort_on_drop(&app),
    }
}

async fn revoked(revoking: Option<RevocationFuture>) -> Revoked {
    match revoking {
        Some(revoking) => revoking.await,
        None => pending().await,
    }
    Revoked::Certificate
}

/// Handles one connection whose destination the application names by SOCKS.
pub(super) async fn carry_asked(context: Rc<PodContext>, mut app: TcpStream, client: SocketAddr) {
    if let Some(departed) = Box::pin(depart_asked(&context, &mut app, client)).await {
        relay(&context, app, departed).await;
    }
}

async fn depart_asked(
    context: &Rc<PodContext>,
    app: &mut TcpStream,
    client: SocketAddr,
) -> Option<(Onward, ConnectionReports)> {
    let asked = match socks5::ask(app).await {
        Ok(asked) => asked,
        Err(error) => {
            tracing::debug!(pod = %context.pod.uid.0, "a SOCKS client is not served: {error}");
            return None;
        }
    };
    match depart(context, client, Dialled::asked(app, asked)).await {
        Ok(departed) => {
            let confirmed = socks5::confirm(app).await;
            // A report that is dropped without an end is recorded as a failure.
            confirmed.is_ok().then_some(departed)
        }
        Err(error) => {
            socks5::refuse(app, &error.reply().message()).await;
            None
        }
    }
}

async fn relay(
    context: &PodContext,
    app: TcpStream,
    (onward, records): (Onward, ConnectionReports),
) {
    let series = records.source.series();
    let ended = match onward {
        Onward::Tunnel(opened) => {
            let (tunnel, cut) = (opened.tunnel, revoked(opened.revoking));
            let ended = relay::tunnelled(app, tunnel, Side::Source, series, cut).await;
            ended.explained(&opened.revoked, opened.far_end)
        }
        Onward::Plain(server, pod) => {
            let ended = relay::plain(app, server, context.copy_mode(), series, pending()).await;
            // The kernel resets the connection if rules inside the pod redirected it.
            let shared = &context.worker.proxy;
            if let (Some(pod), Some(_), Some(_)) = (pod, &ended.broken, &shared.kernel) {
                shared.recheck.name(pod);
            }
            ended
        }
    };
    records.end(&ended);
}

/// An application's connection and the source of its original destination.
struct Dialled<'a> {
    app: &'a TcpStream,
    /// The destination of the SOCKS request. `None`: the kernel programs or the redirection rule
    /// know it.
    asked: Option<Destination>,
}

impl<'a> Dialled<'a> {
    const fn captured(app: &'a TcpStream) -> Self {
        Self { app, asked: None }
    }

    const fn asked(app: &'a TcpStream, asked: Destination) -> Self {
        Self {
            app,
            asked: Some(asked),
        }
    }

    /// Resolves when the application has closed the connection.
    fn gone(&self) -> impl Future<Output = ()> + use<'a> {
        pods::peer_gone(self.app, PeerEnd::MayBeHalf)
    }
}

async fn depart(
    context: &Rc<PodContext>,
    client: SocketAddr,
    dialled: Dialled<'_>,
) -> Result<(Onward, ConnectionReports), OutboundError> {
    let mut info = ConnectionInfo {
        reporter: Reporter::Source,
        began: Instant::now(),
        client: context.pod.external_address(client),
        dialled: client,
        source: None,
        source_identity: None,
        destination: client,
        hbone: None,
        workload: None,
        destination_identity: None,
        service: None,
    };
    let (view, decision) = match find(context, (client, &dialled), &mut info).await {
        Ok(found) => found,
        Err(error) => {
            ConnectionReports::open(context, info, None).fail(&error);
            return Err(error);
        }
    };
    let arrival = matches!(decision.route, Route::Direct { .. }).then(|| ConnectionInfo {
        reporter: Reporter::Destination,
        service: info.workload.as_deref().and_then(|workload| {
            let said = info.service.as_ref().map(|service| &*service.hostname);
            backed_service(workload, &view.mesh, said, info.destination.port())
        }),
        ..info.clone()
    });
    let records = ConnectionReports::open(context, info, arrival);
    let OutboundDecision { route, key, entry } = decision;
    match connect(context, &records.source, (key.destination, route), &view).await {
        Ok(onward) => {
            // Only after success: a fast-path entry for an unreachable destination would keep the
            // kernel trying it.
            if let Some(entry) = entry {
                context
                    .worker
                    .proxy
                    .fast_path
                    .insert_entry(&key, &entry, &view);
            }
            Ok((onward, records))
        }
        Err(error) => {
            records.fail(&error);
            Err(error)
        }
    }
}

async fn connect(
    context: &Rc<PodContext>,
    record: &ConnectionReport,
    (dialled, route): (SocketAddr, Route),
    view: &View,
) -> Result<Onward, OutboundError> {
    let unknown = || OutboundError::UnknownWorkload {
        uid: context.pod.uid.0.clone(),
    };
    let source = record.source().ok_or_else(unknown)?;
    let source_ip = record.client().ip();
    let (to, server) = match route {
        Route::Passthrough { to, .. } => (to, None),
        Route::Direct {
            to,
            server,
            workload,
            ..
        } => {
            policy::check(
                &view.mesh,
                &InboundRequest {
                    workload: &workload,
                    source: Some(&source.identity),
                    source_ip,
                    destination: to,
                },
                context.worker.proxy.telemetry.trials(),
            )?;
            (to, Some(server))
        }
        Route::Tunnel(hop) => {
            let request = open_tunnel::Request {
                source,
                source_ip,
                hop,
            };
            let far_end = FarEnd::of(&request.hop.kind);
            let opened = open_tunnel::open(context, request).await;
            let failed = |source| OutboundError::Tunnel { far_end, source };
            return opened.map(Onward::Tunnel).map_err(failed);
        }
        Route::Resolve { hostname } => return Err(OutboundError::TooManyNames { hostname }),
    };
    let connected = passthrough::connect(context, dialled, to, server).await;
    let failed = |source| OutboundError::Connect { to, source };
    connected
        .map(|stream| Onward::Plain(stream, server))
        .map_err(failed)
}
