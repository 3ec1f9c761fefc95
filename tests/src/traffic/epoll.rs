//! Level-triggered epoll for event-driven clients and servers.
#![allow(
    unsafe_code,
    reason = "epoll has no safe binding among this workspace's dependencies"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// The largest number of events of one wait.
const EVENTS: usize = 256;

/// The readiness that is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Readable, or closed.
    Input,
    /// Writable, or closed.
    Output,
}

/// An epoll instance. Descriptors leave it when they are closed.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Watches a descriptor; `token` comes back from [`Self::wait`].
    pub(crate) fn add(
        &self,
        descriptor: &impl AsRawFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let events = match interest {
            Interest::Input => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::Output => libc::EPOLLOUT,
        };
        let events = events.cast_unsigned();
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: both descriptors are open for the length of the call, and the event is a
        // valid structure that the kernel copies.
        let result = unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                descriptor.as_raw_fd(),
                &raw mut event,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Waits and returns the tokens of the ready descriptors; none after `limit` or a signal.
    pub(crate) fn wait(
        &mut self,
        limit: Duration,
    ) -> io::Result<impl Iterator<Item = u64> + use<'_>> {
        let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        self.events.clear();
        // SAFETY: the kernel writes at most EVENTS events into a buffer of that capacity.
        let count = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                i32::try_from(EVENTS).unwrap_or(i32::MAX),
                milliseconds,
            )
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_negative) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
                0
            }
        };
        // SAFETY: the kernel has initialised `count` events, which is within the capacity.
        unsafe { self.events.set_len(count) };
        Ok(self.events.iter().map(|event| event.u64))
    }
}
