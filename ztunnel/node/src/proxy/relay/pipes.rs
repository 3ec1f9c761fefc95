//! Pipes for bytes that go from one TCP connection to another without being copied.
//!
//! Each worker has a few. One is leased when bytes are there to be moved and comes back when it is
//! drained, so an idle connection holds none. A pipe that still holds bytes when its lease ends is
//! closed: what one connection left behind must never reach another.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, read};

/// The most bytes one pipe holds: what a connection with a slow reader keeps waiting.
pub(super) const HELD: usize = 512 << 10;
/// Room that is asked of the system. It counts in pages and every packet takes at least one,
/// however small it is. As much as a process may have without privileges (pipe(7)).
const ROOM: i32 = 1 << 20;
/// How many empty pipes a worker keeps.
pub(super) const KEPT: usize = 8;
/// How many pipes a worker has at most: each costs two file descriptors.
pub(super) const MOST: usize = 64;

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
        if self.leased >= MOST {
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
        // Where the system is short of it, the pipe works with the room it has.
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
    /// It goes back to the thread it came from.
    stays: PhantomData<*const ()>,
}

impl Lease {
    /// An empty pipe.
    ///
    /// # Errors
    /// As `pipe2(2)`; `QuotaExceeded` while the worker's are all in use.
    pub(super) fn take() -> io::Result<Self> {
        let pipe = POOL.with_borrow_mut(Pool::lease)?;
        Ok(Self {
            pipe: Some(pipe),
            inside: 0,
            stays: PhantomData,
        })
    }

    /// How many bytes it holds.
    pub(super) fn inside(&self) -> usize {
        self.inside
    }

    /// Moves what `socket` has received into the pipe, which must be empty: then a refusal for now
    /// is the socket's and not the pipe's. Zero is the end of the stream, or a socket whose bytes
    /// lie where `splice(2)` does not look.
    ///
    /// # Errors
    /// As `splice(2)`.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let into = &self.pipe()?.into;
        let moved = splice(socket, None, into, None, HELD, how())?;
        self.inside += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds to `socket`, some or all.
    ///
    /// # Errors
    /// As `splice(2)`.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let from = &self.pipe()?.from;
        let moved = splice(from, None, socket, None, self.inside, how())?;
        self.inside -= moved;
        Ok(moved)
    }

    /// Takes what the pipe holds out of it, some or all, where `drain` is not possible.
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
        // A lease may outlive the pool while its thread ends; then there is nothing to go back to.
        let _gone = POOL.try_with(|pool| pool.borrow_mut().take_back(pipe));
    }
}

/// How many pipes of this worker are in use.
#[cfg(test)]
pub(super) fn leased() -> usize {
    POOL.with_borrow(|pool| pool.leased)
}

/// How many pipes of this worker wait for their next use.
#[cfg(test)]
pub(super) fn kept() -> usize {
    POOL.with_borrow(|pool| pool.kept.len())
}

fn how() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
