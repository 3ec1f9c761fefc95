//! When a peer's certificate is revoked, only its connection ends, and the error has the reason.

use tokio::sync::oneshot;

use super::*;

/// Opens a tunnel on a connection of its own, which `revoke` ends.
async fn open_until(pool: &Rc<Pool<Infallible>>, peer: &Rc<Peer>) -> (Tunnel, oneshot::Sender<()>) {
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
fn alone() -> Config {
    Config {
        max_streams_per_connection: 1,
        ..config()
    }
}

#[test]
fn only_the_connection_that_showed_it_is_ended_and_its_tunnels_know_why() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(alone())));
        let (mut old, revoke) = open_until(&pool, &peer).await;
        let (renewed, _other) = open_until(&pool, &peer).await;
        let (of_old, of_renewed) = (old.revoked(), renewed.revoked());
        assert_eq!((pool.len(), of_old.is_set()), (2, false));
        revoke.send(()).unwrap();
        let lost = old.recv.data().await.unwrap().unwrap_err();
        assert_eq!(lost.reason(), "connection_lost");
        assert!(of_old.is_set());
        settle().await;
        assert!(!of_renewed.is_set());
        assert_eq!((pool.len(), pool.tunnels()), (1, 1));
        drop((old, renewed));
    });
}

#[test]
fn no_task_waits_for_it_once_the_connection_has_ended() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let (tunnel, revoke) = open_until(&pool, &peer).await;
        // After many tunnels, one task still waits for the revocation.
        for _ in 0..10 {
            drop(open(&pool, &key("a"), &peer).await);
        }
        assert_eq!(peer.dials.get(), 1);
        assert!(!revoke.is_closed());
        drop(tunnel);
        pool.abort(|_| true);
        until(|| revoke.is_closed()).await;
        assert!(pool.groups_are_forgotten());
    });
}

#[test]
fn a_connect_that_is_lost_with_it_says_so() {
    run(async {
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        tokio::task::spawn_local(async move {
            far.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            while let Ok(1..) = far.read(&mut [0; 4096]).await {}
        });
        let soon = || Box::pin(tokio::time::sleep(Duration::from_millis(20)));
        let dial = || async move { Ok(Dialled::new(near).until(soon())) };
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
