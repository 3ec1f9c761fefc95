//! Whether the peer of an accepted connection still waits, found out without reading from it.

#![allow(
    unsafe_code,
    reason = "a descriptor is registered with the event queue by an unsafe function"
)]

use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// What the end of the peer's data means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEnd {
    /// A peer that has sent something first may only have closed its writing side, and wait for the
    /// answer: it is gone when the connection is reset.
    MayBeHalf,
    /// Without its other half the connection is of no use.
    IsAll,
}

/// Waits until the peer of a connection is gone: it has reset it, or closed it (see [`PeerEnd`]).
/// Nothing is read, and what the stream knows of its readiness stays as it is.
pub async fn peer_gone(stream: &TcpStream, end: PeerEnd) {
    if let Err(error) = watch(stream, end).await {
        // Then the wait is bounded by its time alone.
        tracing::debug!(%error, "cannot watch a connection that waits");
        pending::<()>().await;
    }
}

async fn watch(stream: &TcpStream, end: PeerEnd) -> io::Result<()> {
    // A descriptor of its own has readiness of its own: that of the stream is for its reader, who
    // would wait in vain for bytes that have come already.
    let own: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    let interest = Interest::READABLE | Interest::ERROR;
    // SAFETY: the AsyncFd owns this descriptor, which no other code closes.
    let watched = unsafe { AsyncFd::register_with_interest(own, interest) }?;
    loop {
        let mut guard = watched.ready(interest).await?;
        let ready = guard.ready();
        if ready.is_error() {
            return Ok(());
        }
        if ready.is_read_closed() {
            if end == PeerEnd::IsAll || !has_bytes(stream) {
                return Ok(());
            }
            return pending().await;
        }
        guard.clear_ready();
    }
}

fn has_bytes(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(stream).peek(&mut byte), Ok(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Longer than anything here takes.
    const LIMIT: Duration = Duration::from_secs(10);
    /// For what is not to happen.
    const A_WHILE: Duration = Duration::from_millis(100);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, accepted) = tokio::join!(near, listener.accept());
        (near.unwrap(), accepted.unwrap().0)
    }

    async fn is_gone(stream: &TcpStream, end: PeerEnd) -> bool {
        tokio::time::timeout(LIMIT, peer_gone(stream, end))
            .await
            .is_ok()
    }

    async fn stays(stream: &TcpStream, end: PeerEnd) -> bool {
        tokio::time::timeout(A_WHILE, peer_gone(stream, end))
            .await
            .is_err()
    }

    #[tokio::test]
    async fn a_peer_that_closes_or_resets_is_gone() {
        for end in [PeerEnd::MayBeHalf, PeerEnd::IsAll] {
            let (near, far) = pair().await;
            assert!(stays(&far, end).await);
            drop(near);
            assert!(is_gone(&far, end).await, "{end:?}");
            let (mut near, far) = pair().await;
            near.write_all(b"sent before").await.unwrap();
            SockRef::from(&near)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(near);
            assert!(is_gone(&far, end).await, "{end:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_has_sent_its_request_may_wait_for_the_answer() {
        let (mut near, far) = pair().await;
        near.write_all(b"a request").await.unwrap();
        near.shutdown().await.unwrap();
        assert!(stays(&far, PeerEnd::MayBeHalf).await);
        assert!(is_gone(&far, PeerEnd::IsAll).await);
    }

    #[tokio::test]
    async fn what_has_come_is_left_for_the_reader() {
        let (mut near, mut far) = pair().await;
        near.write_all(b"early").await.unwrap();
        assert!(stays(&far, PeerEnd::MayBeHalf).await);
        let mut read = [0; 5];
        let reading = tokio::time::timeout(LIMIT, far.read_exact(&mut read));
        reading.await.unwrap().unwrap();
        assert_eq!(&read, b"early");
    }
}
