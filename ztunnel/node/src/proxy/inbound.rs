//! A connection that arrives at a pod: in a tunnel of a peer, or as plaintext.
//!
//! accept → authorize → deliver with the client's address → relay → report. The verdict is the
//! destination's: whatever the client's node thought of it, here every policy is asked.

mod caller;
mod error;
mod told;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::live::{Admitted, Live, Revoked};
use super::open_tunnel;
use super::permit::permit;
use super::proxy_protocol;
use super::relay::{self, Side};
use super::report::{Facts, Record, Tunnelled};
use super::worker::Here;
use crate::discovery::{Learned, NotTold};
use crate::pods::{self, Source, abort_on_drop};
use mesh::Authority;
use mesh::HBONE_PORT;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::Arrival;
use mesh::fastpath::{self, InboundEntry};
use mesh::{DemandKey, Identity, Workload};
use telemetry::Reporter;
use tunnel::hbone::{self, RevokedMark};
use tunnel::tls;

use caller::{Asking, Caller};
use error::{ArriveError, PeerError};
use mesh::inbound::{self, Asked, Target, delivered, target};

/// The door for the fuzz targets: where a tunnel leads, and the address that was asked for.
#[cfg(fuzzing)]
pub(super) fn target_of(
    authority: &Authority,
    workload: &Workload,
    (addresses, at): (&[std::net::IpAddr], std::net::IpAddr),
    mesh: &mesh::Snapshot,
) -> Option<(SocketAddr, SocketAddr)> {
    let asked = Asked {
        workload,
        addresses,
        at,
    };
    let found = target(authority, asked, mesh).ok()?;
    Some((found.destination, found.asked))
}

/// The peer of a connection that carries tunnels.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    /// Where it came in.
    at: SocketAddr,
    /// Who it proved to be.
    identity: Identity,
    /// Whether the connection was ended because that is revoked.
    revoked: RevokedMark,
}

/// Carries one plaintext connection that the kernel programs steered to us, or that somebody's
/// rules inside the pod redirected.
pub(super) async fn carry_plain(here: Rc<Here>, stream: TcpStream, client: SocketAddr) {
    let Ok((destination, redirected)) = pods::dialled_of(&stream) else {
        return;
    };
    if redirected {
        here.redirected();
    }
    let caller = Caller {
        peer: client,
        at: destination,
        tunnel: None,
    };
    match Box::pin(arrive(&here, caller)).await {
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
    let began = Instant::now();
    let Ok(at) = pods::local_of(&stream) else {
        return;
    };
    let handshake = Box::pin(handshake(&here, stream)).await;
    let (stream, identity) = match handshake {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(%peer, pod = %here.pod.uid.0, reason = error.reason(), "refused a tunnel peer: {error}");
            report_refused(&here, (peer, at), began, &error);
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
        let here = here.clone();
        move |request: hbone::Request| {
            here.spawn(carry_tunnel(here.clone(), request, from.clone()));
        }
    };
    let revocations = here.local.shared.certificates.revocations();
    let revoked = revocations.revoked(stream.peer_chain());
    let serving = hbone::serve(stream, &here.local.hbone, here.drain.clone(), serve_one);
    let served = tokio::select! {
        served = serving => served,
        // Marked while the connection still stands: its tunnels see no more than that it is gone.
        () = revoked.map(|()| mark.set()) => {
            tracing::warn!(%peer, pod = %here.pod.uid.0, reason = "cert_revoked", "the tunnels of a peer are ended: its certificate was revoked");
            return;
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, pod = %here.pod.uid.0, reason = error.reason(), "tunnel peer: {error}");
    }
}

/// The record of a connection on which no tunnel will ever be asked for.
fn report_refused(
    here: &Here,
    (peer, at): (SocketAddr, SocketAddr),
    began: Instant,
    error: &PeerError,
) {
    let shared = &here.local.shared;
    let view = shared.keeper.view_owned();
    let source = view
        .mesh
        .workload_by_address(&shared.config.network, peer.ip());
    let facts = Facts {
        reporter: Reporter::Destination,
        began,
        client: peer,
        dialled: at,
        source: source.cloned(),
        source_identity: None,
        destination: at,
        hbone: None,
        workload: here.pod.workload(&view.mesh).cloned(),
        destination_identity: None,
        service: None,
    };
    Record::open(&here.local, facts).fail(error);
}

async fn handshake(
    here: &Here,
    stream: TcpStream,
) -> Result<(tls::Stream<TcpStream>, Identity), PeerError> {
    let shared = &here.local.shared;
    let identity = own_identity(here).await?;
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

/// The pod's own identity, which the control plane may have to be asked for.
async fn own_identity(here: &Here) -> Result<Identity, PeerError> {
    let shared = &here.local.shared;
    let mut learned = Learned::default();
    loop {
        if let Some(workload) = here.workload() {
            return Ok(workload.identity.clone());
        }
        let view = shared.keeper.view_owned();
        let key = inbound::own(&here.pod.uid, &view.mesh, &learned.absent);
        let key = key.ok_or(PeerError::UnknownWorkload)?;
        let questions = shared.questions.as_deref();
        learned.ask(questions, &here.arriving, key).await?;
    }
}

/// Carries one tunnel from its CONNECT to its end. The set-up is boxed and gets what it needs
/// before the future begins, so that none of it stays in memory while the tunnel lives.
fn carry_tunnel(here: Rc<Here>, request: hbone::Request, peer: Peer) -> impl Future<Output = ()> {
    let revoked = peer.revoked.clone();
    let opening = Box::pin(open_tunnel(here, request, peer));
    async move {
        if let Some((app, tunnel, live, record)) = opening.await {
            let (side, cut) = (Side::Destination, live.revoked());
            let ended = relay::tunnelled(app, tunnel, side, record.series(), cut).await;
            record.end(&ended.explained(&revoked));
        }
    }
}

async fn open_tunnel(
    here: Rc<Here>,
    mut request: hbone::Request,
    peer: Peer,
) -> Option<(TcpStream, hbone::Tunnel, Live, Record)> {
    let caller = Caller {
        peer: peer.address,
        at: peer.at,
        tunnel: Some(Asking {
            identity: peer.identity,
            authority: request.authority.clone(),
            forwarded: request.forwarded,
            host: request.host.take(),
            baggage: std::mem::take(&mut request.baggage),
        }),
    };
    let (app, live, record) = match arrive(&here, caller).await {
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
                ArriveError::Revoked(Revoked::Certificate)
            } else {
                ArriveError::Gone(error)
            });
            None
        }
    }
}

/// Judges an arriving connection and connects it to the application.
async fn arrive(here: &Here, caller: Caller) -> Result<(TcpStream, Live, Record), StatusCode> {
    // One view for the whole judgement: a change in between must not mix two meshes.
    let (view, told) = learn(here, &caller).await;
    let workload = here.pod.workload(&view.mesh).cloned();
    let client = caller.client(workload.as_deref(), &view);
    let found = workload
        .as_deref()
        .map(|workload| find(here, &caller, workload, &view));
    let target = found.as_ref().and_then(|found| found.as_ref().ok());
    let facts = describe(here, &caller, (client, target, workload.as_ref()), &view);
    let record = Record::open(&here.local, facts);
    let delivered = match (told, found, workload) {
        (Err(not_told), ..) => Err(not_told.into()),
        (_, Some(Ok(target)), Some(workload)) => {
            deliver(here, &view, &caller, &workload, &target, client).await
        }
        (_, Some(Err(error)), _) => Err(error),
        (_, _, None) | (_, None, _) => {
            let uid = here.pod.uid.0.clone();
            Err(ArriveError::UnknownWorkload { uid })
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

/// What is known about an arriving connection before it is judged.
fn describe(
    here: &Here,
    caller: &Caller,
    (client, target, workload): (SocketAddr, Option<&Target>, Option<&Arc<Workload>>),
    view: &View,
) -> Facts {
    let authority = caller.authority();
    let destination = match (target, &authority) {
        (Some(target), _) => target.destination,
        (None, Authority::Address(address)) => *address,
        (None, Authority::Host(_, port)) => SocketAddr::new(caller.at.ip(), *port),
    };
    Facts {
        reporter: Reporter::Destination,
        began: Instant::now(),
        client,
        dialled: caller.at,
        source: caller.source(client, &here.local.shared.config.network, view),
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

/// Asks the control plane for what the judgement needs and the mesh does not know; returns the view
/// that is in force then.
async fn learn(here: &Here, caller: &Caller) -> (Arc<View>, Result<(), NotTold>) {
    let shared = &here.local.shared;
    let mut learned = Learned::default();
    let mut named = false;
    loop {
        let view = shared.keeper.view_owned();
        let Some(questions) = shared.questions.as_deref() else {
            return (view, Ok(()));
        };
        if let Some(key) = lacks(here, caller, &view, &learned) {
            if let Err(error) = learned.ask(Some(questions), &here.arriving, key).await {
                return (view, Err(error));
            }
            continue;
        }
        let client = caller.client(here.pod.workload(&view.mesh).map(|w| &**w), &view);
        match inbound::at(&shared.config.network, client.ip(), &view.mesh) {
            Some(key) if !named => {
                named = true;
                questions.ask_for_name(&key, &here.arriving).await;
            }
            _ => return (view, Ok(())),
        }
    }
}

fn lacks(here: &Here, caller: &Caller, view: &View, learned: &Learned) -> Option<DemandKey> {
    let Some(workload) = here.pod.workload(&view.mesh) else {
        return inbound::own(&here.pod.uid, &view.mesh, &learned.absent);
    };
    let asked = Asked {
        workload,
        addresses: &here.pod.addresses,
        at: caller.at.ip(),
    };
    inbound::missing(
        &caller.authority(),
        caller.named().is_some(),
        asked,
        &view.mesh,
        &learned.absent,
    )
}

fn find(
    here: &Here,
    caller: &Caller,
    workload: &Workload,
    view: &View,
) -> Result<Target, ArriveError> {
    let asked = Asked {
        workload,
        addresses: &here.pod.addresses,
        at: caller.at.ip(),
    };
    Ok(target(&caller.authority(), asked, &view.mesh)?)
}

async fn deliver(
    here: &Here,
    view: &Arc<View>,
    caller: &Caller,
    workload: &Workload,
    target: &Target,
    client: SocketAddr,
) -> Result<(TcpStream, Live), ArriveError> {
    let identity = caller.identity();
    let destination = match &caller.tunnel {
        Some(_) => delivered(workload, target.destination, false),
        None => target.destination,
    };
    permit(
        &view.mesh,
        &Arrival {
            workload,
            source: identity,
            source_ip: client.ip(),
            destination,
        },
        here.local.shared.telemetry.trials(),
    )?;
    if identity.is_none() {
        remember(here, view, client, destination);
    }
    let app = connect(here, caller, workload, target).await?;
    let admitted = Admitted {
        pod: NetnsCookie(here.pod.netns.cookie()),
        source: identity.cloned(),
        peer: caller.peer.ip(),
        named: caller.named(),
        destination,
    };
    let now = here.local.shared.keeper.view();
    match here.local.live.admit(admitted, view, &now) {
        Ok(live) => Ok((app, live)),
        Err(revoked) => {
            abort_on_drop(&app);
            Err(revoked.into())
        }
    }
}

/// Connects to the application. Its own tunnel, if it has one, is for what came in one of ours;
/// plaintext goes where it was sent, as it is.
async fn connect(
    here: &Here,
    caller: &Caller,
    workload: &Workload,
    target: &Target,
) -> Result<TcpStream, ArriveError> {
    let config = &here.local.shared.config;
    let to = match &caller.tunnel {
        Some(_) => delivered(workload, target.destination, config.localhost_app_tunnel),
        None => target.destination,
    };
    let failed = |source| ArriveError::Application {
        destination: to,
        source,
    };
    // The application sees whoever sent the tunnel: a waypoint tells it of the client by itself.
    // From elsewhere than loopback nothing reaches a loopback address; there the header tells.
    let address = if to.ip().is_loopback() {
        to.ip()
    } else {
        caller.peer.ip()
    };
    let source = Source::Client { address };
    let mut app = config
        .dial
        .connect(&here.pod.netns, to, source)
        .await
        .map_err(failed)?;
    let told = workload
        .application_tunnel
        .filter(|tunnel| tunnel.proxy_protocol)
        .zip(caller.identity());
    if let Some((_, identity)) = told {
        let header = proxy_protocol::header(caller.peer, target.asked, Some(identity));
        app.write_all(&header).await.map_err(failed)?;
    }
    Ok(app)
}

/// Plaintext that was let in need not come by again.
fn remember(here: &Here, view: &Arc<View>, client: SocketAddr, destination: SocketAddr) {
    let arrival = InboundEntry {
        pod: NetnsCookie(here.pod.netns.cookie()),
        to: destination,
        from: client.ip(),
    };
    if fastpath::inbound_holds(&arrival, view) {
        here.local.shared.keeper.remember_arrival(&arrival, view);
    }
}
