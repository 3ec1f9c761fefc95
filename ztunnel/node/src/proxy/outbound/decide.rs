//! The decision about a connection that a pod opened: its original destination, its route, and the
//! fast-path entry that later connections of its kind may use. Waits for what the decision lacks:
//! workloads that are not pushed yet, resources of on-demand discovery, host names.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::super::report::{ConnectionInfo, Tunnelled};
use super::super::resolve::ResolveError;
use super::super::socks5::message::Destination;
use super::super::worker::PodContext;
use super::Dialled;
use super::error::OutboundError;
use super::socks_destination::socks_destination;
use crate::bpf::{BackendChoice, CapturedDestination};
use crate::discovery::Discovered;
use crate::pods;
use mesh::fastpath::{self, FastPathEntry, FastPathKey};
use mesh::route::{OutboundRequest, Route, RouteError, choose_address, route};
use mesh::{Authority, DemandKey, NetnsCookie, View, Workload};
use telemetry::WaitKind;

/// The maximum number of names to resolve for one connection: a waypoint's or a backend's, and a
/// gateway's.
const MAX_NAMES: usize = 3;

/// The routing decision for a connection.
pub(super) struct OutboundDecision {
    pub(super) route: Route,
    pub(super) key: FastPathKey,
    /// The fast-path entry for later connections of the kind. `None` if the kernel has it already.
    pub(super) entry: Option<FastPathEntry>,
}

/// The names that have been resolved, and their addresses.
type Resolved = SmallVec<[(Arc<str>, IpAddr); 1]>;

/// The results of earlier lookups for the connection: resolved names, and resources that are not in
/// the mesh.
type Known<'a> = (&'a [(Arc<str>, IpAddr)], &'a [DemandKey]);

/// Determines the destination and the route. Each decision uses one view: a change in between must
/// not mix two states of the mesh. If a name has to be resolved or the control plane has to be
/// asked, the decision is made again afterwards, by the view in force then.
pub(super) async fn find(
    context: &Rc<PodContext>,
    (client, dialled): (SocketAddr, &Dialled<'_>),
    info: &mut ConnectionInfo,
) -> Result<(Arc<View>, OutboundDecision), OutboundError> {
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
        let decision = match decide(context, &origin, (known, random), info, &view) {
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
            Ok(decision) => decision,
        };
        let Route::Resolve { hostname } = decision.route else {
            return Ok((view, decision));
        };
        if resolved.len() >= MAX_NAMES {
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

fn decide(
    context: &PodContext,
    origin: &CapturedDestination,
    ((resolved, absent), random): (Known<'_>, u64),
    info: &mut ConnectionInfo,
    view: &Arc<View>,
) -> Result<OutboundDecision, OutboundError> {
    let unknown = || unknown(context, absent, view);
    let source = context.pod.workload(&view.mesh).ok_or_else(unknown)?;
    info.source = Some(source.clone());
    let key = FastPathKey {
        pod: NetnsCookie(context.pod.netns.cookie()),
        destination: origin.destination,
    };
    let mut entry = fastpath::outbound_entry(&key, absent, view);
    let mut except = SmallVec::<[SocketAddr; 8]>::new();
    if origin.choice == BackendChoice::Unlisted
        && let Some(known) = entry.take()
    {
        // The kernel has the entry, and its random choice fell on a backend outside the entry.
        except.extend(known.backends.iter().map(|backend| backend.to));
    }
    let request = OutboundRequest {
        except: &except,
        resolved,
        absent,
        ..OutboundRequest::new(source, origin.destination)
    };
    let route = route(&request, view, random)?;
    describe(&route, source, info);
    Ok(OutboundDecision { route, key, entry })
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
