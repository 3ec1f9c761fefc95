//! A connection that arrives at a pod: in a tunnel of a peer, or as plaintext.
//!
//! accept → authorize → deliver with the client's address → relay → report. The verdict is the
//! destination's: whatever the client's node thought of it, here every policy is asked.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::authorize::Arrival;
use super::direct::verdict;
use super::live::{Admitted, Live, Revoked};
use super::permit::{Denied, permit};
use super::proxy_protocol;
use super::relay::{self, Side};
use super::report::{Facts, Failure, Record};
use super::route::HBONE_PORT;
use super::tunnel;
use super::view::View;
use super::worker::Here;
use crate::hbone::{self, Authority, TunnelError};
use crate::kernel::{self, NetnsCookie};
use crate::mesh::{Identity, Workload};
use crate::pods::{self, PROXY_PORTS, Source, abort_on_drop};
use crate::telemetry::{Reporter, ResponseFlag};
use crate::tls;

/// Why a connection did not arrive.
#[derive(Debug, thiserror::Error)]
enum ArriveError {
    /// The pod is enrolled, but the mesh no longer knows it.
    #[error("workload {uid} is not in the mesh")]
    UnknownWorkload {
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The tunnel leads to somebody else.
    #[error("CONNECT {authority} does not lead to this pod, whose addresses are {addresses:?}")]
    NotThisPod {
        /// What was asked for.
        authority: String,
        /// What would have been right.
        addresses: Vec<std::net::IpAddr>,
    },
    /// The tunnel leads back into the proxy.
    #[error("{destination} is a port of the proxy itself")]
    ProxyPort {
        /// What was asked for.
        destination: SocketAddr,
    },
    /// A policy refused it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Policy changed while the application was being connected.
    #[error(transparent)]
    Revoked(#[from] Revoked),
    /// The application could not be reached.
    #[error("cannot connect to the application at {destination}: {source}")]
    Application {
        /// Where it should listen.
        destination: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tunnel ended before it could be accepted.
    #[error("the tunnel ended while the application was being connected: {0}")]
    Gone(#[from] TunnelError),
}

impl ArriveError {
    /// The answer to a CONNECT (wire facts, "HBONE").
    fn status(&self) -> StatusCode {
        match self {
            Self::NotThisPod { .. } | Self::ProxyPort { .. } => StatusCode::BAD_REQUEST,
            Self::Denied(_) | Self::Revoked(_) => StatusCode::UNAUTHORIZED,
            Self::UnknownWorkload { .. } | Self::Application { .. } | Self::Gone(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

impl Failure for ArriveError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) | Self::Revoked(_) => ResponseFlag::Deny,
            Self::UnknownWorkload { .. } => ResponseFlag::IdentityError,
            Self::NotThisPod { .. }
            | Self::ProxyPort { .. }
            | Self::Application { .. }
            | Self::Gone(_) => ResponseFlag::Connect,
        }
    }
}

/// Why a peer may not open tunnels to the pod.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    /// The pod is enrolled, but the mesh no longer knows it, so it has no identity to show.
    #[error("the pod's workload is not in the mesh")]
    UnknownWorkload,
    /// Mutual TLS failed.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The peer is too slow, or does not speak TLS at all.
    #[error("no TLS handshake within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
}

impl PeerError {
    fn reason(&self) -> &'static str {
        match self {
            Self::UnknownWorkload => "unknown_workload",
            Self::Tls(error) => error.reason(),
            Self::Timeout { .. } => "handshake_timeout",
        }
    }
}

/// Carries one plaintext connection that the kernel programs steered to us.
pub(super) async fn carry_plain(here: Rc<Here>, stream: TcpStream, client: SocketAddr) {
    // The socket's own address is what the client dialled.
    let Ok(destination) = pods::local_of(&stream) else {
        return;
    };
    match Box::pin(arrive(&here, client, None, destination)).await {
        Ok((app, live, record)) => {
            let cut = live.revoked();
            let ended = relay::plain(stream, app, here.gait(), record.series(), cut).await;
            record.end(&ended);
        }
        Err(_status) => abort_on_drop(&stream),
    }
}

/// Serves the tunnels of one peer.
pub(super) async fn serve_tunnels(here: Rc<Here>, stream: TcpStream, peer: SocketAddr) {
    let handshake = Box::pin(handshake(&here, stream)).await;
    let (stream, identity) = match handshake {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(%peer, pod = %here.pod.uid.0, reason = error.reason(), "refused a tunnel peer: {error}");
            return;
        }
    };
    let serve_one = {
        let here = here.clone();
        move |request: hbone::Request| {
            here.spawn(carry_tunnel(here.clone(), request, peer, identity.clone()));
        }
    };
    let served = hbone::serve(stream, &here.local.hbone, here.drain.clone(), serve_one).await;
    if let Err(error) = served {
        tracing::debug!(%peer, pod = %here.pod.uid.0, reason = error.reason(), "tunnel peer: {error}");
    }
}

async fn handshake(
    here: &Here,
    stream: TcpStream,
) -> Result<(tls::Stream<TcpStream>, Identity), PeerError> {
    let shared = &here.local.shared;
    let workload = here.workload();
    let identity = workload.map(|workload| workload.identity.clone());
    let identity = identity.ok_or(PeerError::UnknownWorkload)?;
    let timeout = shared.config.handshake_timeout;
    let secured = async {
        let credentials = shared.certificates.get(&identity).await?;
        tls::accept(stream, &credentials).await
    };
    let stream = tokio::time::timeout(timeout, secured)
        .await
        .map_err(|_elapsed| PeerError::Timeout { after: timeout })??;
    tunnel::log_established(&stream, &identity);
    let peer = stream.peer().clone();
    Ok((stream, peer))
}

/// Carries one tunnel from its CONNECT to its end. The set-up is boxed and gets what it needs
/// before the future begins, so that none of it stays in memory while the tunnel lives.
fn carry_tunnel(
    here: Rc<Here>,
    request: hbone::Request,
    peer: SocketAddr,
    identity: Identity,
) -> impl Future<Output = ()> {
    let opening = Box::pin(open_tunnel(here, request, peer, identity));
    async move {
        if let Some((app, tunnel, live, record)) = opening.await {
            let (side, cut) = (Side::Destination, live.revoked());
            let ended = relay::tunnelled(app, tunnel, side, record.series(), cut).await;
            record.end(&ended);
        }
    }
}

async fn open_tunnel(
    here: Rc<Here>,
    request: hbone::Request,
    peer: SocketAddr,
    identity: Identity,
) -> Option<(TcpStream, hbone::Tunnel, Live, Record)> {
    // A tunnel to a host name is for waypoints and gateways; this proxy is a pod's.
    let destination = match &request.authority {
        Authority::Address(address) => *address,
        Authority::Host(..) => SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0),
    };
    let (app, live, record) = match arrive(&here, peer, Some(identity), destination).await {
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
            record.fail(&ArriveError::Gone(error));
            None
        }
    }
}

/// Judges an arriving connection and connects it to the application.
async fn arrive(
    here: &Here,
    client: SocketAddr,
    identity: Option<Identity>,
    destination: SocketAddr,
) -> Result<(TcpStream, Live, Record), StatusCode> {
    // One view for the whole judgement: a change in between must not mix two meshes.
    let view = here.local.shared.keeper.view_owned();
    let mesh = &view.mesh;
    let workload = here.pod.workload(mesh).cloned();
    let source = mesh
        .workload_by_address(&here.local.shared.config.network, client.ip())
        .cloned();
    let record = Record::open(
        &here.local.shared.telemetry,
        Facts {
            reporter: Reporter::Destination,
            began: Instant::now(),
            client,
            source,
            destination,
            // As at the source: the tunnel ends at the pod's HBONE port.
            hbone: identity
                .is_some()
                .then(|| SocketAddr::new(destination.ip(), HBONE_PORT)),
            destination_identity: identity
                .as_ref()
                .and(workload.as_ref())
                .map(|w| w.identity.clone()),
            source_identity: identity,
            workload,
            service: None,
        },
    );
    let delivered = deliver(here, &view, &record, client, destination).await;
    match delivered {
        Ok((app, live)) => Ok((app, live, record)),
        Err(error) => {
            let status = error.status();
            record.fail(&error);
            Err(status)
        }
    }
}

async fn deliver(
    here: &Here,
    view: &Arc<View>,
    record: &Record,
    client: SocketAddr,
    destination: SocketAddr,
) -> Result<(TcpStream, Live), ArriveError> {
    let uid = &here.pod.uid;
    let workload = here
        .pod
        .workload(&view.mesh)
        .ok_or_else(|| ArriveError::UnknownWorkload { uid: uid.0.clone() })?;
    let identity = record.source_identity();
    check_destination(here, workload, destination)?;
    permit(
        &view.mesh,
        &Arrival {
            workload,
            source: identity,
            source_ip: client.ip(),
            destination,
        },
    )?;
    if identity.is_none() {
        remember(here, view, client, destination);
    }
    let mut to = destination;
    if let Some(port) = workload.application_tunnel.and_then(|tunnel| tunnel.port) {
        to.set_port(port);
    }
    let failed = |source| ArriveError::Application {
        destination: to,
        source,
    };
    let source = Source::Client {
        address: client.ip(),
    };
    let dial = &here.local.shared.config.dial;
    let mut app = dial
        .connect(&here.pod.netns, to, source)
        .await
        .map_err(failed)?;
    if workload
        .application_tunnel
        .is_some_and(|tunnel| tunnel.proxy_protocol)
    {
        let header = proxy_protocol::header(client, destination, identity);
        app.write_all(&header).await.map_err(failed)?;
    }
    let live = here.local.live.admit(
        Admitted {
            pod: NetnsCookie(here.pod.netns.cookie()),
            source: identity.cloned(),
            source_ip: client.ip(),
            destination,
        },
        view,
        &here.local.shared.keeper.view(),
    );
    match live {
        Ok(live) => Ok((app, live)),
        Err(revoked) => {
            abort_on_drop(&app);
            Err(revoked.into())
        }
    }
}

fn check_destination(
    here: &Here,
    workload: &Workload,
    destination: SocketAddr,
) -> Result<(), ArriveError> {
    if !here.pod.owns(destination.ip(), workload) {
        return Err(ArriveError::NotThisPod {
            authority: destination.to_string(),
            addresses: here.pod.addresses.clone(),
        });
    }
    if PROXY_PORTS.contains(&destination.port()) {
        return Err(ArriveError::ProxyPort { destination });
    }
    Ok(())
}

/// Plaintext that was let in need not come by again.
fn remember(here: &Here, view: &Arc<View>, client: SocketAddr, destination: SocketAddr) {
    let arrival = kernel::Arrival {
        pod: NetnsCookie(here.pod.netns.cookie()),
        to: destination,
        from: client.ip(),
    };
    if verdict::arrival(&arrival, view) {
        here.local.shared.keeper.remember_arrival(&arrival, view);
    }
}
