//! What happens to connections of the direct lane, as the programs tell it.

#![allow(
    unsafe_code,
    reason = "tokio asks for a promise about the watched descriptor"
)]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ztunnel_ebpf_types as shared;
use ztunnel_ebpf_types::{EVENT_CLOSED, EVENT_FAILED, EVENT_OPENED, EVENT_RESET};

use super::{Error, entries};
use mesh::fastpath::FastPathConnection;

/// How long events gather before they are read: a burst of connections wakes the proxy forty
/// times a second at most.
const GATHER: Duration = Duration::from_millis(25);

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// It is established.
    Opened,
    /// It ended in an orderly way.
    Closed,
    /// It was reset.
    Reset,
    /// It was never established.
    Failed,
}

/// An event of the direct lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub happening: Happening,
    /// To which connection.
    pub flow: FastPathConnection,
    /// How long after it was opened.
    pub after: Duration,
    /// Bytes from the client to the server until then.
    pub request: u64,
    /// Bytes from the server to the client until then.
    pub response: u64,
}

/// The events of the direct lane, those since an earlier proxy died included. One reader.
pub struct Events {
    ring: RingBuf<MapData>,
    readable: AsyncFd<OwnedFd>,
}

impl Events {
    /// Needs a tokio runtime.
    pub(super) fn open(map: OwnedFd) -> Result<Self, Error> {
        let unreadable = |source: io::Error| Error::Map {
            map: "EVENTS".to_owned(),
            action: "watched",
            source,
        };
        let data = MapData::from_fd(map).map_err(|error| unreadable(io::Error::other(error)))?;
        let ring = RingBuf::try_from(Map::RingBuf(data))
            .map_err(|error| unreadable(io::Error::other(error)))?;
        let fd = ring.as_fd().try_clone_to_owned().map_err(unreadable)?;
        // SAFETY: the AsyncFd owns this descriptor, which nobody else closes.
        let readable = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self {
            ring,
            readable: readable.map_err(|error| unreadable(error.into()))?,
        })
    }

    /// Waits until there are events, and some time longer so that more can gather. [`Self::drain`]
    /// them then: new ones are not told of before.
    ///
    /// # Errors
    /// When the ring cannot be watched: the runtime is gone.
    pub async fn gather(&mut self) -> io::Result<()> {
        let mut guard = self.readable.readable().await?;
        tokio::time::sleep(GATHER).await;
        guard.clear_ready();
        Ok(())
    }

    /// Hands out what there is.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) {
        while let Some(record) = self.ring.next() {
            if let Some(event) = parse(&record) {
                each(event);
            }
        }
    }
}

/// A record of another size or kind is not ours and left out.
pub(super) fn parse(record: &[u8]) -> Option<Event> {
    if record.len() != size_of::<shared::Event>() {
        return None;
    }
    // SAFETY: the size fits, and any bit pattern is a valid event.
    let event: shared::Event = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
    let happening = match event.kind {
        EVENT_OPENED => Happening::Opened,
        EVENT_CLOSED => Happening::Closed,
        EVENT_RESET => Happening::Reset,
        EVENT_FAILED => Happening::Failed,
        _ => return None,
    };
    Some(Event {
        happening,
        flow: entries::connection(&event.flow, &event.state),
        after: Duration::from_nanos(event.at.saturating_sub(event.state.opened)),
        request: event.request,
        response: event.response,
    })
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
