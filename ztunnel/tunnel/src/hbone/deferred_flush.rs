//! The byte stream under an HTTP/2 connection: defers flushes, and records that bytes arrived.
//!
//! h2 flushes after every larger frame. Our TLS stream buffers records until it is flushed, so each
//! of these flushes would be a system call. [`DeferredFlush`] ignores h2's flushes; the task that
//! drives the connection flushes once h2 has nothing more to write. Bytes that arrived show the
//! keepalive that the peer is alive, so a busy connection needs no PING.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A byte stream shared by h2, which reads and writes, and the driver, which flushes.
pub(crate) struct DeferredFlush<IO> {
    shared: Rc<Shared<IO>>,
}

struct Shared<IO> {
    io: RefCell<IO>,
    /// Bytes arrived since the driver last checked.
    received: Cell<bool>,
    /// Bytes were written since the last flush.
    unflushed: Cell<bool>,
}

impl<IO> Clone for DeferredFlush<IO> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

impl<IO> DeferredFlush<IO> {
    pub(crate) fn new(io: IO) -> Self {
        let io = RefCell::new(io);
        Self {
            shared: Rc::new(Shared {
                io,
                received: Cell::new(false),
                unflushed: Cell::new(false),
            }),
        }
    }

    /// Whether bytes arrived since the last call.
    pub(crate) fn take_received(&self) -> bool {
        self.shared.received.take()
    }
}

impl<IO: AsyncWrite + Unpin> DeferredFlush<IO> {
    /// Flushes the bytes that h2 wrote; costs nothing when there are none.
    pub(crate) fn poll_flush_now(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shared.unflushed.get() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut *self.shared.io.borrow_mut()).poll_flush(cx);
        if flushed.is_ready() {
            self.shared.unflushed.set(false);
        }
        flushed
    }

    /// Polls a future of h2 outside of the driver task (the handshake), and flushes after each
    /// poll.
    pub(crate) async fn flushing<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let done = future.as_mut().poll(cx);
            match (self.poll_flush_now(cx), done) {
                (Poll::Ready(Err(error)), Poll::Pending) => Poll::Ready(Err(error)),
                (_, Poll::Ready(output)) => Poll::Ready(Ok(output)),
                _ => Poll::Pending,
            }
        })
        .await
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for DeferredFlush<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut *self.shared.io.borrow_mut()).poll_read(cx, into);
        if into.filled().len() > before {
            self.shared.received.set(true);
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for DeferredFlush<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.unflushed.set(true);
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.unflushed.set(true);
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.shared.io.borrow().is_write_vectored()
    }

    /// Does nothing: see the module documentation.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_flush_now(cx))?;
        Pin::new(&mut *self.shared.io.borrow_mut()).poll_shutdown(cx)
    }
}
