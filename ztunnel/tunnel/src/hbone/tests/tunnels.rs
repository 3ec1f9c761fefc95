//! The transfer of bytes through an open tunnel, and the ways it ends.

use std::future::poll_fn;
use std::task::Poll;

use super::*;

fn pattern(length: usize) -> Bytes {
    (0..length)
        .map(|at| (at * 31 % 251).to_le_bytes()[0])
        .collect::<Vec<u8>>()
        .into()
}

#[test]
fn either_side_may_half_close_first() {
    run(async {
        let (mut local, mut remote, ..) = pair(config(), config()).await;
        local
            .send
            .send_all(Bytes::from_static(b"request"))
            .await
            .unwrap();
        local.send.finish().unwrap();
        assert_eq!(read_all(&mut remote.recv).await.unwrap(), b"request");
        remote
            .send
            .send_all(Bytes::from_static(b"late answer"))
            .await
            .unwrap();
        remote.send.finish().unwrap();
        assert_eq!(read_all(&mut local.recv).await.unwrap(), b"late answer");
        assert!(local.is_finished() && remote.is_finished());

        let (mut local, mut remote, ..) = pair(config(), config()).await;
        remote
            .send
            .send_last(Bytes::from_static(b"greeting"))
            .unwrap();
        assert_eq!(read_all(&mut local.recv).await.unwrap(), b"greeting");
        local
            .send
            .send_all(Bytes::from_static(b"and more"))
            .await
            .unwrap();
        local.send.finish().unwrap();
        assert_eq!(read_all(&mut remote.recv).await.unwrap(), b"and more");
    });
}

#[test]
fn dropping_an_unfinished_tunnel_resets_it() {
    run(async {
        for local_drops in [true, false] {
            let (local, remote, ..) = pair(config(), config()).await;
            let (dropped, mut left) = if local_drops {
                (local, remote)
            } else {
                (remote, local)
            };
            let mut dropped = dropped;
            // A half-closed tunnel is not finished.
            dropped.send.finish().unwrap();
            assert!(left.recv.data().await.is_none());
            dropped.abort();
            let reset = poll_fn(|cx| left.send.poll_reset(cx)).await;
            let cancelled = matches!(
                reset,
                TunnelError::Reset {
                    reason: h2::Reason::CANCEL,
                    by: ResetBy::Peer,
                }
            );
            assert!(cancelled, "{reset}");
            let error = left.send.send(Bytes::from_static(b"x")).unwrap_err();
            assert_eq!(error.reason(), "reset");
        }
    });
}

#[test]
fn a_reset_wakes_a_reader_and_a_sender_that_waits_for_the_window() {
    run(async {
        for local_drops in [true, false] {
            let (local, remote, ..) = pair(config(), config()).await;
            let (dropped, mut left) = if local_drops {
                (local, remote)
            } else {
                (remote, local)
            };
            let both = tokio::task::spawn_local(async move {
                let Tunnel { send, recv, .. } = &mut left;
                let flood = send.send_all(pattern(64 << 20));
                let (sent, received) = futures::future::join(flood, recv.data()).await;
                (sent.unwrap_err(), received.unwrap().unwrap_err())
            });
            run_other_tasks().await;
            assert!(!both.is_finished());
            drop(dropped);
            let (sent, received) = both.await.unwrap();
            assert_eq!((sent.reason(), received.reason()), ("reset", "reset"));
        }
    });
}

#[test]
fn a_finished_tunnel_may_be_dropped_before_its_bytes_are_sent() {
    run(async {
        let (mut local, mut remote, ..) = pair(config(), config()).await;
        local.send.finish().unwrap();
        assert!(remote.recv.data().await.is_none());
        let bytes = pattern(300_000);
        remote.send.send_all(bytes.clone()).await.unwrap();
        remote.send.finish().unwrap();
        drop(remote);
        assert_eq!(read_all(&mut local.recv).await.unwrap(), bytes);
    });
}

/// Sends as many bytes as flow control accepts now.
async fn send_available(send: &mut Sender, bytes: &mut Bytes) {
    poll_fn(|cx| match send.poll_send(cx, bytes) {
        Poll::Ready(Err(error)) => panic!("{error}"),
        _ => Poll::Ready(()),
    })
    .await;
}

#[test]
fn a_receiver_that_releases_nothing_stops_the_sender() {
    run(async {
        let (window, buffer) = (256 * 1024, 128 * 1024);
        let both = Config {
            stream_window: window,
            send_buffer: buffer,
            ..config()
        };
        let (mut local, mut remote, ..) = pair(both.clone(), both).await;
        let total = 8 << 20;
        let mut bytes = pattern(total);
        for _ in 0..50 {
            send_available(&mut local.send, &mut bytes).await;
            run_other_tasks().await;
        }
        let accepted = total - bytes.len();
        assert!(
            accepted <= window as usize + buffer,
            "{accepted} bytes accepted"
        );
        // The receiver reads, but does not release the bytes.
        let mut held = 0;
        while held < window as usize {
            held += remote.recv.data().await.unwrap().unwrap().len();
        }
        for _ in 0..50 {
            send_available(&mut local.send, &mut bytes).await;
            run_other_tasks().await;
        }
        assert!(total - bytes.len() <= window as usize + buffer);
        // Now the receiver releases them.
        remote.recv.release(held).unwrap();
        let rest = async {
            local.send.send_all(bytes).await.unwrap();
            local.send.finish().unwrap();
        };
        let (read, ()) = futures::future::join(read_all(&mut remote.recv), rest).await;
        assert_eq!(held + read.unwrap().len(), total);
    });
}

#[test]
fn a_stalled_tunnel_does_not_stop_other_tunnels_of_the_connection() {
    run(async {
        let (mut local, _far, pool, peer) = pair(config(), config()).await;
        let mut flood = pattern(16 << 20);
        send_available(&mut local.send, &mut flood).await;
        run_other_tasks().await;
        let mut second = open(&pool, &key("a"), &peer).await;
        assert_eq!(peer.dials.get(), 1);
        let mut other = peer.take_tunnel();
        let bytes = pattern(4 << 20);
        let send = async {
            second.send.send_all(bytes.clone()).await.unwrap();
            second.send.finish().unwrap();
        };
        let (read, ()) = futures::future::join(read_all(&mut other.recv), send).await;
        assert!(read.unwrap() == bytes);
    });
}

#[test]
fn releasing_more_than_was_received_is_an_error() {
    run(async {
        let (_near, mut remote, ..) = pair(config(), config()).await;
        assert_eq!(remote.recv.release(1).unwrap_err().reason(), "misuse");
        remote.recv.release(0).unwrap();
        remote.send.finish().unwrap();
        remote.send.finish().unwrap();
        assert_eq!(
            remote
                .send
                .send(Bytes::from_static(b"x"))
                .unwrap_err()
                .reason(),
            "finished"
        );
    });
}

#[test]
fn sixteen_mib_in_both_directions_over_tcp_arrive_unchanged() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bytes = pattern(16 << 20);
        let serving = tokio::task::spawn_local({
            async move {
                let (io, _) = listener.accept().await.unwrap();
                let (_drain, drained) = watch::channel(false);
                let echo = |request: Request| {
                    drop(tokio::task::spawn_local(async move {
                        let Tunnel { send, recv, .. } = &mut request.accept().unwrap();
                        while let Some(data) = recv.data().await {
                            let data = data.unwrap();
                            let length = data.len();
                            send.send_all(data).await.unwrap();
                            recv.release(length).unwrap();
                        }
                        send.finish().unwrap();
                    }));
                };
                serve(io, &config(), drained, echo).await
            }
        });
        let pool = Pool::<std::io::Error>::new(Rc::new(config()));
        let dial = || async move {
            let stream = tokio::net::TcpStream::connect(address).await;
            stream.map(Dialled::new)
        };
        let mut tunnel = pool.open(&key("a"), &connect(), dial).await.unwrap();
        let Tunnel { send, recv, .. } = &mut tunnel;
        let sending = async {
            for chunk in bytes.chunks(200_000) {
                send.send_all(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            send.finish().unwrap();
        };
        let (back, ()) = futures::future::join(read_all(recv), sending).await;
        assert!(back.unwrap() == bytes);
        drop(tunnel);
        pool.evict(|_| true);
        serving.await.unwrap().unwrap();
    });
}
