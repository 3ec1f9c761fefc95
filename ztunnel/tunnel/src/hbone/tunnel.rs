//! An open tunnel: two directions with flow control.
//!
//! Received bytes occupy the stream's window until [`Receiver::release`] reports that they were
//! forwarded, so a slow application stops the peer instead of filling memory. Sending waits for
//! [`Sender::poll_ready`], which grants no more than the peer's window and our send buffer allow. A
//! tunnel that is dropped before both directions have ended is reset, never closed in an orderly
//! way: the peer must not take a partial transfer for a complete one. A peer's reset ends the
//! sending direction at once; the receiving direction first returns the bytes that arrived before
//! it.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::connection::{RevokedMark, StreamSlot};
use super::error::{ResetBy, TunnelError};

/// One tunnel. The two directions are independent; borrow them separately as `&mut tunnel.send` and
/// `&mut tunnel.recv`.
#[derive(Debug)]
pub struct Tunnel {
    /// To the peer.
    pub send: Sender,
    /// From the peer.
    pub recv: Receiver,
    /// The slot on a pooled connection, released after the streams above are dropped.
    slot: Option<StreamSlot>,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, slot: Option<StreamSlot>) -> Self {
        Self {
            send: Sender {
                stream: send,
                finished: false,
            },
            recv: Receiver {
                stream: recv,
                ended: false,
            },
            slot,
        }
    }

    /// Resets the tunnel: RST_STREAM(CANCEL). Bytes that are not sent yet are lost. Dropping an
    /// unfinished tunnel does the same.
    pub fn abort(self) {
        drop(self);
    }

    /// Whether both directions have ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.send.finished && self.recv.is_ended()
    }

    /// Whether the tunnel runs on a pooled connection that we opened, not on one that we accepted.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.slot.is_some()
    }

    /// After the tunnel has failed: whether its pooled connection was ended because the peer's
    /// certificate was revoked. Always false for a tunnel on an accepted connection: there, the
    /// task that serves the connection has the cause.
    #[must_use]
    pub fn revoked(&self) -> RevokedMark {
        let slot = self.slot.as_ref();
        slot.map_or_else(RevokedMark::default, |slot| {
            slot.connection().revoked().clone()
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Not for a finished tunnel: a reset would discard its queued bytes.
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
    /// Waits until at least one byte may be sent, and returns how many of the `wanted` bytes may be
    /// sent. Call it only when there are bytes to send: the grant is taken from the connection's
    /// window, which other tunnels share. A reset also wakes the task.
    ///
    /// # Errors
    /// When the tunnel has ended.
    pub fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, TunnelError>> {
        let wanted = wanted.max(1);
        self.stream.reserve_capacity(wanted);
        loop {
            let granted = self.stream.capacity();
            if granted > 0 {
                return Poll::Ready(Ok(granted.min(wanted)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(self.end_cause())),
            }
        }
    }

    /// Queues bytes, no more than [`Self::poll_ready`] granted: h2 would queue without a bound.
    ///
    /// # Errors
    /// When the tunnel has ended.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        // An empty frame has no effect, and peers count empty frames as an attack.
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream
            .send_data(bytes, false)
            .map_err(|error| self.error_or_end_cause(error))
    }

    /// Queues as many of `bytes` as flow control allows; the rest stays in `bytes`. Ready when
    /// nothing is left. Cheaper than [`Self::poll_ready`] and [`Self::send`] when all bytes fit.
    ///
    /// # Errors
    /// When the tunnel has ended.
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
    /// When the tunnel has ended.
    pub async fn send_all(&mut self, mut bytes: Bytes) -> Result<(), TunnelError> {
        poll_fn(|cx| self.poll_send(cx, &mut bytes)).await
    }

    /// Half-closes: END_STREAM after the queued bytes. A second call does nothing.
    ///
    /// # Errors
    /// When the tunnel has ended in another way.
    pub fn finish(&mut self) -> Result<(), TunnelError> {
        if self.finished {
            return Ok(());
        }
        self.stream
            .send_data(Bytes::new(), true)
            .map_err(|error| self.error_or_end_cause(error))?;
        self.finished = true;
        Ok(())
    }

    /// Queues the last bytes and half-closes in one frame; no more bytes than were granted.
    ///
    /// # Errors
    /// When the tunnel has ended in another way.
    pub fn send_last(&mut self, bytes: Bytes) -> Result<(), TunnelError> {
        self.stream
            .send_data(bytes, true)
            .map_err(|error| self.error_or_end_cause(error))?;
        self.finished = true;
        Ok(())
    }

    /// Whether this direction was half-closed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Waits for the peer's RST_STREAM or the loss of the connection, for a sender that has
    /// nothing to send. It shares its waker with [`Self::poll_ready`], so poll both from one task.
    /// Pending for ever after the tunnel has ended in an orderly way.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        self.stream.poll_reset(cx).map(|reset| match reset {
            Ok(reason) => TunnelError::Reset {
                reason,
                by: ResetBy::Peer,
            },
            Err(error) => error.into(),
        })
    }

    /// Resets both directions of the tunnel. Does nothing when the tunnel has ended.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Why the stream is no longer open. h2 stores the cause with the reset.
    fn end_cause(&mut self) -> TunnelError {
        let mut no_wake = Context::from_waker(Waker::noop());
        match self.poll_reset(&mut no_wake) {
            Poll::Ready(error) => error,
            Poll::Pending => TunnelError::Finished,
        }
    }

    fn error_or_end_cause(&mut self, error: h2::Error) -> TunnelError {
        if error.reason().is_some() || error.is_io() {
            error.into()
        } else {
            self.end_cause()
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
    /// The bytes of the next frame; `None` after the peer's half-close, or after a reset that
    /// ends the tunnel in an orderly way ([`TunnelError::is_orderly`]). h2 keeps the bytes that
    /// arrived before a reset, so all of them are returned before either.
    ///
    /// # Errors
    /// When the tunnel was reset otherwise or its connection was lost.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TunnelError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                // h2 reports a half-close without bytes as an empty frame, then as the end.
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

    /// Reports that `bytes` of the received bytes were forwarded and freed, so that the peer may
    /// send as many again.
    ///
    /// # Errors
    /// When more bytes are released than were received.
    pub fn release(&mut self, bytes: usize) -> Result<(), TunnelError> {
        if bytes == 0 {
            return Ok(());
        }
        self.stream
            .flow_control()
            .release_capacity(bytes)
            .map_err(TunnelError::from)
    }

    /// Whether the peer has half-closed and all its bytes were read.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended || self.stream.is_end_stream()
    }
}
