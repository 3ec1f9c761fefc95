//! The tunnel ends of a relay.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::{Broken, Sink, Source};
use tunnel::hbone::{Receiver, Sender};

impl Source for &mut Receiver {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>> {
        loop {
            match self.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                // An empty DATA frame is not the end of the stream.
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Some(Ok(chunk))) => return Poll::Ready(Ok(chunk)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(Bytes::new())),
            }
        }
    }

    fn taken(&mut self, bytes: usize) -> Result<(), Broken> {
        Ok(self.release(bytes)?)
    }
}

impl Sink for &mut Sender {
    fn poll_take(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), Broken>> {
        self.poll_send(cx, chunk).map_err(Broken::from)
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(self.finish().map_err(Broken::from))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.poll_reset(cx).map(Broken::from)
    }
}
