//! The end of connections: idle, evicted, aborted, or with a peer that does not respond.

use super::*;

#[test]
fn an_idle_connection_is_closed_gracefully() {
    run(async {
        let local = Config {
            idle_release: Duration::from_millis(50),
            ..config()
        };
        let (tunnel, other, pool, peer) = pair(local, config()).await;
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert_eq!(pool.len(), 1, "in use for longer than the limit");
        drop((tunnel, other));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pool.len(), 1, "idle for less than the limit");
        until(|| pool.has_no_groups()).await;
        until(|| !peer.ended.borrow().is_empty()).await;
        assert!(matches!(peer.ended.borrow()[0], Ok(())), "{:?}", peer.ended);
    });
}

#[test]
fn an_evicted_connection_accepts_no_new_tunnels_and_keeps_its_open_ones() {
    run(async {
        let (mut tunnel, mut other, pool, peer) = pair(config(), config()).await;
        let kept = open(&pool, &key("kept"), &peer).await;
        pool.evict(|key| key.source.service_account() == "a");
        assert_eq!(pool.len(), 1);
        tunnel
            .send
            .send_all(Bytes::from_static(b"x"))
            .await
            .unwrap();
        assert_eq!(other.recv.data().await.unwrap().unwrap(), "x");
        let again = open(&pool, &key("a"), &peer).await;
        assert_eq!(peer.dials.get(), 3);
        drop((tunnel, other, again, kept));
        until(|| peer.ended.borrow().len() == 1).await;
    });
}

#[test]
fn an_aborted_connection_breaks_its_tunnels() {
    run(async {
        let (mut tunnel, mut other, pool, _peer) = pair(config(), config()).await;
        pool.abort(|_| true);
        assert_eq!(
            tunnel.recv.data().await.unwrap().unwrap_err().reason(),
            "connection_lost"
        );
        assert!(other.recv.data().await.unwrap().is_err());
        assert!(pool.is_empty());
    });
}

#[test]
fn a_peer_that_violates_http2_leaves_no_state_in_the_pool() {
    run(async {
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        let (io, mut remote) = tokio::io::duplex(64 * 1024);
        remote.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        // A response that arrives before its request.
        remote.write_all(&ok_headers(1)).await.unwrap();
        let opened = pool
            .open(&key("a"), &connect(), || async { Ok(Dialled::new(io)) })
            .await;
        assert_eq!(opened.unwrap_err().reason(), "connection_lost");
        until(|| pool.has_no_groups()).await;
    });
}

#[test]
fn a_peer_that_does_not_answer_pings_loses_its_tunnels() {
    run(async {
        let keepalive = Keepalive {
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(20),
        };
        let local = Config {
            keepalive: Some(keepalive),
            ..config()
        };
        let pool = Pool::<Infallible>::new(Rc::new(local));
        let (io, mut remote) = tokio::io::duplex(64 * 1024);
        let peer = tokio::task::spawn_local(async move {
            let mut buffer = [0; 4096];
            remote.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            assert!(remote.read(&mut buffer).await.unwrap() > 0);
            tokio::time::sleep(Duration::from_millis(5)).await;
            remote.write_all(&ok_headers(1)).await.unwrap();
            while let Ok(1..) = remote.read(&mut buffer).await {}
        });
        let mut tunnel = pool
            .open(&key("a"), &connect(), || async { Ok(Dialled::new(io)) })
            .await
            .unwrap();
        let lost = tunnel.recv.data().await.unwrap().unwrap_err();
        assert_eq!(lost.reason(), "connection_lost");
        peer.await.unwrap();
    });
}

#[test]
fn a_peer_that_answers_pings_is_kept() {
    run(async {
        let keepalive = Keepalive {
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(100),
        };
        let both = Config {
            keepalive: Some(keepalive),
            ..config()
        };
        let (tunnel, other, pool, peer) = pair(both.clone(), both).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((pool.len(), peer.ended.borrow().len()), (1, 0));
        drop((tunnel, other));
    });
}

#[test]
fn a_peer_that_never_sends_settings_times_out() {
    run(async {
        let local = Config {
            handshake_timeout: Duration::from_millis(30),
            ..config()
        };
        let pool = Pool::<Infallible>::new(Rc::new(local));
        let (io, mut remote) = tokio::io::duplex(64 * 1024);
        tokio::task::spawn_local(async move {
            while let Ok(1..) = remote.read(&mut [0; 4096]).await {}
        });
        let error = pool
            .open(&key("a"), &connect(), || async { Ok(Dialled::new(io)) })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "connection_lost");
    });
}

#[test]
fn a_late_response_is_a_timeout() {
    run(async {
        let local = Config {
            response_timeout: Duration::from_millis(30),
            ..config()
        };
        let pool = Pool::<Infallible>::new(Rc::new(local));
        let (io, mut remote) = tokio::io::duplex(64 * 1024);
        remote.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        tokio::task::spawn_local(async move {
            while let Ok(1..) = remote.read(&mut [0; 4096]).await {}
        });
        let error = pool
            .open(&key("a"), &connect(), || async { Ok(Dialled::new(io)) })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "response_timeout");
        assert_eq!(pool.tunnels(), 0);
    });
}
