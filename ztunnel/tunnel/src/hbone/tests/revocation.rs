//! A revoked certificate of the peer: only the connection that used it is aborted, and the error
//! names the cause.

use tokio::sync::oneshot;

use super::*;

/// Opens a tunnel whose connection is revoked with the returned sender.
async fn open_revocable(
    pool: &Rc<Pool<Infallible>>,
    peer: &Rc<Peer>,
) -> (Tunnel, oneshot::Sender<()>) {
    let (revoke, revoked) = oneshot::channel::<()>();
    let dial = || {
        let dialled = peer.dial();
        async move {
            let revoking = async move {
                if revoked.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            Ok(dialled.await?.until(Box::pin(revoking)))
        }
    };
    let tunnel = pool.open(&key("a"), &connect(), dial).await.unwrap();
    (tunnel, revoke)
}

/// One tunnel for each connection.
fn one_tunnel_each() -> Config {
    Config {
        max_streams_per_connection: 1,
        ..config()
    }
}

#[test]
fn only_the_connection_with_the_revoked_certificate_is_aborted_and_marked() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(one_tunnel_each())));
        let (mut old, revoke) = open_revocable(&pool, &peer).await;
        let (renewed, _other) = open_revocable(&pool, &peer).await;
        let (old_mark, renewed_mark) = (old.revoked(), renewed.revoked());
        assert_eq!((pool.len(), old_mark.is_set()), (2, false));
        revoke.send(()).unwrap();
        let lost = old.recv.data().await.unwrap().unwrap_err();
        assert_eq!(lost.reason(), "connection_lost");
        assert!(old_mark.is_set());
        run_other_tasks().await;
        assert!(!renewed_mark.is_set());
        assert_eq!((pool.len(), pool.tunnels()), (1, 1));
        drop((old, renewed));
    });
}

#[test]
fn the_task_that_waits_for_the_revocation_ends_with_the_connection() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let (tunnel, revoke) = open_revocable(&pool, &peer).await;
        // After many tunnels, one task still waits for the revocation.
        for _ in 0..10 {
            drop(open(&pool, &key("a"), &peer).await);
        }
        assert_eq!(peer.dials.get(), 1);
        assert!(!revoke.is_closed());
        drop(tunnel);
        pool.abort(|_| true);
        until(|| revoke.is_closed()).await;
        assert!(pool.has_no_groups());
    });
}

#[test]
fn a_connect_lost_by_revocation_names_the_cause() {
    run(async {
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        let (local, mut remote) = tokio::io::duplex(64 * 1024);
        tokio::task::spawn_local(async move {
            remote.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            while let Ok(1..) = remote.read(&mut [0; 4096]).await {}
        });
        let soon = || Box::pin(tokio::time::sleep(Duration::from_millis(20)));
        let dial = || async move { Ok(Dialled::new(local).until(soon())) };
        let error = pool.open(&key("a"), &connect(), dial).await.unwrap_err();
        let revoked = matches!(
            error,
            OpenError::Lost {
                lost: LostConnection::Revoked,
                ..
            }
        );
        assert!(revoked, "{error}");
    });
}
