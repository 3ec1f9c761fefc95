//! An established session as a byte stream. [`Incoming`] and [`Outgoing`] implement the protocol;
//! this file moves their bytes to and from the socket: one large read when no complete record is
//! left, one large write when the caller flushes or the buffer is full.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::{RecordError, Role};
use super::incoming::{Incoming, Stop};
use super::keys::KeySchedule;
use super::outgoing::{Outgoing, Urgency};
use super::revocation::PeerChain;
use mesh::Identity;

/// The parameters that the handshake negotiated.
#[derive(Debug, Clone)]
pub(super) struct Negotiated {
    pub(super) peer: Identity,
    pub(super) chain: PeerChain,
    pub(super) cipher_suite: &'static str,
    pub(super) key_exchange: &'static str,
}

/// A mutually authenticated TLS 1.3 session over `IO`.
///
/// Written bytes are buffered until 256 KiB are pending or the stream is flushed. Shutting down
/// sends close_notify and closes the write side of `IO`; reads continue. An end of `IO` without
/// close_notify is an error ([`RecordError::Truncated`]).
pub struct Stream<IO> {
    io: IO,
    keys: KeySchedule,
    incoming: Incoming,
    outgoing: Outgoing,
    negotiated: Negotiated,
    state: State,
    writer: Writer,
}

/// Whether a writing task has registered its waker with the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Idle,
    Waiting,
}

/// Which operations the stream still allows.
enum State {
    Open,
    /// close_notify is queued or sent.
    Closing,
    /// The session has failed; every later call returns the error.
    Failed(RecordError),
}

impl<IO> Stream<IO> {
    pub(super) const fn new(
        io: IO,
        keys: KeySchedule,
        incoming: Incoming,
        outgoing: Outgoing,
        negotiated: Negotiated,
    ) -> Self {
        Self {
            io,
            keys,
            incoming,
            outgoing,
            negotiated,
            state: State::Open,
            writer: Writer::Idle,
        }
    }

    /// The identity in the peer's certificate.
    pub const fn peer(&self) -> &Identity {
        &self.negotiated.peer
    }

    /// The peer's chain, to check against [`Revocations`](super::Revocations) while the session
    /// lasts.
    pub const fn peer_chain(&self) -> &PeerChain {
        &self.negotiated.chain
    }

    /// The cipher suite, by its IANA name.
    pub const fn cipher_suite(&self) -> &'static str {
        self.negotiated.cipher_suite
    }

    /// The key exchange group, by its IANA name.
    pub const fn key_exchange(&self) -> &'static str {
        self.negotiated.key_exchange
    }

    /// The protocol version, which is always TLS 1.3.
    pub const fn tls_version(&self) -> &'static str {
        "TLSv1.3"
    }

    /// Which end of the session this is.
    pub const fn role(&self) -> Role {
        self.keys.role()
    }

    /// The transport below, for example to read socket options.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Stream<IO> {
    /// Writes the pending bytes until none is left or the socket is full.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let pending = self.outgoing.pending()?;
            match Pin::new(&mut self.io).poll_write(cx, pending) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.outgoing.sent(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.outgoing.shrink();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the session, and sends the peer an alert if the socket accepts it at once.
    fn fail(&mut self, error: RecordError) -> io::Error {
        if let Some(alert) = error.alert()
            && self.outgoing.alert(alert).is_ok()
        {
            // Best effort: a waiting writer gets the error in any case.
            let mut no_wake = Context::from_waker(Waker::noop());
            let _sent = self.poll_drain(&mut no_wake);
        }
        self.state = State::Failed(error.clone());
        error.into()
    }

    /// Sends urgent protocol messages from the reading side: the application may never write again.
    fn send_urgent(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // A writer that waits for the socket sends them, and its waker must stay registered.
        if self.outgoing.urgency() != Urgency::None
            && self.writer == Writer::Idle
            && let Poll::Ready(sent) = self.poll_drain(cx)
        {
            sent?;
            if let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx) {
                flushed?;
            }
        }
        Ok(())
    }

    fn poll_buffer(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &self.state {
            State::Open => {}
            State::Closing => return Poll::Ready(Err(RecordError::Closed.into())),
            State::Failed(error) => return Poll::Ready(Err(error.clone().into())),
        }
        loop {
            if self.outgoing.is_full() {
                ready!(self.poll_drain_for_writer(cx))?;
            }
            match self.outgoing.write(&mut self.keys, slices) {
                // A key update has filled the buffer.
                Ok(0) if self.outgoing.is_full() => {}
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
        }
    }

    fn poll_drain_for_writer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_drain(cx);
        self.writer = if drained.is_pending() {
            Writer::Waiting
        } else {
            Writer::Idle
        };
        drained
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let State::Failed(error) = &this.state {
            return Poll::Ready(Err(error.clone().into()));
        }
        let filled = out.filled().len();
        loop {
            let stop = match this.incoming.read(&mut this.keys, &mut this.outgoing, out) {
                Ok(stop) => stop,
                Err(error) => {
                    let error = this.fail(error);
                    // Bytes opened before the error are valid; the next call returns the error.
                    let has_data = out.filled().len() > filled;
                    return Poll::Ready(if has_data { Ok(()) } else { Err(error) });
                }
            };
            this.send_urgent(cx)?;
            if out.filled().len() > filled || stop != Stop::NeedsInput {
                return Poll::Ready(Ok(()));
            }
            let mut space = ReadBuf::new(this.incoming.space());
            match Pin::new(&mut this.io).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) => match space.filled().len() {
                    0 => return Poll::Ready(Err(this.fail(RecordError::Truncated))),
                    count => this.incoming.received(count),
                },
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.incoming.shrink();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_buffer(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_buffer(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let State::Failed(error) = &this.state {
            return Poll::Ready(Err(error.clone().into()));
        }
        ready!(this.poll_drain_for_writer(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, State::Open) {
            this.outgoing.alert(AlertDescription::CloseNotify)?;
            this.state = State::Closing;
        }
        if matches!(this.state, State::Closing) {
            ready!(this.poll_drain_for_writer(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod control;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
