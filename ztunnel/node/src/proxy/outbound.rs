//! A connection that a pod's application opened: accept → route → tunnel, fast path or passthrough
//! → relay → report. The proxy carries only the first connection of a kind that needs no tunnel. It
//! then writes a fast-path entry, and the kernel carries the later ones.

mod error;
mod socks_destination;

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::authorized::Revoked;
use super::open_tunnel::{self, FarEnd, Opened};
use super::passthrough;
use super::policy;
use super::relay::{self, Ended, Side};
use super::report::{ConnectionInfo, ConnectionReport, Tunnelled};
use super::resolve::ResolveError;
use super::socks5::{self, message::Destination};
use super::worker::PodContext;
use crate::bpf::{BackendChoice, CapturedDestination};
use crate::discovery::Discovered;
use crate::pods::{self, PeerEnd, abort_on_drop};
use mesh::Authority;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::InboundRequest;
use mesh::fastpath;
use mesh::fastpath::{FastPathEntry, FastPathKey};
use mesh::inbound::backed_service;
use mesh::route::{OutboundRequest, Route, RouteError, choose_address, route};
use mesh::{DemandKey, Workload};
use telemetry::{Reporter, WaitKind};
use tunnel::hbone::Revoking;

use error::OutboundError;
use socks_destination::socks_destination;

/// The maximum number of names to resolve for one connection: a waypoint's or a backend's, and a
/// gateway's.
const MOST_NAMES: usize = 3;

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

async fn revoked(revoking: Option<Revoking>) -> Revoked {
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
    let (view, judged) = match find(context, (client, &dialled), &mut info).await {
        Ok(found) => found,
        Err(error) => {
            ConnectionReports::open(context, info, None).fail(&error);
            return Err(error);
        }
    };
    let arrival = matches!(judged.route, Route::Direct { .. }).then(|| ConnectionInfo {
        reporter: Reporter::Destination,
        service: info.workload.as_deref().and_then(|workload| {
            let said = info.service.as_ref().map(|service| &*service.hostname);
            backed_service(workload, &view.mesh, said, info.destination.port())
        }),
        ..info.clone()
    });
    let records = ConnectionReports::open(context, info, arrival);
    let Judged {
        route,
        call,
        verdict,
    } = judged;
    match connect(context, &records.source, (call.destination, route), &view).await {
        Ok(onward) => {
            // Only after success: a fast-path entry for an unreachable destination would keep the
            // kernel trying it.
            if let Some(verdict) = verdict {
                context
                    .worker
                    .proxy
                    .fast_path
                    .insert_entry(&call, &verdict, &view);
            }
            Ok((onward, records))
        }
        Err(error) => {
            records.fail(&error);
            Err(error)
        }
    }
}

/// The routing decision for a connection.
struct Judged {
    route: Route,
    call: FastPathKey,
    /// The fast-path entry for later connections of the kind. `None` if the kernel has it already.
    verdict: Option<FastPathEntry>,
}

/// The names that have been resolved, and their addresses.
type Resolved = SmallVec<[(Arc<str>, IpAddr); 1]>;

/// The results of earlier lookups for the connection: resolved names, and resources that are not in
/// the mesh.
type Known<'a> = (&'a [(Arc<str>, IpAddr)], &'a [DemandKey]);

/// Determines the destination and the route. Each decision uses one view: a change in between must
/// not mix two states of the mesh. If a name has to be resolved or the control plane has to be
/// asked, the decision is made again afterwards, by the view in force then.
async fn find(
    context: &Rc<PodContext>,
    (client, dialled): (SocketAddr, &Dialled<'_>),
    info: &mut ConnectionInfo,
) -> Result<(Arc<View>, Judged), OutboundError> {
    let shared = &context.worker.proxy;
    let patience = (WaitKind::Outbound, shared.waits.deadline());
    let origin = match &dialled.asked {
        None => {
            origin(context, dialled.app, client)?.ok_or(OutboundError::NotCaptured { client })?
        }
        Some(asked) => {
            // The meaning of a name depends on the client.
            if matches!(asked, Destination::Name(..)) {
                context.wait_for_own(patience, dialled.gone()).await?;
            }
            CapturedDestination {
                destination: socks_destination(context, asked).await?,
                choice: BackendChoice::Any,
            }
        }
    };
    info.dialled = origin.destination;
    info.destination = origin.destination;
    let random = context.worker.random();
    let mut resolved = Resolved::new();
    let mut discovered = Discovered::default();
    loop {
        let view = shared.fast_path.view_owned();
        let known = (resolved.as_slice(), discovered.absent.as_slice());
        let judged = match judge(context, &origin, (known, random), info, &view) {
            Err(OutboundError::Route(RouteError::NotDiscovered { key })) => {
                let on_demand = shared.on_demand.as_deref();
                if !discovered.found_only_service(on_demand, &key, &view.mesh) {
                    discovered
                        .fetch(on_demand, &context.outbound_limit, key)
                        .await?;
                }
                continue;
            }
            Err(error) => {
                wait_for(context, error, (patience, dialled)).await?;
                continue;
            }
            Ok(judged) => judged,
        };
        let Route::Resolve { hostname } = judged.route else {
            return Ok((view, judged));
        };
        if resolved.len() >= MOST_NAMES {
            return Err(OutboundError::TooManyNames { hostname });
        }
        if let Some(source) = &info.source {
            shared.telemetry.dns().on_demand(source, &hostname);
        }
        let pod = NetnsCookie(context.pod.netns.cookie());
        let found = shared.resolver.resolve(&hostname, pod).await?;
        let address = choose_address(&found, origin.destination.ip().to_canonical(), random);
        let empty = || ResolveError::Empty {
            hostname: hostname.clone(),
        };
        resolved.push((hostname.clone(), address.ok_or_else(empty)?));
    }
}

/// If a decision lacks the workload of the pod or of another pod of this node, waits until the
/// control plane has pushed it.
///
/// # Errors
/// Any other error is returned unchanged.
async fn wait_for(
    context: &PodContext,
    error: OutboundError,
    (patience, dialled): ((WaitKind, tokio::time::Instant), &Dialled<'_>),
) -> Result<(), OutboundError> {
    let gone = dialled.gone();
    match error {
        OutboundError::UnknownWorkload { .. } => context.wait_for_own(patience, gone).await?,
        OutboundError::Route(RouteError::NotPushed { uid }) => {
            context.wait_for_neighbour(&uid.0, patience.1, gone).await?;
        }
        other => return Err(other),
    }
    Ok(())
}

/// The original destination, from the kernel programs or from the rule that redirected the
/// connection.
fn origin(
    context: &PodContext,
    app: &TcpStream,
    client: SocketAddr,
) -> Result<Option<CapturedDestination>, OutboundError> {
    let pod = NetnsCookie(context.pod.netns.cookie());
    if let Some(kernel) = &context.worker.proxy.kernel {
        return Ok(kernel.original_destination(pod, client)?);
    }
    let original = pods::redirected_from(app).map_err(OutboundError::Original)?;
    if original.is_none() {
        // Applications do not dial this port; programs of another component may have redirected the
        // connection.
        context.worker.proxy.recheck.name(pod);
    }
    Ok(original.map(|destination| CapturedDestination {
        destination,
        choice: BackendChoice::Any,
    }))
}

fn judge(
    context: &PodContext,
    origin: &CapturedDestination,
    ((resolved, absent), random): (Known<'_>, u64),
    info: &mut ConnectionInfo,
    view: &Arc<View>,
) -> Result<Judged, OutboundError> {
    let unknown = || unknown(context, absent, view);
    let source = context.pod.workload(&view.mesh).ok_or_else(unknown)?;
    info.source = Some(source.clone());
    let call = FastPathKey {
        pod: NetnsCookie(context.pod.netns.cookie()),
        destination: origin.destination,
    };
    let mut verdict = fastpath::outbound_entry(&call, absent, view);
    let mut except = SmallVec::<[SocketAddr; 8]>::new();
    if origin.choice == BackendChoice::Unlisted
        && let Some(known) = verdict.take()
    {
        // The kernel has the entry, and its random choice fell on a backend outside the entry.
        except.extend(known.backends.iter().map(|backend| backend.to));
    }
    let departure = OutboundRequest {
        except: &except,
        resolved,
        absent,
        ..OutboundRequest::new(source, origin.destination)
    };
    let route = route(&departure, view, random)?;
    describe(&route, source, info);
    Ok(Judged {
        route,
        call,
        verdict,
    })
}

/// The pod's own workload is unknown: it is discovered on demand, once.
fn unknown(context: &PodContext, absent: &[DemandKey], view: &View) -> OutboundError {
    let uid = &context.pod.uid;
    let key = DemandKey::Workload(uid.clone());
    let known = view.mesh.is_complete() || view.mesh.workload_by_uid(uid).is_some();
    if known || absent.contains(&key) {
        return OutboundError::UnknownWorkload { uid: uid.0.clone() };
    }
    RouteError::NotDiscovered { key }.into()
}

/// Fills in what the route determines about the connection.
fn describe(route: &Route, source: &Workload, info: &mut ConnectionInfo) {
    match route {
        Route::Passthrough {
            to,
            workload,
            service,
        } => {
            info.destination = *to;
            info.workload.clone_from(workload);
            info.service.clone_from(service);
        }
        Route::Direct {
            to,
            workload,
            service,
            ..
        } => {
            info.destination = *to;
            info.source_identity = Some(source.identity.clone());
            info.destination_identity = Some(workload.identity.clone());
            info.workload = Some(workload.clone());
            info.service.clone_from(service);
        }
        Route::Tunnel(hop) => {
            // The next hop that gets the application's bytes. As in Istio, the workload and its
            // identity are those of the waypoint or gateway, and the service is the dialled one.
            if let Authority::Address(to) = hop.authority {
                info.destination = to;
            }
            info.hbone = Some(Tunnelled {
                at: hop.at,
                authority: hop.authority.clone(),
            });
            info.source_identity = Some(source.identity.clone());
            info.destination_identity = hop.expected.first().cloned();
            info.workload = Some(hop.workload.clone());
            info.service.clone_from(&hop.service);
        }
        Route::Resolve { .. } => {}
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
