//! A connection that a pod's application opened: accept → route → tunnel, direct or passthrough →
//! relay → report. What needs no tunnel is carried here only once: the verdict goes into the
//! kernel, and later connections of its kind never come by.

mod asked;
mod error;

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::live::Revoked;
use super::open_tunnel::{self, Opened};
use super::passthrough;
use super::permit::permit;
use super::relay::{self, Ended, Side};
use super::report::{Facts, Record, Tunnelled};
use super::resolve::ResolveError;
use super::socks5::{self, message::Destination};
use super::worker::Here;
use crate::bpf::{Choice, Origin};
use crate::discovery::Learned;
use crate::pods::{self, abort_on_drop};
use mesh::Authority;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::Arrival;
use mesh::fastpath;
use mesh::fastpath::{FastPathEntry, FastPathKey};
use mesh::inbound::backed;
use mesh::route::{Departure, Route, RouteError, choose_address, route};
use mesh::{DemandKey, Workload};
use telemetry::Reporter;
use tunnel::hbone::Revoking;

use asked::asked_for;
use error::DepartError;

/// How many names are resolved for one connection: a waypoint's or a backend's, and a gateway's.
const MOST_NAMES: usize = 3;

/// What carries the connection from here on.
enum Onward {
    Tunnel(Opened),
    /// To a pod of this node, if it is one.
    Plain(TcpStream, Option<NetnsCookie>),
}

/// The records of one connection. What goes to a pod of this node without a tunnel is reported
/// for both ends, as if each had a proxy of its own.
struct Records {
    source: Record,
    destination: Option<Record>,
}

impl Records {
    fn open(here: &Here, facts: Facts, destination: Option<Facts>) -> Self {
        let local = &here.local;
        Self {
            source: Record::open(local, facts),
            destination: destination.map(|facts| Record::open(local, facts)),
        }
    }

    fn end(self, ended: &Ended) {
        if let Some(destination) = self.destination {
            destination.end_beside(ended);
        }
        self.source.end(ended);
    }

    fn fail(self, error: &DepartError) {
        if let Some(destination) = self.destination {
            destination.fail(error);
        }
        self.source.fail(error);
    }
}

/// Carries one connection that was captured, from its acceptance to its end.
pub(super) async fn carry(here: Rc<Here>, app: TcpStream, client: SocketAddr) {
    // Boxed so that the memory of the set-up is gone while the connection lives.
    match Box::pin(depart(&here, client, Dialled::Captured(&app))).await {
        Ok(departed) => relay(&here, app, departed).await,
        // The application must not take a refusal for an orderly end.
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

/// Carries one connection whose destination the application says (SOCKS).
pub(super) async fn carry_asked(here: Rc<Here>, mut app: TcpStream, client: SocketAddr) {
    if let Some(departed) = Box::pin(depart_asked(&here, &mut app, client)).await {
        relay(&here, app, departed).await;
    }
}

async fn depart_asked(
    here: &Rc<Here>,
    app: &mut TcpStream,
    client: SocketAddr,
) -> Option<(Onward, Records)> {
    let asked = match socks5::ask(app).await {
        Ok(asked) => asked,
        Err(error) => {
            tracing::debug!(pod = %here.pod.uid.0, "a SOCKS client is not served: {error}");
            return None;
        }
    };
    match depart(here, client, Dialled::Asked(asked)).await {
        Ok(departed) => {
            let confirmed = socks5::confirm(app).await;
            // A record that nobody ends counts as a failure.
            confirmed.is_ok().then_some(departed)
        }
        Err(error) => {
            socks5::refuse(app, &error.reply().message()).await;
            None
        }
    }
}

async fn relay(here: &Here, app: TcpStream, (onward, records): (Onward, Records)) {
    let series = records.source.series();
    let ended = match onward {
        Onward::Tunnel(opened) => {
            let (tunnel, cut) = (opened.tunnel, revoked(opened.revoking));
            let ended = relay::tunnelled(app, tunnel, Side::Source, series, cut).await;
            ended.explained(&opened.revoked)
        }
        Onward::Plain(server, pod) => {
            let ended = relay::plain(app, server, here.gait(), series, pending()).await;
            // The kernel stops it where rules inside the pod have sent it elsewhere.
            let shared = &here.local.shared;
            if let (Some(pod), Some(_), Some(_)) = (pod, &ended.broken, &shared.kernel) {
                shared.suspects.name(pod);
            }
            ended
        }
    };
    records.end(&ended);
}

/// How a destination is known.
enum Dialled<'a> {
    /// The kernel programs have remembered it, or the rule that has redirected this connection.
    Captured(&'a TcpStream),
    /// The application says it.
    Asked(Destination),
}

async fn depart(
    here: &Rc<Here>,
    client: SocketAddr,
    dialled: Dialled<'_>,
) -> Result<(Onward, Records), DepartError> {
    let mut facts = Facts {
        reporter: Reporter::Source,
        began: Instant::now(),
        client: here.pod.known_as(client),
        dialled: client,
        source: None,
        source_identity: None,
        destination: client,
        hbone: None,
        workload: None,
        destination_identity: None,
        service: None,
    };
    let (view, judged) = match find(here, (client, dialled), &mut facts).await {
        Ok(found) => found,
        Err(error) => {
            Records::open(here, facts, None).fail(&error);
            return Err(error);
        }
    };
    let arrival = matches!(judged.route, Route::Direct { .. }).then(|| Facts {
        reporter: Reporter::Destination,
        service: facts.workload.as_deref().and_then(|workload| {
            let said = facts.service.as_ref().map(|service| &*service.hostname);
            backed(workload, &view.mesh, said, facts.destination.port())
        }),
        ..facts.clone()
    });
    let records = Records::open(here, facts, arrival);
    let Judged {
        route,
        call,
        verdict,
    } = judged;
    match connect(here, &records.source, (call.destination, route), &view).await {
        Ok(onward) => {
            // Only now: what the proxy cannot reach, the kernel shall not try for ever.
            if let Some(verdict) = verdict {
                here.local
                    .shared
                    .keeper
                    .remember_call(&call, &verdict, &view);
            }
            Ok((onward, records))
        }
        Err(error) => {
            records.fail(&error);
            Err(error)
        }
    }
}

/// What was found out about a connection.
struct Judged {
    route: Route,
    call: FastPathKey,
    /// What later connections of the kind may do, if the kernel does not know it yet.
    verdict: Option<FastPathEntry>,
}

/// What names have been resolved to.
type Resolved = SmallVec<[(Arc<str>, IpAddr); 1]>;

/// What was asked for on behalf of a connection: names, and what is not in the mesh.
type Known<'a> = (&'a [(Arc<str>, IpAddr)], &'a [DemandKey]);

/// Finds out whom the application called, and which way leads there. One view for the whole
/// judgement: a change in between must not mix two meshes. Where a name has to be resolved, or the
/// control plane to be asked, all is judged again afterwards, by the view that is in force then.
async fn find(
    here: &Rc<Here>,
    (client, dialled): (SocketAddr, Dialled<'_>),
    facts: &mut Facts,
) -> Result<(Arc<View>, Judged), DepartError> {
    let shared = &here.local.shared;
    let origin = match dialled {
        Dialled::Captured(app) => {
            origin(here, app, client)?.ok_or(DepartError::NotCaptured { client })?
        }
        Dialled::Asked(asked) => Origin {
            destination: asked_for(here, asked).await?,
            choice: Choice::Any,
        },
    };
    facts.dialled = origin.destination;
    facts.destination = origin.destination;
    let dice = here.local.dice();
    let mut resolved = Resolved::new();
    let mut learned = Learned::default();
    loop {
        let view = shared.keeper.view_owned();
        let known = (resolved.as_slice(), learned.absent.as_slice());
        let judged = match judge(here, &origin, (known, dice), facts, &view) {
            Err(DepartError::Route(RouteError::Unasked { key })) => {
                let questions = shared.questions.as_deref();
                if !learned.knows(questions, &key, &view.mesh) {
                    learned.ask(questions, &here.leaving, key).await?;
                }
                continue;
            }
            judged => judged?,
        };
        let Route::Resolve { hostname } = judged.route else {
            return Ok((view, judged));
        };
        if resolved.len() >= MOST_NAMES {
            return Err(DepartError::TooManyNames { hostname });
        }
        if let Some(source) = &facts.source {
            shared.telemetry.dns().on_demand(source, &hostname);
        }
        let pod = NetnsCookie(here.pod.netns.cookie());
        let found = shared.resolver.resolve(&hostname, pod).await?;
        let address = choose_address(&found, origin.destination.ip().to_canonical(), dice);
        let empty = || ResolveError::Empty {
            hostname: hostname.clone(),
        };
        resolved.push((hostname.clone(), address.ok_or_else(empty)?));
    }
}

/// What the application called, as the kernel programs have written it down, or the rule that
/// redirected the connection.
fn origin(here: &Here, app: &TcpStream, client: SocketAddr) -> Result<Option<Origin>, DepartError> {
    let pod = NetnsCookie(here.pod.netns.cookie());
    if let Some(kernel) = &here.local.shared.kernel {
        return Ok(kernel.original_destination(pod, client)?);
    }
    let original = pods::redirected_from(app).map_err(DepartError::Original)?;
    if original.is_none() {
        // Nobody dials this port, unless programs that are not ours have sent it here.
        here.local.shared.suspects.name(pod);
    }
    Ok(original.map(|destination| Origin {
        destination,
        choice: Choice::Any,
    }))
}

fn judge(
    here: &Here,
    origin: &Origin,
    ((resolved, absent), dice): (Known<'_>, u64),
    facts: &mut Facts,
    view: &Arc<View>,
) -> Result<Judged, DepartError> {
    let unknown = || unknown(here, absent, view);
    let source = here.pod.workload(&view.mesh).ok_or_else(unknown)?;
    facts.source = Some(source.clone());
    let call = FastPathKey {
        pod: NetnsCookie(here.pod.netns.cookie()),
        destination: origin.destination,
    };
    let mut verdict = fastpath::outbound_entry(&call, absent, view);
    let mut except = SmallVec::<[SocketAddr; 8]>::new();
    if origin.choice == Choice::Elsewhere
        && let Some(known) = verdict.take()
    {
        // The kernel has it, and its dice left this connection to us.
        except.extend(known.backends.iter().map(|backend| backend.to));
    }
    let departure = Departure {
        except: &except,
        resolved,
        absent,
        ..Departure::new(source, origin.destination)
    };
    let route = route(&departure, view, dice)?;
    describe(&route, source, facts);
    Ok(Judged {
        route,
        call,
        verdict,
    })
}

/// The pod's own workload is not known: the control plane is asked for it, once.
fn unknown(here: &Here, absent: &[DemandKey], view: &View) -> DepartError {
    let uid = &here.pod.uid;
    let key = DemandKey::Workload(uid.clone());
    let known = view.mesh.is_whole() || view.mesh.workload_by_uid(uid).is_some();
    if known || absent.contains(&key) {
        return DepartError::UnknownWorkload { uid: uid.0.clone() };
    }
    RouteError::Unasked { key }.into()
}

/// What the route tells about the connection.
fn describe(route: &Route, source: &Workload, facts: &mut Facts) {
    match route {
        Route::Passthrough {
            to,
            workload,
            service,
        } => {
            facts.destination = *to;
            facts.workload.clone_from(workload);
            facts.service.clone_from(service);
        }
        Route::Direct {
            to,
            workload,
            service,
            ..
        } => {
            facts.destination = *to;
            facts.source_identity = Some(source.identity.clone());
            facts.destination_identity = Some(workload.identity.clone());
            facts.workload = Some(workload.clone());
            facts.service.clone_from(service);
        }
        Route::Tunnel(hop) => {
            // Who is there for the application's bytes next: as Istio has it, the workload and its
            // identity are those of the waypoint or gateway, the service is the one dialled.
            if let Authority::Address(to) = hop.authority {
                facts.destination = to;
            }
            facts.hbone = Some(Tunnelled {
                at: hop.at,
                authority: hop.authority.clone(),
            });
            facts.source_identity = Some(source.identity.clone());
            facts.destination_identity = hop.expected.first().cloned();
            facts.workload = Some(hop.workload.clone());
            facts.service.clone_from(&hop.service);
        }
        Route::Resolve { .. } => {}
    }
}

async fn connect(
    here: &Rc<Here>,
    record: &Record,
    (dialled, route): (SocketAddr, Route),
    view: &View,
) -> Result<Onward, DepartError> {
    let unknown = || DepartError::UnknownWorkload {
        uid: here.pod.uid.0.clone(),
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
            permit(
                &view.mesh,
                &Arrival {
                    workload: &workload,
                    source: Some(&source.identity),
                    source_ip,
                    destination: to,
                },
                here.local.shared.telemetry.trials(),
            )?;
            (to, Some(server))
        }
        Route::Tunnel(hop) => {
            let request = open_tunnel::Request {
                source,
                source_ip,
                hop,
            };
            return Ok(Onward::Tunnel(open_tunnel::open(here, request).await?));
        }
        Route::Resolve { hostname } => return Err(DepartError::TooManyNames { hostname }),
    };
    let connected = passthrough::connect(here, dialled, to, server).await;
    let failed = |source| DepartError::Connect { to, source };
    connected
        .map(|stream| Onward::Plain(stream, server))
        .map_err(failed)
}
