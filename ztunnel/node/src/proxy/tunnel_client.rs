//! Step 4: open a tunnel to another node, its waypoint or the gateway of another network.

mod error;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpStream;
use tracing::Level;

use super::far_end::FarEnd;
use super::state::ProxyState;
use crate::pods::{self, Dial, Pod};
use mesh::route::{Hop, HopKind};
use mesh::{Identity, NetnsCookie, Workload};
use tunnel::hbone::{
    self, Baggage, Connect, DialFailure, Dialled, OpenError, PoolKey, RevocationFuture,
    RevokedMark, TraceParent, Tunnel,
};
use tunnel::tls;

pub(super) use error::DialError;

/// Opens tunnels for the pods of one worker. Tunnels with the same two ends share connections.
pub(super) struct TunnelClient {
    pool: Rc<hbone::Pool<DialError>>,
    hbone: Rc<hbone::Config>,
    dialer: Rc<Dialer>,
}

/// Establishes the connections that carry tunnels.
struct Dialer {
    certificates: Arc<tls::Store>,
    dial: Dial,
    /// The mark of the proxy's own sockets.
    mark: u32,
    handshake_timeout: Duration,
}

/// A tunnel to open.
pub(super) struct TunnelRequest<'a> {
    /// The client's pod.
    pub(super) pod: &'a Arc<Pod>,
    /// The client's workload.
    pub(super) source: &'a Workload,
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The destination of the tunnel.
    pub(super) hop: &'a Hop,
    /// The trace that the CONNECT request names.
    pub(super) trace: TraceParent,
    /// The description of the client's workload for the peer's telemetry.
    pub(super) baggage: Option<HeaderValue>,
}

/// An open tunnel.
pub(super) struct OpenTunnel {
    pub(super) tunnel: Tunnel,
    /// Resolves when the certificate of the tunnel's peer is revoked. `None` for a tunnel on a
    /// pooled connection, which ends by itself then.
    pub(super) revoking: Option<RevocationFuture>,
    /// Whether the pooled connection has ended because of a revocation.
    pub(super) revoked: RevokedMark,
    /// The kind of far end.
    pub(super) far_end: FarEnd,
}

impl TunnelClient {
    /// A client without connections.
    pub(super) fn new(proxy: &ProxyState, hbone: &Rc<hbone::Config>) -> Self {
        Self {
            pool: hbone::Pool::new(hbone.clone()),
            hbone: hbone.clone(),
            dialer: Rc::new(Dialer {
                certificates: proxy.certificates.clone(),
                dial: proxy.config.dial.clone(),
                mark: proxy.config.mark,
                handshake_timeout: proxy.config.handshake_timeout,
            }),
        }
    }

    /// Closes the pooled connections of a pod that has left.
    pub(super) fn evict(&self, pod: NetnsCookie) {
        self.pool.evict(|key| key.netns == pod.0);
    }

    /// Opens a tunnel on a pooled connection or a new one. For another network it opens a second
    /// tunnel inside the first.
    pub(super) async fn open(
        &self,
        request: TunnelRequest<'_>,
    ) -> Result<OpenTunnel, OpenError<DialError>> {
        let hop = request.hop;
        let source_ip = request.client.ip();
        let key = PoolKey {
            source: request.source.identity.clone(),
            netns: request.pod.netns.cookie(),
            source_ip,
            destinations: hop.expected.clone(),
            hbone: hop.at,
        };
        let connect = Connect {
            authority: hop.authority.clone(),
            forwarded: Some(source_ip),
            host: hop.service.as_ref().map(|service| service.hostname.clone()),
            traceparent: Some(request.trace),
            baggage: request.baggage,
        };
        let far_end = FarEnd::of(&hop.kind);
        let dial = || {
            self.dialer
                .clone()
                .dial(request.pod.clone(), key.clone(), far_end)
        };
        let tunnel = self.pool.open(&key, &connect, dial).await?;
        match &hop.kind {
            HopKind::Destination | HopKind::Waypoint => Ok(OpenTunnel {
                revoked: tunnel.revoked(),
                revoking: None,
                far_end,
                tunnel,
            }),
            HopKind::NetworkGateway { then } => {
                Box::pin(self.open_inside(tunnel, &key, then, &connect)).await
            }
        }
    }

    /// Opens a second tunnel inside one that a network gateway forwards, with its own TLS: the
    /// gateway sees neither the server nor the data. The tunnel is not shared
    /// ([`hbone::open_unpooled`]). The end of the second tunnel must prove one of the identities in
    /// `then`.
    async fn open_inside(
        &self,
        outer: Tunnel,
        key: &PoolKey,
        then: &[Identity],
        connect: &Connect,
    ) -> Result<OpenTunnel, OpenError<DialError>> {
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
        let certificates = &self.dialer.certificates;
        let credentials = certificates
            .get(&key.source)
            .await
            .map_err(|error| failed(DialError::Tls(error)))?;
        let timeout = self.dialer.handshake_timeout;
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
            let revoked = certificates.revocations().revoked(chain);
            Box::pin(revoked) as RevocationFuture
        });
        let tunnel = hbone::open_unpooled(stream, connect, &self.hbone).await?;
        Ok(OpenTunnel {
            tunnel,
            revoking,
            revoked,
            far_end: FarEnd::NetworkGateway,
        })
    }
}

impl Dialer {
    /// Establishes a connection for tunnels. Other connections may share it later, so it does not
    /// end with the first one.
    async fn dial(
        self: Rc<Self>,
        pod: Arc<Pod>,
        key: PoolKey,
        far_end: FarEnd,
    ) -> Result<Dialled<tls::Stream<TcpStream>>, DialError> {
        let credentials = self.certificates.get(&key.source).await?;
        let tcp = self
            .dial
            .connect(&pod.netns, key.hbone, self.mark)
            .await
            .map_err(|source| DialError::Connect {
                far_end,
                hbone: key.hbone,
                source,
            })?;
        let timeout = self.handshake_timeout;
        let handshake = tls::connect(tcp, &credentials, &key.destinations);
        let stream = tokio::time::timeout(timeout, handshake)
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
        let revoked = self.certificates.revocations().revoked(chain);
        let revoking = async move {
            revoked.await;
            tracing::warn!(peer = %key.hbone, pod = %pod.uid.0, reason = "cert_revoked", "tunnels to a peer are closed: its certificate was revoked");
        };
        Ok(Dialled::new(stream).until(Box::pin(revoking)))
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
