//! An open tunnel: two directions with flow control, in terms a relay understands.
//!
//! What is received counts against the stream's window until [`Receiver::release`] says that it
//! was written onward, so a slow reader stops the far end instead of filling memory. What is
//! sent waits for [`Sender::poll_ready`], which grants no more than the peer's window and our
//! send buffer allow. A tunnel dropped before both directions ended is reset, never closed
//! politely: the far end must not take half a transfer for a whole one. A peer's reset ends the
//! sending direction at once; the receiving one hands out first what came before.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::client::{RevokedMark, Slot};
use super::error::{ResetBy, TunnelError};

/// One tunnel. The two directions are independent; borrow them apart as `&mut tunnel.send` and
/// `&mut tunnel.recv`.
#[derive(Debug)]
pub struct Tunnel {
    /// Towards the far end.
    pub send: Sender,
    /// From the far end.
    pub recv: Receiver,
    /// The place on a pooled connection, given back after the streams above are dropped.
    hold: Option<Slot>,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, hold: Option<Slot>) -> Self {
        Self {
            send: Sender {
                stream: send,
                finished: false,
            },
            recv: Receiver {
                stream: recv,
                ended: false,
            },
            hold,
        }
    }

    /// Tells the far end that the tunnel broke: RST_STREAM(CANCEL). Bytes not sent yet are lost.
    /// Dropping an unfinished tunnel does the same.
    pub fn abort(self) {
        drop(self);
    }

    /// Whether both directions have come to their end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.send.finished && self.recv.is_ended()
    }

    /// Whether the tunnel runs on a pooled connection of ours, rather than one we accepted.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.hold.is_some()
    }

    /// Says, once the tunnel has broken, whether its pooled connection was ended because the peer's
    /// certificate was revoked. Never for a tunnel on a connection that we accepted: there whoever
    /// serves it knows.
    #[must_use]
    pub fn revoked(&self) -> RevokedMark {
        let hold = self.hold.as_ref();
        hold.map_or_else(RevokedMark::default, |slot| {
            slot.connection().revoked().clone()
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // A reset would also throw away queued bytes of a tunnel that ended well.
        if !self.is_finished() {
            self.send.reset(Reason::CANCEL);
        }
    }
}

/// The sending direction of a tunnel.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream<Bytes>,
    finished: bool,
}

impl Sender {
    /// Waits until at least one byte may be sent, and says how many of the `want` bytes may.
    /// Call it with bytes in hand: what it grants is taken from the connection's window, which
    /// other tunnels share. Woken by a reset as well.
    ///
    /// # Errors
    /// When the tunnel is over.
    pub fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
    ) -> Poll<Result<usize, TunnelError>> {
        let want = want.max(1);
        self.stream.reserve_capacity(want);
        loop {
            let granted = self.stream.capacity();
            if granted > 0 {
                return Poll::Ready(Ok(granted.min(want)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(self.why_over())),
            }
        }
    }

    /// Queues bytes, no more than [`Self::poll_ready`] granted: h2 would queue without bound.
    ///
    /// # Errors
    /// When the tunnel is over.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        // An empty frame says nothing, and peers count them as an attack.
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream
            .send_data(bytes, false)
            .map_err(|error| self.or_why_over(error))
    }

    /// Queues all of `bytes` as flow control allows; what is left stays in `bytes`. Ready when
    /// none is left. Cheaper than the two calls above when the bytes fit.
    ///
    /// # Errors
    /// When the tunnel is over.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<Result<(), TunnelError>> {
        while !bytes.is_empty() {
            let granted = ready!(self.poll_ready(cx, bytes.len()))?;
            self.send(bytes.split_to(granted))?;
        }
        Poll::Ready(Ok(()))
    }

    /// [`Self::poll_send`] as a future.
    ///
    /// # Errors
    /// When the tunnel is over.
    pub async fn send_all(&mut self, mut bytes: Bytes) -> Result<(), TunnelError> {
        poll_fn(|cx| self.poll_send(cx, &mut bytes)).await
    }

    /// Half-closes: END_STREAM after what is queued. A second call does nothing.
    ///
    /// # Errors
    /// When the tunnel is over otherwise.
    pub fn finish(&mut self) -> Result<(), TunnelError> {
        if self.finished {
            return Ok(());
        }
        self.stream
            .send_data(Bytes::new(), true)
            .map_err(|error| self.or_why_over(error))?;
        self.finished = true;
        Ok(())
    }

    /// Queues the last bytes and half-closes in one frame; no more bytes than were granted.
    ///
    /// # Errors
    /// When the tunnel is over otherwise.
    pub fn send_last(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        self.stream
            .send_data(bytes, true)
            .map_err(|error| self.or_why_over(error))?;
        self.finished = true;
        Ok(())
    }

    /// Whether the half-close is done.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Waits for the far end's RST_STREAM or the loss of the connection: for a sender that has
    /// nothing to send. It shares its waker with [`Self::poll_ready`], so poll both from one
    /// task. Pending for ever after the tunnel ended well.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        self.stream.poll_reset(cx).map(|why| match why {
            Ok(reason) => TunnelError::Reset {
                reason,
                by: ResetBy::Peer,
            },
            Err(error) => error.into(),
        })
    }

    /// Resets the tunnel, both directions. Nothing happens when it is over already.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// h2 only says that the stream is not open; the reset it remembers says why.
    fn why_over(&mut self) -> TunnelError {
        let mut nobody = Context::from_waker(Waker::noop());
        match self.poll_reset(&mut nobody) {
            Poll::Ready(error) => error,
            Poll::Pending => TunnelError::Finished,
        }
    }

    fn or_why_over(&mut self, error: h2::Error) -> TunnelError {
        if error.reason().is_some() || error.is_io() {
            error.into()
        } else {
            self.why_over()
        }
    }
}

/// The receiving direction of a tunnel.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    ended: bool,
}

impl Receiver {
    /// The next bytes, as they came in one frame; `None` after the far end's half-close, or after
    /// a reset by which it ends the tunnel in an orderly way ([`TunnelError::is_orderly`]). h2 keeps
    /// what came before a reset, so all of it is handed out before either.
    ///
    /// # Errors
    /// When the tunnel was reset otherwise or its connection lost.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TunnelError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                // A half-close without bytes is an empty frame first, then the end.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Some(Ok(data))),
                Some(Err(error)) => {
                    let error = TunnelError::from(error);
                    if !error.is_orderly() {
                        return Poll::Ready(Some(Err(error)));
                    }
                    break;
                }
                None => break,
            }
        }
        self.ended = true;
        Poll::Ready(None)
    }

    /// [`Self::poll_data`] as a future.
    ///
    /// # Errors
    /// As [`Self::poll_data`].
    pub async fn data(&mut self) -> Option<Result<Bytes, TunnelError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Says that `bytes` of what was received were written onward and are out of memory, so that
    /// the far end may send as many again.
    ///
    /// # Errors
    /// When more is released than was received.
    pub fn release(&mut self, bytes: usize) -> Result<(), TunnelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.stream
            .flow_control()
            .release_capacity(bytes)
            .map_err(TunnelError::from)
    }

    /// Whether the far end has half-closed and everything before it was read.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }
}
