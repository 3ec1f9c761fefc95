//! The number of flushes of the byte stream below: for TLS, each flush is a system call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

/// A byte stream that counts its flushes.
struct Counting {
    io: DuplexStream,
    flushes: Rc<Cell<usize>>,
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes.set(self.flushes.get() + 1);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[test]
fn frames_of_many_tunnels_leave_in_one_flush() {
    run(async {
        let (peer, pool) = (
            Peer::new(config()),
            Pool::<Infallible>::new(Rc::new(config())),
        );
        let flushes = Rc::new(Cell::new(0));
        let dial = || {
            let (io, flushes) = (peer.dial(), Rc::clone(&flushes));
            async move {
                let io = io.await?.stream;
                Ok(Dialled::new(Counting { io, flushes }))
            }
        };
        let (key, connect) = (key("a"), connect());
        let mut tunnels = Vec::new();
        for _ in 0..20 {
            tunnels.push(pool.open(&key, &connect, dial).await.unwrap());
        }
        run_other_tasks().await;
        flushes.set(0);
        for tunnel in &mut tunnels {
            tunnel
                .send
                .send_all(Bytes::from(vec![7; 2000]))
                .await
                .unwrap();
        }
        run_other_tasks().await;
        assert_eq!(flushes.get(), 1);
        for mut accepted in peer.tunnels.take() {
            assert_eq!(accepted.recv.data().await.unwrap().unwrap().len(), 2000);
        }
    });
}
