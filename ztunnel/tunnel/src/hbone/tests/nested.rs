//! Tunnels inside tunnels (double HBONE).

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncRead;

use mesh::Authority;

use super::*;
use crate::tls::{self, Credentials, Issued, Revocations};

/// Opens a tunnel to the peer and a second one inside it, which a server accepts.
async fn nested(config: Config) -> (Tunnel, Tunnel, Rc<Pool<Infallible>>) {
    let peer = Peer::new(config.clone());
    let pool = Pool::new(Rc::new(config.clone()));
    let outer = pool
        .open(&key("a"), &connect(), || peer.dial())
        .await
        .unwrap();
    let remote = peer.take_tunnel().into_stream(config.handshake_timeout);
    let (inner, accepted) =
        open_over(outer.into_stream(config.handshake_timeout), remote, &config).await;
    (inner.unwrap(), accepted.unwrap(), pool)
}

/// Opens an unpooled tunnel over one end of a byte stream; a server on the remote end accepts it.
async fn open_over<IO>(
    local: IO,
    remote: IO,
    config: &Config,
) -> (Result<Tunnel, OpenError<Infallible>>, Option<Tunnel>)
where
    IO: AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let accepted = Rc::new(RefCell::new(None));
    let serving = {
        let (accepted, config) = (accepted.clone(), config.clone());
        async move {
            let drain = watch::Sender::new(false);
            let accept = |request: Request| {
                assert_eq!(request.authority.to_string(), "s.example:80");
                *accepted.borrow_mut() = request.accept().ok();
            };
            drop(serve(remote, &config, drain.subscribe(), accept).await);
        }
    };
    tokio::task::spawn_local(serving);
    let connect = Connect::to("s.example:80".parse::<Authority>().unwrap());
    let opened = open_unpooled(local, &connect, config).await;
    let accepted = accepted.borrow_mut().take();
    (opened, accepted)
}

#[test]
fn bytes_and_half_closes_pass_in_both_directions() {
    run(async {
        let (mut inner, mut accepted, pool) = nested(config()).await;
        let text = Bytes::from(vec![7; 3 << 20]);
        let ((), got) = tokio::join!(
            async {
                inner.send.send_all(text.clone()).await.unwrap();
                inner.send.finish().unwrap();
            },
            read_all(&mut accepted.recv)
        );
        assert_eq!(got.unwrap(), text);
        let ((), got) = tokio::join!(
            async {
                accepted.send.send_all(text.clone()).await.unwrap();
                accepted.send.finish().unwrap();
            },
            read_all(&mut inner.recv)
        );
        assert_eq!(got.unwrap(), text);
        drop((inner, accepted));
        // The outer tunnel ends with the inner one and releases its slot.
        until(|| pool.tunnels() == 0).await;
    });
}

/// The outer tunnel must not be reset while it still holds the last bytes of the inner one.
#[test]
fn the_last_bytes_arrive_after_the_inner_tunnel_is_dropped() {
    run(async {
        let small = Config {
            stream_window: 16 * 1024,
            ..config()
        };
        let (mut inner, mut accepted, _pool) = nested(small).await;
        accepted.send.finish().unwrap();
        assert!(inner.recv.data().await.is_none());
        let text = Bytes::from(vec![9; 12 * 1024]);
        inner.send.send_all(text.clone()).await.unwrap();
        inner.send.finish().unwrap();
        drop(inner);
        assert_eq!(read_all(&mut accepted.recv).await.unwrap(), text);
    });
}

#[test]
fn a_lost_outer_tunnel_breaks_the_inner_one() {
    run(async {
        let (local, remote) = tokio::io::duplex(64 * 1024);
        let (inner, accepted) = open_over(local, remote, &config()).await;
        let mut inner = inner.unwrap();
        // An aborted tunnel must not look like an end of stream.
        drop(accepted);
        assert!(matches!(inner.recv.data().await, Some(Err(_))));
    });
}

#[test]
fn a_peer_that_closes_before_http2_is_an_error() {
    run(async {
        let (local, remote) = tokio::io::duplex(1024);
        drop(remote);
        let connect = connect();
        let opened: Result<_, OpenError<Infallible>> =
            open_unpooled(local, &connect, &config()).await;
        assert!(matches!(
            opened.unwrap_err().reason(),
            "h2_handshake" | "connection_lost"
        ));
    });
}

#[test]
fn shutdown_waits_for_the_peer_only_for_the_end_timeout() {
    run(async {
        let config = Config {
            handshake_timeout: Duration::from_millis(50),
            ..config()
        };
        let peer = Peer::new(config.clone());
        let pool = Pool::<Infallible>::new(Rc::new(config.clone()));
        let outer = pool
            .open(&key("a"), &connect(), || peer.dial())
            .await
            .unwrap();
        let mut stream = outer.into_stream(config.handshake_timeout);
        stream.write_all(b"x").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut remote = peer.take_tunnel();
        let data = remote.recv.data().await.unwrap().unwrap();
        assert_eq!(data, "x");
        assert!(remote.recv.data().await.is_none());
    });
}

/// Credentials of one mesh, one for each service account.
fn credentials<const N: usize>(accounts: [&str; N]) -> [(Identity, Credentials); N] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    accounts.map(|account| {
        let identity = Identity::new("cluster.local", "default", account).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
        let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
        let issued = Issued {
            chain,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![root.clone()],
        };
        let credentials = Credentials::new(&identity, issued, &Revocations::default()).unwrap();
        (identity, credentials)
    })
}

/// As through a network gateway, which forwards TLS that it cannot read: the workload behind it has
/// to prove its identity.
#[test]
fn mutual_tls_runs_inside_a_tunnel() {
    run(async {
        let config = config();
        let [(_, a), (b, server), (c, _)] = credentials(["a", "b", "c"]);
        let server = Rc::new(server);
        for (expected, accepted) in [(b, true), (c, false)] {
            let peer = Peer::new(config.clone());
            let pool = Pool::<Infallible>::new(Rc::new(config.clone()));
            let outer = open(&pool, &key("a"), &peer).await;
            let end_timeout = config.handshake_timeout;
            let remote = peer.take_tunnel().into_stream(end_timeout);
            let server = server.clone();
            let serving = tokio::task::spawn_local(async move {
                let config = super::config();
                let stream = tls::accept(remote, &server).await.ok()?;
                let echo = |request: Request| {
                    tokio::task::spawn_local(async move {
                        let mut tunnel = request.accept().unwrap();
                        let received = read_all(&mut tunnel.recv).await.unwrap();
                        tunnel.send.send_all(received.into()).await.unwrap();
                        tunnel.send.finish().unwrap();
                    });
                };
                let drain = watch::Sender::new(false);
                serve(stream, &config, drain.subscribe(), echo).await.ok()
            });
            let local = tls::connect(outer.into_stream(end_timeout), &a, &[expected]).await;
            assert_eq!(local.is_ok(), accepted);
            let Ok(local) = local else { continue };
            let connect = Connect::to("s.example:80".parse::<Authority>().unwrap());
            let opened: Result<_, OpenError<Infallible>> =
                open_unpooled(local, &connect, &config).await;
            let mut inner = opened.unwrap();
            inner
                .send
                .send_all(Bytes::from_static(b"hello"))
                .await
                .unwrap();
            inner.send.finish().unwrap();
            assert_eq!(read_all(&mut inner.recv).await.unwrap(), b"hello");
            drop(inner);
            // All four levels (outer tunnel, TLS, HTTP/2, inner tunnel) end in an orderly way.
            assert!(serving.await.unwrap().is_some());
            until(|| pool.tunnels() == 0).await;
        }
    });
}
