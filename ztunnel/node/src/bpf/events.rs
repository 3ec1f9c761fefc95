//! Reads the events of fast-path connections that the kernel programs report.

#![allow(
    unsafe_code,
    reason = "AsyncFd needs a promise about the watched descriptor"
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

/// How long events are collected before they are read: a burst of connections wakes the proxy at
/// most forty times a second.
const BATCH_TIME: Duration = Duration::from_millis(25);

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The connection was established.
    Opened,
    /// The connection ended in an orderly way.
    Closed,
    /// The connection was reset.
    Reset,
    /// The connection was never established.
    Failed,
}

/// A change of a fast-path connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What has changed.
    pub kind: EventKind,
    /// The connection.
    pub connection: FastPathConnection,
    /// The time since the connection was opened.
    pub elapsed: Duration,
    /// Bytes from the client to the server so far.
    pub request_bytes: u64,
    /// Bytes from the server to the client so far.
    pub response_bytes: u64,
}

impl Event {
    /// The length of a record in the ring, in bytes.
    pub const LENGTH: usize = size_of::<shared::Event>();

    /// Decodes a record of the ring. `None` if its length or its kind is unknown.
    #[must_use]
    pub fn parse(record: &[u8]) -> Option<Self> {
        if record.len() != Self::LENGTH {
            return None;
        }
        // SAFETY: the length is right, and any bit pattern is a valid event.
        let event: shared::Event = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
        let kind = match event.kind {
            EVENT_OPENED => EventKind::Opened,
            EVENT_CLOSED => EventKind::Closed,
            EVENT_RESET => EventKind::Reset,
            EVENT_FAILED => EventKind::Failed,
            _ => return None,
        };
        Some(Self {
            kind,
            connection: entries::connection(&event.connection, &event.state),
            elapsed: Duration::from_nanos(event.time.saturating_sub(event.state.opened_at)),
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
        })
    }
}

/// The events of fast-path connections, including those since the death of an earlier proxy. There
/// can be one reader.
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
        // SAFETY: the AsyncFd owns this descriptor, which no other owner closes.
        let readable = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self {
            ring,
            readable: readable.map_err(|error| unreadable(error.into()))?,
        })
    }

    /// Waits for events, and some time longer to collect more. Call [`Self::drain`] next:
    /// otherwise new events do not end the next wait.
    ///
    /// # Errors
    /// When the ring cannot be watched: the runtime has ended.
    pub async fn wait_for_batch(&mut self) -> io::Result<()> {
        let mut guard = self.readable.readable().await?;
        tokio::time::sleep(BATCH_TIME).await;
        guard.clear_ready();
        Ok(())
    }

    /// Passes all events that are in the ring buffer to the function.
    pub fn drain(&mut self, mut handle: impl FnMut(Event)) {
        while let Some(record) = self.ring.next() {
            if let Some(event) = Event::parse(&record) {
                handle(event);
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
