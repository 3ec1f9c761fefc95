//! A connection that a pod's application opened: accept → route → tunnel or passthrough →
//! relay → report.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;

use super::passthrough;
use super::relay::{self, Side};
use super::report::{Facts, Failure, Record};
use super::route::{Departure, Route, RouteError, route};
use super::tunnel::{self, DialError};
use super::worker::Here;
use crate::hbone::{DialFailure, OpenError, Tunnel};
use crate::kernel::{self, NetnsCookie};
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

/// Carries one connection from its acceptance to its end.
pub(super) async fn carry(here: Rc<Here>, app: TcpStream, client: SocketAddr) {
    // Boxed so that the memory of the set-up is gone while the connection lives.
    let departed = Box::pin(depart(&here, client)).await;
    match departed {
        Ok((Onward::Tunnel(tunnel), record)) => {
            let ended = relay::tunnelled(app, tunnel, Side::Source, record.series()).await;
            record.end(&ended);
        }
        Ok((Onward::Plain(server), record)) => {
            let ended = relay::plain(app, server, record.series()).await;
            record.end(&ended);
        }
        // The application must not take a refusal for an orderly end.
        Err(()) => abort_on_drop(&app),
    }
}

async fn depart(here: &Rc<Here>, client: SocketAddr) -> Result<(Onward, Record), ()> {
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
    let telemetry = &here.local.shared.telemetry;
    let route = match judge(here, client, &mut facts) {
        Ok(route) => route,
        Err(error) => {
            Record::open(telemetry, facts).fail(&error);
            return Err(());
        }
    };
    let record = Record::open(telemetry, facts);
    let source_ip = here.pod.known_as(client).ip();
    match connect(here, source_ip, record.source(), route).await {
        Ok(onward) => Ok((onward, record)),
        Err(error) => {
            record.fail(&error);
            Err(())
        }
    }
}

/// Finds out whom the application called, and which way leads there.
fn judge(here: &Here, client: SocketAddr, facts: &mut Facts) -> Result<Route, DepartError> {
    let shared = &here.local.shared;
    let origin = shared
        .kernel
        .original_destination(NetnsCookie(here.pod.netns.cookie()), client)?
        .ok_or(DepartError::NotCaptured { client })?;
    let destination = origin.destination;
    facts.destination = destination;
    let mesh = shared.mesh.load();
    let source =
        mesh.workload_by_uid(&here.pod.uid)
            .ok_or_else(|| DepartError::UnknownWorkload {
                uid: here.pod.uid.0.clone(),
            })?;
    facts.source = Some(source.clone());
    let route = route(
        &Departure {
            source,
            destination,
        },
        &mesh,
        here.local.dice(),
    )?;
    match &route {
        Route::Passthrough {
            to,
            workload,
            service,
        } => {
            facts.destination = *to;
            facts.workload.clone_from(workload);
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
    Ok(route)
}

async fn connect(
    here: &Rc<Here>,
    source_ip: IpAddr,
    source: Option<&Arc<Workload>>,
    route: Route,
) -> Result<Onward, DepartError> {
    match route {
        Route::Passthrough { to, .. } => passthrough::connect(here, to)
            .await
            .map(Onward::Plain)
            .map_err(|source| DepartError::Connect { to, source }),
        Route::Tunnel {
            to,
            hbone,
            expected,
            ..
        } => {
            let source = source.ok_or_else(|| DepartError::UnknownWorkload {
                uid: here.pod.uid.0.clone(),
            })?;
            let request = tunnel::Request {
                source,
                source_ip,
                expected,
                hbone,
                to,
            };
            Ok(Onward::Tunnel(tunnel::open(here, request).await?))
        }
    }
}
