//! Retries of a CONNECT whose connection closes before the response.

use super::*;

/// A peer of raw frames: it answers the first CONNECT with 200 and the second one with the bytes of
/// `then`. If `then` is empty, it closes the connection.
async fn raw_peer(mut io: DuplexStream, then: Vec<u8>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut seen = Vec::new();
    io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut answered = 0;
    while let Ok(read @ 1..) = io.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..read]);
        let headers = count_headers(&seen);
        if answered == 0 && headers > 0 {
            answered = 1;
            io.write_all(&ok_headers(1)).await.unwrap();
        }
        if answered == 1 && headers > 1 {
            answered = 2;
            if then.is_empty() {
                return;
            }
            io.write_all(&then).await.unwrap();
        }
    }
}

/// Counts the HEADERS frames in a client's bytes, which begin with its preface of 24 bytes.
fn count_headers(seen: &[u8]) -> usize {
    let (mut at, mut headers) = (24, 0);
    while let Some(head) = seen.get(at..at + 9) {
        headers += usize::from(head[3] == 1);
        at += 9 + usize::from(head[1]) * 256 + usize::from(head[2]) + (usize::from(head[0]) << 16);
    }
    headers
}

/// Opens one tunnel, then a second one whose CONNECT the peer answers with `then`.
async fn second_open_after(then: Vec<u8>) -> (Result<Tunnel, OpenError<Infallible>>, Rc<Peer>) {
    let (peer, pool) = (Peer::new(config()), Pool::new(Rc::new(config())));
    let (local, remote) = tokio::io::duplex(64 * 1024);
    tokio::task::spawn_local(raw_peer(remote, then));
    let first = pool
        .open(&key("a"), &connect(), || async { Ok(Dialled::new(local)) })
        .await
        .unwrap();
    let second = pool.open(&key("a"), &connect(), || peer.dial()).await;
    drop(first);
    (second, peer)
}

#[test]
fn a_stream_above_the_goaways_last_stream_is_retried_on_a_new_connection() {
    run(async {
        // Last stream 1, NO_ERROR: stream 3 was not processed.
        let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        let (second, peer) = second_open_after(goaway).await;
        second.unwrap();
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn a_refused_stream_is_retried_on_another_connection() {
    run(async {
        let refused = frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]);
        let (second, peer) = second_open_after(refused).await;
        second.unwrap();
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn a_connect_on_a_used_connection_that_closes_is_retried() {
    run(async {
        let (second, peer) = second_open_after(Vec::new()).await;
        second.unwrap();
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn a_stream_reset_with_another_code_is_not_retried() {
    run(async {
        // INTERNAL_ERROR
        let (second, peer) = second_open_after(frame(RST_STREAM, 0, 3, &[0, 0, 0, 2])).await;
        assert_eq!(second.unwrap_err().reason(), "stream_reset");
        assert_eq!(peer.dials.get(), 0);
    });
}

#[test]
fn a_connect_on_a_new_connection_that_closes_is_not_retried() {
    run(async {
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        let dial = || async {
            let (local, mut remote) = tokio::io::duplex(64 * 1024);
            tokio::task::spawn_local(async move { remote.read(&mut [0; 1024]).await });
            Ok(Dialled::new(local))
        };
        let error = pool.open(&key("a"), &connect(), dial).await.unwrap_err();
        assert_eq!(
            (error.reason(), error.fault()),
            ("connection_lost", Fault::Upstream)
        );
        assert!(error.to_string().contains("certificate"), "{error}");
    });
}

#[test]
fn a_connection_that_received_goaway_gets_no_new_tunnel() {
    run(async {
        let (first, other, pool, peer) = pair(config(), config()).await;
        peer.drain.send_replace(true);
        until(|| pool.is_empty()).await;
        let fresh = Peer::new(config());
        let second = open(&pool, &key("a"), &fresh).await;
        assert_eq!((peer.dials.get(), fresh.dials.get()), (1, 1));
        // The old tunnel still works.
        let (mut first, mut other) = (first, other);
        first
            .send
            .send_all(Bytes::from_static(b"still here"))
            .await
            .unwrap();
        assert_eq!(other.recv.data().await.unwrap().unwrap(), "still here");
        drop((first, second));
    });
}
