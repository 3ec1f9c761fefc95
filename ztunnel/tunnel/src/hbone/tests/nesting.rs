//! Tunnels inside tunnels.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncRead;

use mesh::Authority;

use super::*;
use crate::tls::{self, Credentials, Issued, Revocations};

/// Opens a tunnel to the peer, and a second one inside it, answered by a server at its other end.
async fn nested(config: Config) -> (Tunnel, Tunnel, Rc<Pool<Infallible>>) {
    let peer = Peer::new(config.clone());
    let pool = Pool::new(Rc::new(config.clone()));
    let outer = pool
        .open(&key("a"), &connect(), || peer.dial())
        .await
        .unwrap();
    let far = peer.take_tunnel().into_stream(config.handshake_timeout);
    let (inner, accepted) = over(outer.into_stream(config.handshake_timeout), far, &config).await;
    (inner.unwrap(), accepted.unwrap(), pool)
}

/// Opens an unpooled tunnel over one end of a byte stream; a server at the other end accepts it.
async fn over<IO>(
    near: IO,
    far: IO,
    config: &Config,
) -> (Result<Tunnel, OpenError<Infallible>>, Option<Tunnel>)
where
    IO: AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let taken = Rc::new(RefCell::new(None));
    let serving = {
        let (taken, config) = (taken.clone(), config.clone());
        async move {
            let drain = watch::Sender::new(false);
            let take = |request: Request| {
                assert_eq!(request.authority.to_string(), "s.example:80");
                *taken.borrow_mut() = request.accept().ok();
            };
            drop(serve(far, &config, drain.subscribe(), take).await);
        }
    };
    tokio::task::spawn_local(serving);
    let connect = Connect::to("s.example:80".parse::<Authority>().unwrap());
    let opened = open_alone(near, &connect, config).await;
    let accepted = taken.borrow_mut().take();
    (opened, accepted)
}

#[test]
fn bytes_go_both_ways_and_ends_are_seen() {
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
fn the_last_bytes_arrive_after_the_inner_tunnel_is_let_go() {
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
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (inner, accepted) = over(near, far, &config()).await;
        let mut inner = inner.unwrap();
        // An aborted tunnel must not look like an end of stream.
        drop(accepted);
        assert!(matches!(inner.recv.data().await, Some(Err(_))));
    });
}

#[test]
fn what_does_not_speak_http2_is_told_apart() {
    run(async {
        let (near, far) = tokio::io::duplex(1024);
        drop(far);
        let connect = connect();
        let opened: Result<_, OpenError<Infallible>> = open_alone(near, &connect, &config()).await;
        assert!(matches!(
            opened.unwrap_err().reason(),
            "h2_handshake" | "connection_lost"
        ));
    });
}

#[test]
fn a_far_end_that_never_ends_is_waited_for_only_so_long() {
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
        let mut far = peer.take_tunnel();
        let data = far.recv.data().await.unwrap().unwrap();
        assert_eq!(data, "x");
        assert!(far.recv.data().await.is_none());
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

/// As between two networks: the gateway forwards TLS that it cannot read, and the workload behind
/// it has to prove its identity.
#[test]
fn mutual_tls_runs_inside_a_tunnel() {
    run(async {
        let config = config();
        let [(_, a), (b, server), (c, _)] = credentials(["a", "b", "c"]);
        let server = Rc::new(server);
        for (expected, welcome) in [(b, true), (c, false)] {
            let peer = Peer::new(config.clone());
            let pool = Pool::<Infallible>::new(Rc::new(config.clone()));
            let outer = open(&pool, &key("a"), &peer).await;
            let patience = config.handshake_timeout;
            let far = peer.take_tunnel().into_stream(patience);
            let server = server.clone();
            let behind = tokio::task::spawn_local(async move {
                let config = super::config();
                let stream = tls::accept(far, &server).await.ok()?;
                let echo = |request: Request| {
                    tokio::task::spawn_local(async move {
                        let mut tunnel = request.accept().unwrap();
                        let said = read_all(&mut tunnel.recv).await.unwrap();
                        tunnel.send.send_all(said.into()).await.unwrap();
                        tunnel.send.finish().unwrap();
                    });
                };
                let drain = watch::Sender::new(false);
                serve(stream, &config, drain.subscribe(), echo).await.ok()
            });
            let near = tls::connect(outer.into_stream(patience), &a, &[expected]).await;
            assert_eq!(near.is_ok(), welcome);
            let Ok(near) = near else { continue };
            let connect = Connect::to("s.example:80".parse::<Authority>().unwrap());
            let opened: Result<_, OpenError<Infallible>> =
                open_alone(near, &connect, &config).await;
            let mut inner = opened.unwrap();
            inner
                .send
                .send_all(Bytes::from_static(b"hello"))
                .await
                .unwrap();
            inner.send.finish().unwrap();
            assert_eq!(read_all(&mut inner.recv).await.unwrap(), b"hello");
            drop(inner);
            // An orderly end, on all four levels.
            assert!(behind.await.unwrap().is_some());
            until(|| pool.tunnels() == 0).await;
        }
    });
}
