//! An abort of either side becomes an abort of the other, in every state of the connection.

use std::io::ErrorKind;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::pipes;
use super::{ALL, CopyStrategy, relayed, stretch};

/// Closes with a reset instead of a FIN (socket(7), `SO_LINGER` of zero).
fn abort(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// Runs `play` with the aborting end and the other end, in both roles.
async fn in_both_roles(strategy: CopyStrategy, play: impl AsyncFn(TcpStream, TcpStream)) {
    for client_aborts in [true, false] {
        let outcome = relayed(strategy, async |client, server| {
            if client_aborts {
                play(client, server).await;
            } else {
                play(server, client).await;
            }
        })
        .await;
        assert!(outcome.ended.broken.is_some(), "{strategy:?}");
    }
}

/// Reads until the connection breaks.
async fn hears_a_reset(stream: &mut TcpStream, strategy: CopyStrategy) {
    let broke = stream.read_to_end(&mut Vec::new()).await;
    let kind = broke.as_ref().map_err(std::io::Error::kind);
    assert_eq!(
        kind,
        Err(ErrorKind::ConnectionReset),
        "{strategy:?}: {broke:?}"
    );
}

#[tokio::test]
async fn of_an_idle_connection() {
    for strategy in ALL {
        in_both_roles(strategy, async |mut aborts, mut hears| {
            aborts.write_all(b"!").await.unwrap();
            hears.read_exact(&mut [0]).await.unwrap();
            abort(aborts);
            hears_a_reset(&mut hears, strategy).await;
        })
        .await;
    }
}

#[tokio::test]
async fn of_the_writer_in_the_middle_of_its_bytes() {
    for strategy in ALL {
        in_both_roles(strategy, async |mut aborts, mut hears| {
            let megabyte = stretch(0, 1 << 20);
            for _ in 0..8 {
                let mut read = vec![0; megabyte.len()];
                let (wrote, read) =
                    tokio::join!(aborts.write_all(&megabyte), hears.read_exact(&mut read));
                wrote.unwrap();
                read.unwrap();
            }
            aborts.write_all(&stretch(0, 100_000)).await.unwrap();
            abort(aborts);
            hears_a_reset(&mut hears, strategy).await;
        })
        .await;
    }
}

#[tokio::test]
async fn of_the_reader_while_bytes_wait_for_it() {
    for strategy in ALL {
        in_both_roles(strategy, async |aborts, mut hears| {
            let megabyte = stretch(0, 1 << 20);
            let still = Duration::from_millis(200);
            while let Ok(wrote) = tokio::time::timeout(still, hears.write_all(&megabyte)).await {
                wrote.unwrap();
            }
            abort(aborts);
            let error = loop {
                if let Err(error) = hears.write_all(&megabyte).await {
                    break error;
                }
            };
            let kind = error.kind();
            let told = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(told, "{strategy:?}: {error}");
        })
        .await;
        // A pipe with remaining bytes is closed with the connection.
        assert_eq!(pipes::leased(), 0, "{strategy:?}");
    }
}

#[tokio::test]
async fn of_who_has_half_closed_while_the_other_says_nothing() {
    for strategy in ALL {
        in_both_roles(strategy, async |mut aborts, mut hears| {
            aborts.write_all(b"!").await.unwrap();
            aborts.shutdown().await.unwrap();
            assert_eq!(hears.read_to_end(&mut Vec::new()).await.unwrap(), 1);
            abort(aborts);
            // Its stream has ended, so only an error reports the abort; it does not read.
            hears.ready(tokio::io::Interest::ERROR).await.unwrap();
            let error = hears.write_all(b"?").await.unwrap_err();
            let kind = error.kind();
            let told = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(told, "{strategy:?}: {error}");
        })
        .await;
    }
}

#[tokio::test]
async fn of_who_hears_a_half_close_and_says_nothing() {
    for strategy in ALL {
        in_both_roles(strategy, async |mut aborts, mut hears| {
            hears.write_all(b"!").await.unwrap();
            hears.shutdown().await.unwrap();
            assert_eq!(aborts.read_to_end(&mut Vec::new()).await.unwrap(), 1);
            abort(aborts);
            hears_a_reset(&mut hears, strategy).await;
        })
        .await;
    }
}
