//! A connection that a pod's application opened: accept → route → tunnel, direct or passthrough →
//! relay → report. What needs no tunnel is carried here only once: the verdict goes into the
//! kernel, and later connections of its kind never come by.

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::authorize::Arrival;
use super::direct::verdict;
use super::passthrough;
use super::permit::{Denied, permit};
use super::relay::{self, Ended, Side};
use super::report::{Facts, Failure, Record};
use super::route::{Departure, Route, RouteError, route};
use super::tunnel::{self, DialError};
use super::view::View;
use super::worker::Here;
use crate::hbone::{DialFailure, OpenError, Tunnel};
use crate::kernel::{self, Call, Choice, NetnsCookie, Verdict};
use crate::mesh::Workload;
use crate::pods::abort_on_drop;
use crate::telemetry::{Reporter, ResponseFlag};
use crate::tls;

/// Why a connection did not leave.
#[derive(Debug, thiserror::Error)]
enum DepartError {
    /// The kernel programs know nothing about this connection.
    #[error("nobody redirected this connection: {client} connected to the proxy's port itself")]
    NotCaptured {
        /// Who connected.
        client: SocketAddr,
    },
    /// The map of original destinations could not be asked.
    #[error("cannot learn the original destination: {0}")]
    Kernel(#[from] kernel::Error),
    /// The pod is enrolled, but the mesh no longer knows it.
    #[error("workload {uid} is not in the mesh")]
    UnknownWorkload {
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// No way leads to the destination.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The policies of a pod of this node refused it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The tunnel could not be opened.
    #[error(transparent)]
    Tunnel(#[from] OpenError<DialError>),
    /// The plain connection could not be opened.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Where.
        to: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Failure for DepartError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::NotCaptured { .. }
            | Self::Kernel(_)
            | Self::UnknownWorkload { .. }
            | Self::Route(_)
            | Self::Connect { .. } => ResponseFlag::Connect,
            Self::Denied(_) => ResponseFlag::Deny,
            Self::Tunnel(error) => tunnel_flag(error),
        }
    }
}

fn tunnel_flag(error: &OpenError<DialError>) -> ResponseFlag {
    let OpenError::Connection { failure } = error else {
        return match error {
            OpenError::Refused { status, .. } if status.as_u16() == 401 => ResponseFlag::Deny,
            OpenError::Refused { .. } => ResponseFlag::Connect,
            _ => ResponseFlag::H2HandshakeFailure,
        };
    };
    match failure {
        DialFailure::Dial { error } => match &**error {
            DialError::Connect { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => {
                ResponseFlag::NetworkPolicy
            }
            DialError::Connect { .. } => ResponseFlag::Connect,
            DialError::Tls(tls::Error::Issue { .. }) => ResponseFlag::IdentityError,
            DialError::Tls(_) | DialError::HandshakeTimeout { .. } => ResponseFlag::TlsFailure,
        },
        DialFailure::DialTimeout { .. } | DialFailure::Abandoned => ResponseFlag::Connect,
        DialFailure::Handshake { .. } => ResponseFlag::H2HandshakeFailure,
    }
}

/// What carries the connection from here on.
enum Onward {
    Tunnel(Tunnel),
    Plain(TcpStream),
}

/// The records of one connection. What goes to a pod of this node without a tunnel is reported
/// for both ends, as if each had a proxy of its own.
struct Records {
    source: Record,
    destination: Option<Record>,
}

impl Records {
    fn open(here: &Here, facts: Facts, destination: Option<Facts>) -> Self {
        let telemetry = &here.local.shared.telemetry;
        Self {
            source: Record::open(telemetry, facts),
            destination: destination.map(|facts| Record::open(telemetry, facts)),
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

/// Carries one connection from its acceptance to its end.
pub(super) async fn carry(here: Rc<Here>, app: TcpStream, client: SocketAddr) {
    // Boxed so that the memory of the set-up is gone while the connection lives.
    let departed = Box::pin(depart(&here, client)).await;
    match departed {
        Ok((Onward::Tunnel(tunnel), records)) => {
            let series = records.source.series();
            let ended = relay::tunnelled(app, tunnel, Side::Source, series, pending()).await;
            records.end(&ended);
        }
        Ok((Onward::Plain(server), records)) => {
            let series = records.source.series();
            let ended = relay::plain(app, server, here.gait(), series, pending()).await;
            records.end(&ended);
        }
        // The application must not take a refusal for an orderly end.
        Err(()) => abort_on_drop(&app),
    }
}

async fn depart(here: &Rc<Here>, client: SocketAddr) -> Result<(Onward, Records), ()> {
    let mut facts = Facts {
        reporter: Reporter::Source,
        began: Instant::now(),
        client: here.pod.known_as(client),
        source: None,
        source_identity: None,
        destination: client,
        hbone: None,
        workload: None,
        destination_identity: None,
        service: None,
    };
    // One view for the whole judgement: a change in between must not mix two meshes.
    let view = here.local.shared.keeper.view_owned();
    let judged = match judge(here, client, &mut facts, &view) {
        Ok(judged) => judged,
        Err(error) => {
            Records::open(here, facts, None).fail(&error);
            return Err(());
        }
    };
    let arrival = matches!(judged.route, Route::Direct { .. }).then(|| Facts {
        reporter: Reporter::Destination,
        service: None,
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
            Err(())
        }
    }
}

/// What was found out about a connection.
struct Judged {
    route: Route,
    call: Call,
    /// What later connections of the kind may do, if the kernel does not know it yet.
    verdict: Option<Verdict>,
}

/// Finds out whom the application called, and which way leads there.
fn judge(
    here: &Here,
    client: SocketAddr,
    facts: &mut Facts,
    view: &Arc<View>,
) -> Result<Judged, DepartError> {
    let shared = &here.local.shared;
    let pod = NetnsCookie(here.pod.netns.cookie());
    let origin = shared
        .kernel
        .original_destination(pod, client)?
        .ok_or(DepartError::NotCaptured { client })?;
    facts.destination = origin.destination;
    let source = here
        .pod
        .workload(&view.mesh)
        .ok_or_else(|| DepartError::UnknownWorkload {
            uid: here.pod.uid.0.clone(),
        })?;
    facts.source = Some(source.clone());
    let call = Call {
        pod,
        destination: origin.destination,
    };
    let mut verdict = verdict::call(&call, view);
    let mut except = SmallVec::<[SocketAddr; 8]>::new();
    if origin.choice == Choice::Elsewhere
        && let Some(known) = verdict.take()
    {
        // The kernel has it, and its dice left this connection to us.
        except.extend(known.backends.iter().map(|backend| backend.to));
    }
    let departure = Departure {
        source,
        destination: origin.destination,
        except: &except,
    };
    let route = route(&departure, view, here.local.dice())?;
    describe(&route, source, facts);
    Ok(Judged {
        route,
        call,
        verdict,
    })
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
        Route::Tunnel {
            to,
            hbone,
            expected,
            workload,
            service,
        } => {
            facts.destination = *to;
            facts.hbone = Some(*hbone);
            facts.source_identity = Some(source.identity.clone());
            facts.destination_identity = expected.first().cloned();
            facts.workload = Some(workload.clone());
            facts.service.clone_from(service);
        }
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
            )?;
            (to, Some(server))
        }
        Route::Tunnel {
            to,
            hbone,
            expected,
            ..
        } => {
            let request = tunnel::Request {
                source,
                source_ip,
                expected,
                hbone,
                to,
            };
            return Ok(Onward::Tunnel(tunnel::open(here, request).await?));
        }
    };
    let connected = passthrough::connect(here, dialled, to, server).await;
    let failed = |source| DepartError::Connect { to, source };
    connected.map(Onward::Plain).map_err(failed)
}
