//! Tunnels that the peer resets: the bytes before the reset are returned first.

use h2::Reason;

use super::*;

const TEXT: &[u8] = &[7; 100_000];

/// A tunnel whose peer has sent bytes and then reset it, with or without END_STREAM before. All
/// frames have arrived; none was read.
async fn reset_by_peer(
    local_opens: bool,
    finished: bool,
    reason: Reason,
) -> (Tunnel, (Tunnel, Rc<Pool<Infallible>>, Rc<Peer>)) {
    let (local, remote, pool, peer) = pair(config(), config()).await;
    let (mut left, mut resets) = if local_opens {
        (local, remote)
    } else {
        (remote, local)
    };
    resets
        .send
        .send_all(Bytes::from_static(TEXT))
        .await
        .unwrap();
    if finished {
        resets.send.finish().unwrap();
    }
    // A reset discards bytes that are not sent yet.
    run_other_tasks().await;
    resets.send.reset(reason);
    std::future::poll_fn(|cx| left.send.poll_reset(cx)).await;
    (left, (resets, pool, peer))
}

#[test]
fn bytes_before_a_reset_are_read_and_its_code_decides_if_the_end_is_orderly() {
    run(async {
        for local_opens in [true, false] {
            for (finished, reason, orderly) in [
                (true, Reason::NO_ERROR, true),
                (true, Reason::CONNECT_ERROR, true),
                (true, Reason::CANCEL, true),
                (true, Reason::INTERNAL_ERROR, true),
                (false, Reason::NO_ERROR, true),
                (false, Reason::CONNECT_ERROR, true),
                (false, Reason::CANCEL, false),
                (false, Reason::INTERNAL_ERROR, false),
            ] {
                let case = format!("{local_opens}, {finished}, {reason:?}");
                let (mut left, _others) = reset_by_peer(local_opens, finished, reason).await;
                let mut read = Vec::new();
                let end = loop {
                    match left.recv.data().await {
                        Some(Ok(data)) => {
                            left.recv.release(data.len()).unwrap();
                            read.extend_from_slice(&data);
                        }
                        end => break end.map(Result::unwrap_err),
                    }
                };
                assert!(read == TEXT, "{case}: {} bytes", read.len());
                assert_eq!(end.is_none(), orderly, "{case}: {end:?}");
                let refused = left.send.send(Bytes::from_static(b"x")).unwrap_err();
                let expected = format!("the peer reset the tunnel with {reason:?}");
                for error in [Some(refused), end].into_iter().flatten() {
                    assert!(error.to_string().contains(&expected), "{case}: {error}");
                }
            }
        }
    });
}

/// TLS and the inner tunnel use the outer tunnel like this: a write error would end them before
/// they have read all bytes.
#[test]
fn a_reset_outer_tunnel_is_read_to_its_end_and_ignores_writes() {
    run(async {
        for (finished, reason, orderly) in [
            (true, Reason::NO_ERROR, true),
            (false, Reason::CONNECT_ERROR, true),
            (true, Reason::CANCEL, true),
            (false, Reason::CANCEL, false),
        ] {
            let (left, _others) = reset_by_peer(true, finished, reason).await;
            let mut stream = left.into_stream(config().handshake_timeout);
            stream.write_all(b"too late").await.unwrap();
            let mut read = Vec::new();
            let end = stream.read_to_end(&mut read).await;
            assert!(read == TEXT, "{reason:?}: {} bytes", read.len());
            assert_eq!(end.is_ok(), orderly, "{reason:?}: {end:?}");
            stream.write_all(b"later").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
}
