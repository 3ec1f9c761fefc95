//! Pipes for moving bytes from one TCP connection to another without a copy.
//!
//! Each worker has a few pipes. A direction leases one when there are bytes to move and returns it
//! when it is drained, so an idle connection holds none. A pipe that still holds bytes at the end
//! of its lease is closed: bytes of one connection must never reach another.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// The maximum number of bytes in one pipe: the data that a slow reader leaves queued.
pub(super) const HELD: usize = 512 << 10;
/// The capacity that is requested of the system. It is counted in pages, and each packet takes at
/// least one page, however small it is. The value is the limit for an unprivileged process
/// (pipe(7)).
const ROOM: i32 = 1 << 20;
/// The number of empty pipes that a worker keeps.
pub(super) const KEPT: usize = 8;
/// The maximum number of pipes of a worker: each costs two file descriptors.
pub(super) const MAX_PIPES: usize = 64;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

/// A worker's pipes.
struct Pool {
    kept: Vec<Pipe>,
    leased: usize,
}

impl Pool {
    const fn new() -> Self {
        Self {
            kept: Vec::new(),
            leased: 0,
        }
    }

    fn lease(&mut self) -> io::Result<Pipe> {
        if self.leased >= MAX_PIPES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let pipe = self.kept.pop().map_or_else(Pipe::open, Ok)?;
        self.leased += 1;
        Ok(pipe)
    }

    fn take_back(&mut self, pipe: Option<Pipe>) {
        self.leased -= 1;
        if self.kept.len() < KEPT {
            self.kept.extend(pipe);
        }
    }
}

/// The two ends of a pipe.
struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (from, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Without the requested capacity the pipe works with its default.
        if let Err(error) = fcntl(&into, FcntlArg::F_SETPIPE_SZ(ROOM)) {
            tracing::debug!(%error, "a pipe keeps its size");
        }
        Ok(Self { from, into })
    }
}

/// A pipe in use by one direction of one connection.
pub(super) struct Lease {
    /// `None` only while it is dropped.
    pipe: Option<Pipe>,
    inside: usize,
    /// A lease is not `Send`: the pipe returns to its own thread's pool.
    stays: PhantomData<*const ()>,
}

impl Lease {
    /// Leases an empty pipe.
    ///
    /// # Errors
    /// As `pipe2(2)`; `QuotaExceeded` while all pipes of the worker are in use.
    pub(super) fn take() -> io::Result<Self> {
        let pipe = POOL.with_borrow_mut(Pool::lease)?;
        Ok(Self {
            pipe: Some(pipe),
            inside: 0,
            stays: PhantomData,
        })
    }

    /// The number of bytes in the pipe.
    pub(super) fn inside(&self) -> usize {
        self.inside
    }

    /// Moves received bytes from `socket` into the pipe, which must be empty: then `WouldBlock`
    /// comes from the socket and not from the pipe. Zero means the end of the stream, or a socket
    /// whose bytes `splice(2)` cannot see.
    ///
    /// # Errors
    /// As `splice(2)`.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let into = &self.pipe()?.into;
        let moved = splice(socket, None, into, None, HELD, how())?;
        self.inside += moved;
        Ok(moved)
    }

    /// Moves some or all of the pipe's bytes to `socket`.
    ///
    /// # Errors
    /// As `splice(2)`.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let from = &self.pipe()?.from;
        let moved = splice(from, None, socket, None, self.inside, how())?;
        self.inside -= moved;
        Ok(moved)
    }

    /// Reads some or all of the pipe's bytes, where `drain` is not possible.
    ///
    /// # Errors
    /// As `read(2)`.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = read(&self.pipe()?.from, buffer)?;
        self.inside -= count;
        Ok(count)
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe
            .as_ref()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let pipe = self.pipe.take().filter(|_| self.inside == 0);
        // A lease may outlive the pool at the end of its thread; then the pipe is closed.
        let _gone = POOL.try_with(|pool| pool.borrow_mut().take_back(pipe));
    }
}

/// The number of leased pipes of this worker.
#[cfg(test)]
pub(super) fn leased() -> usize {
    POOL.with_borrow(|pool| pool.leased)
}

/// The number of pipes of this worker that are kept for reuse.
#[cfg(test)]
pub(super) fn kept() -> usize {
    POOL.with_borrow(|pool| pool.kept.len())
}

fn how() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
