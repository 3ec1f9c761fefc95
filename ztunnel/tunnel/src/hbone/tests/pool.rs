//! The pool's choice of a connection for a tunnel.

use super::*;

#[test]
fn a_connection_carries_100_tunnels_and_the_next_tunnel_dials_another() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let mut tunnels = Vec::new();
        for _ in 0..100 {
            tunnels.push(open(&pool, &key("a"), &peer).await);
        }
        assert_eq!((peer.dials.get(), pool.len(), pool.tunnels()), (1, 1, 100));
        tunnels.push(open(&pool, &key("a"), &peer).await);
        assert_eq!((peer.dials.get(), pool.len(), pool.tunnels()), (2, 2, 101));
        tunnels.clear();
        assert_eq!(pool.tunnels(), 0);
    });
}

#[test]
fn a_burst_of_1000_requests_dials_ten_times() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let key = key("a");
        let opens = (0..1000).map(|_| open(&pool, &key, &peer));
        let tunnels = futures::future::join_all(opens).await;
        assert_eq!((peer.dials.get(), pool.tunnels()), (10, 1000));
        drop(tunnels);
    });
}

#[test]
fn connections_are_never_shared_across_keys() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let a = key("a");
        let keys = [
            key("other"),
            PoolKey {
                source_ip: "10.0.0.9".parse().unwrap(),
                ..a.clone()
            },
            PoolKey {
                hbone: address("10.0.0.3:15008"),
                ..a.clone()
            },
            PoolKey {
                destinations: smallvec![a.source.clone()],
                ..a.clone()
            },
            a,
        ];
        let mut tunnels = Vec::new();
        for (dials, key) in keys.iter().enumerate() {
            assert_eq!(peer.dials.get(), dials);
            tunnels.push(open(&pool, key, &peer).await);
            tunnels.push(open(&pool, key, &peer).await);
        }
        assert_eq!(peer.dials.get(), keys.len());
    });
}

#[test]
fn the_peers_stream_limit_is_respected() {
    run(async {
        let peer = Peer::new(Config {
            max_concurrent_streams: 10,
            ..config()
        });
        let pool = Pool::new(Rc::new(config()));
        let mut tunnels = Vec::new();
        for _ in 0..25 {
            tunnels.push(open(&pool, &key("a"), &peer).await);
        }
        assert_eq!(peer.dials.get(), 3);
    });
}

#[test]
fn a_burst_before_the_peers_settings_still_gets_its_tunnels() {
    run(async {
        let peer = Peer::new(Config {
            max_concurrent_streams: 10,
            ..config()
        });
        let pool = Pool::new(Rc::new(config()));
        let key = key("a");
        let tunnels = futures::future::join_all((0..15).map(|_| open(&pool, &key, &peer))).await;
        assert_eq!((tunnels.len(), peer.dials.get()), (15, 2));
    });
}

#[test]
fn a_released_slot_goes_to_a_waiting_request() {
    run(async {
        let local = Config {
            max_streams_per_connection: 1,
            ..config()
        };
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(local)));
        let first = open(&pool, &key("a"), &peer).await;
        let waiting = tokio::task::spawn_local({
            let pool = Rc::clone(&pool);
            // The dial of this request never ends.
            let never = std::future::pending::<Result<Dialled<DuplexStream>, Infallible>>;
            async move { pool.open(&key("a"), &connect(), never).await }
        });
        run_other_tasks().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap().is_ok());
    });
}

#[test]
fn a_dial_error_fails_all_requests_that_wait_for_the_dial() {
    run(async {
        let pool = Pool::<std::io::Error>::new(Rc::new(config()));
        let dials = Cell::new(0);
        let fail = || {
            dials.set(dials.get() + 1);
            async {
                tokio::task::yield_now().await;
                Err::<Dialled<DuplexStream>, _>(std::io::ErrorKind::ConnectionRefused.into())
            }
        };
        let (key, connect) = (key("a"), connect());
        let opens = (0..50).map(|_| pool.open(&key, &connect, fail));
        for opened in futures::future::join_all(opens).await {
            let error = opened.unwrap_err();
            assert_eq!(error.reason(), "dial");
            assert!(error.to_string().contains("refused"), "{error}");
        }
        assert_eq!(dials.get(), 1);
        // The next request dials again.
        assert!(pool.open(&key, &connect, fail).await.is_err());
        assert_eq!(dials.get(), 2);
        assert!(pool.has_no_groups());
    });
}

#[test]
fn a_dial_that_hangs_times_out() {
    run(async {
        let local = Config {
            connect_timeout: Duration::from_millis(20),
            ..config()
        };
        let pool = Pool::<Infallible>::new(Rc::new(local));
        let never = std::future::pending::<Result<Dialled<DuplexStream>, Infallible>>;
        let error = pool.open(&key("a"), &connect(), never).await.unwrap_err();
        assert_eq!(error.reason(), "dial_timeout");
    });
}

#[test]
fn a_cancelled_request_does_not_cancel_its_dial() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let gate = Rc::new(tokio::sync::Notify::new());
        let spawn = |name: &'static str| {
            let (peer, pool, gate) = (Rc::clone(&peer), Rc::clone(&pool), Rc::clone(&gate));
            tokio::task::spawn_local(async move {
                let dial = || {
                    let dial = peer.dial();
                    async move {
                        gate.notified().await;
                        dial.await
                    }
                };
                pool.open(&key(name), &connect(), dial).await
            })
        };
        let first = spawn("a");
        run_other_tasks().await;
        let second = spawn("a");
        run_other_tasks().await;
        first.abort();
        run_other_tasks().await;
        gate.notify_one();
        assert!(second.await.unwrap().is_ok());
        assert_eq!(peer.dials.get(), 1);
        run_other_tasks().await;
        assert_eq!(pool.tunnels(), 0);
    });
}

#[test]
fn a_request_cancelled_before_its_dial_returns_the_permit() {
    run(async {
        let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
        let (key, connect) = (key("a"), connect());
        let mut first = Box::pin(pool.open(&key, &connect, || peer.dial()));
        let mut second = Box::pin(pool.open(&key, &connect, || peer.dial()));
        // Both have been polled once; the request that was granted the dial is dropped.
        let poll = |future: std::pin::Pin<&mut dyn Future<Output = _>>| {
            let mut no_wake = std::task::Context::from_waker(std::task::Waker::noop());
            let ready: std::task::Poll<Result<Tunnel, OpenError<Infallible>>> =
                future.poll(&mut no_wake);
            ready.is_ready()
        };
        assert!(!poll(first.as_mut()));
        assert!(!poll(second.as_mut()));
        drop(first);
        assert!(second.await.is_ok());
    });
}

#[test]
fn a_cancelled_request_frees_its_slot_and_resets_its_stream() {
    run(async {
        let (local, remote) = tokio::io::duplex(64 * 1024);
        let cancelled = Rc::new(Cell::new(false));
        tokio::task::spawn_local({
            let cancelled = Rc::clone(&cancelled);
            async move {
                let (_drain, drained) = watch::channel(false);
                let never_answer = |mut request: Request| {
                    let cancelled = Rc::clone(&cancelled);
                    drop(tokio::task::spawn_local(async move {
                        request.cancelled().await;
                        cancelled.set(true);
                    }));
                };
                serve(remote, &config(), drained, never_answer).await
            }
        });
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        let (key, connect) = (key("a"), connect());
        let opening = pool.open(&key, &connect, || async { Ok(Dialled::new(local)) });
        assert!(
            tokio::time::timeout(Duration::from_millis(20), opening)
                .await
                .is_err()
        );
        assert_eq!(pool.tunnels(), 0);
        until(|| cancelled.get()).await;
    });
}
