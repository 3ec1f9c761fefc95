//! Step 4: open a tunnel to another node, or terminate a peer's tunnel.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpStream;
use tracing::Level;

use super::worker::PodContext;
use crate::pods::{self, Source};
use mesh::route::{Hop, HopKind};
use mesh::{Identity, Workload};
use tunnel::hbone::{
    self, Baggage, Connect, DialFailure, Dialled, OpenError, PoolKey, RevocationFuture,
    RevokedMark, TraceParent, Tunnel,
};
use tunnel::tls;

/// The far end of a tunnel, as messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FarEnd {
    /// The proxy of the destination, or of the client.
    #[default]
    Proxy,
    Waypoint,
    NetworkGateway,
}

impl FarEnd {
    pub(super) const fn of(kind: &HopKind) -> Self {
        match kind {
            HopKind::Destination => Self::Proxy,
            HopKind::Waypoint => Self::Waypoint,
            HopKind::NetworkGateway { .. } => Self::NetworkGateway,
        }
    }

    /// The prefix of errors about a tunnel that could not be opened.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "",
            Self::Waypoint => "tunnel to the waypoint: ",
            Self::NetworkGateway => "tunnel to the network gateway: ",
        }
    }

    /// The text after the word "tunnel".
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Proxy => "",
            Self::Waypoint => " to the waypoint",
            Self::NetworkGateway => " to the network gateway",
        }
    }
}

impl fmt::Display for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "the proxy of the destination",
            Self::Waypoint => "the waypoint",
            Self::NetworkGateway => "the network gateway",
        })
    }
}

/// Why the connection for tunnels could not be established.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// TCP to the far end failed.
    #[error("cannot reach {far_end} at {hbone}: {source}")]
    Connect {
        /// The kind of far end.
        far_end: FarEnd,
        /// Its address.
        hbone: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// TLS with the proxy behind a network gateway failed.
    #[error("behind the network gateway {gateway}: {source}")]
    Beyond {
        /// The gateway.
        gateway: SocketAddr,
        /// The TLS error.
        source: tls::Error,
    },
    /// TLS took too long.
    #[error("{hbone} did not finish the TLS handshake within {timeout:?}")]
    HandshakeTimeout {
        /// The address of the far end.
        hbone: SocketAddr,
        /// The limit.
        timeout: Duration,
    },
}

/// A tunnel to open.
pub(super) struct Request<'a> {
    /// The client's workload.
    pub(super) source: &'a Arc<Workload>,
    /// The client's address.
    pub(super) source_ip: IpAddr,
    /// The destination of the tunnel.
    pub(super) hop: Hop,
}

/// An open tunnel.
pub(super) struct Opened {
    pub(super) tunnel: Tunnel,
    /// Resolves when the certificate of the tunnel's peer is revoked. `None` for a tunnel on a
    /// pooled connection, which ends by itself then.
    pub(super) revoking: Option<RevocationFuture>,
    /// Whether the pooled connection has ended because of a revocation.
    pub(super) revoked: RevokedMark,
    /// The kind of far end.
    pub(super) far_end: FarEnd,
}

/// Opens a tunnel on a pooled connection or a new one. For another network it opens a second tunnel
/// inside the first.
pub(super) async fn open(
    context: &Rc<PodContext>,
    request: Request<'_>,
) -> Result<Opened, OpenError<DialError>> {
    let hop = request.hop;
    let key = PoolKey {
        source: request.source.identity.clone(),
        netns: context.pod.netns.cookie(),
        source_ip: request.source_ip,
        destinations: hop.expected,
        hbone: hop.at,
    };
    let connect = Connect {
        authority: hop.authority,
        forwarded: Some(request.source_ip),
        host: hop.service.map(|service| service.hostname.clone()),
        traceparent: Some(new_trace(context)),
        baggage: context.baggage(request.source),
    };
    let far_end = FarEnd::of(&hop.kind);
    let dial = || dial(context.clone(), key.clone(), far_end);
    let tunnel = context.worker.pool.open(&key, &connect, dial).await?;
    match hop.kind {
        HopKind::Destination | HopKind::Waypoint => Ok(Opened {
            revoked: tunnel.revoked(),
            revoking: None,
            far_end,
            tunnel,
        }),
        HopKind::NetworkGateway { then } => {
            Box::pin(open_inside(context, tunnel, (&key, &then), &connect)).await
        }
    }
}

/// Opens a second tunnel inside one that a network gateway forwards, with its own TLS: the gateway
/// sees neither the server nor the data. The tunnel is not shared ([`hbone::open_unpooled`]).
async fn open_inside(
    context: &Rc<PodContext>,
    outer: Tunnel,
    (key, then): (&PoolKey, &[Identity]),
    connect: &Connect,
) -> Result<Opened, OpenError<DialError>> {
    let failed = |error| OpenError::Connection {
        failure: DialFailure::Dial {
            error: Arc::new(error),
        },
    };
    let beyond = |source| {
        failed(DialError::Beyond {
            gateway: key.hbone,
            source,
        })
    };
    let shared = &context.worker.proxy;
    let credentials = shared
        .certificates
        .get(&key.source)
        .await
        .map_err(|error| failed(DialError::Tls(error)))?;
    let timeout = shared.config.handshake_timeout;
    let revoked = outer.revoked();
    let stream = outer.into_stream(timeout);
    let stream = tokio::time::timeout(timeout, tls::connect(stream, &credentials, then))
        .await
        .map_err(|_elapsed| {
            failed(DialError::HandshakeTimeout {
                hbone: key.hbone,
                timeout,
            })
        })?
        .map_err(beyond)?;
    let chain = stream.peer_chain();
    let revoking: Option<RevocationFuture> = (!chain.is_empty()).then(|| {
        let revoked = shared.certificates.revocations().revoked(chain);
        Box::pin(revoked) as RevocationFuture
    });
    let tunnel = hbone::open_unpooled(stream, connect, &context.worker.hbone).await?;
    Ok(Opened {
        tunnel,
        revoking,
        revoked,
        far_end: FarEnd::NetworkGateway,
    })
}

/// A new trace for each connection: the application's own trace context is inside its data.
fn new_trace(context: &PodContext) -> TraceParent {
    let (high, low, span) = (
        context.worker.random(),
        context.worker.random(),
        context.worker.random(),
    );
    // Zero is not a valid id (W3C Trace Context, section 3.2.2).
    let trace_id = (u128::from(high) << 64 | u128::from(low)).max(1);
    TraceParent {
        trace_id,
        parent_id: span.max(1),
        flags: 0,
    }
}

/// The workload's description for the peer's telemetry.
pub(super) fn baggage(workload: &Workload) -> Option<HeaderValue> {
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Baggage {
        cluster: known(&workload.cluster_id),
        namespace: known(&workload.namespace),
        workload: known(&workload.workload_name).map(|name| (workload.workload_type, name)),
        service: known(&workload.canonical_name),
        version: known(&workload.canonical_revision),
        region: known(&workload.locality.region),
        zone: known(&workload.locality.zone),
    }
    .encode()
}

/// Establishes a connection for tunnels. Other connections may share it later, so it does not end
/// with the first one.
async fn dial(
    context: Rc<PodContext>,
    key: PoolKey,
    far_end: FarEnd,
) -> Result<Dialled<tls::Stream<TcpStream>>, DialError> {
    let shared = &context.worker.proxy;
    let credentials = shared.certificates.get(&key.source).await?;
    let source = Source::Pod {
        mark: shared.config.mark,
    };
    let tcp = shared
        .config
        .dial
        .connect(&context.pod.netns, key.hbone, source)
        .await
        .map_err(|source| DialError::Connect {
            far_end,
            hbone: key.hbone,
            source,
        })?;
    let timeout = shared.config.handshake_timeout;
    let stream = tokio::time::timeout(timeout, tls::connect(tcp, &credentials, &key.destinations))
        .await
        .map_err(|_elapsed| DialError::HandshakeTimeout {
            hbone: key.hbone,
            timeout,
        })??;
    log_established(&stream, &key.source);
    let chain = stream.peer_chain();
    if chain.is_empty() {
        return Ok(Dialled::new(stream));
    }
    let revoked = shared.certificates.revocations().revoked(chain);
    let revoking = async move {
        revoked.await;
        tracing::warn!(peer = %key.hbone, pod = %context.pod.uid.0, reason = "cert_revoked", "the tunnels to a peer are ended: its certificate was revoked");
    };
    Ok(Dialled::new(stream).until(Box::pin(revoking)))
}

/// Logs each connection for tunnels at debug level, at both ends, with the parameters of the
/// handshake. The field names are those of the access log.
pub(super) fn log_established(stream: &tls::Stream<TcpStream>, own: &Identity) {
    if !tracing::enabled!(Level::DEBUG) {
        return;
    }
    let tcp = stream.get_ref();
    let (Ok(local), Ok(remote)) = (pods::local_of(tcp), pods::peer_of(tcp)) else {
        return; // Already reset: the next use of the stream reports the error.
    };
    let (direction, source, destination) = match stream.role() {
        tls::Role::Client => ("outbound", (local, own), (remote, stream.peer())),
        tls::Role::Server => ("inbound", (remote, stream.peer()), (local, own)),
    };
    tracing::debug!(
        src.addr = %source.0,
        src.identity = %source.1,
        dst.addr = %destination.0,
        dst.identity = %destination.1,
        direction,
        tls.version = stream.tls_version(),
        tls.cipher_suite = stream.cipher_suite(),
        tls.key_exchange = stream.key_exchange(),
        "tunnel connection established"
    );
}
