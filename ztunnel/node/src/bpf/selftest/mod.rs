//! Does a joined socket behave like any other on this kernel?
//!
//! Joined connections run faster than TCP, and on some kernels their sockets behave in ways that
//! applications notice: a blocking read fails, a writer is never held back, `splice()` sees an
//! end that is none. The proxy cannot repair that, so it tries it out: every [`Case`] uses
//! private sockets on loopback in the calling thread's namespace, joined by the very program
//! that would join the pods' sockets, over maps of its own. `acceleration: auto` joins only where
//! all of them pass.
//!
//! A case says nothing if it fails on plain sockets too; the tests of this room see to that.

mod ending;
mod pair;
mod pressure;
mod reading;
mod special;
#[cfg(test)]
mod tests;
mod waking;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::Error;
use pair::Ground;

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Case {
    /// All bytes arrive, in order, both ways.
    ExactBytes,
    /// A blocking read that waits while the peer closes.
    BlockingClose,
    /// A blocking read that waits while its own side says that it has sent everything.
    BlockingHalfClose,
    /// A blocking read that waits while the peer resets the connection.
    BlockingReset,
    /// Closing with unread data.
    Reset,
    /// A writer whose reader does not read.
    SlowReader,
    /// A non-blocking writer whose reader does not read.
    WouldBlock,
    /// `FIONREAD`.
    ReadableBytes,
    /// `MSG_PEEK`.
    Peek,
    /// `MSG_WAITALL`.
    WaitAll,
    /// Level-triggered `epoll`.
    EpollLevel,
    /// Edge-triggered `epoll`.
    EpollEdge,
    /// `splice()` from the socket.
    SpliceFrom,
    /// `splice()` to the socket.
    SpliceTo,
    /// `MSG_OOB`.
    Urgent,
    /// `MSG_ZEROCOPY`.
    ZeroCopy,
    /// Kernel TLS.
    KernelTls,
}

/// A case's row: its name in metrics, what it proves, and how.
type Row = (
    Case,
    &'static str,
    &'static str,
    fn(&Ground) -> Result<(), Fault>,
);

const TABLE: [Row; 17] = [
    (
        Case::ExactBytes,
        "exact_bytes",
        "all bytes arrive in order, both ways at once, for every family",
        reading::exact_bytes,
    ),
    (
        Case::BlockingClose,
        "blocking_close",
        "a blocking read that waits while the peer closes gets the bytes, then the end",
        ending::blocking_close,
    ),
    (
        Case::BlockingHalfClose,
        "blocking_half_close",
        "a blocking read goes on waiting while its own side shuts down, and gets the answer",
        ending::blocking_half_close,
    ),
    (
        Case::BlockingReset,
        "blocking_reset",
        "a blocking read that waits while the peer resets the connection is told so",
        ending::blocking_reset,
    ),
    (
        Case::Reset,
        "reset",
        "who closes with unread data resets the connection",
        ending::reset,
    ),
    (
        Case::SlowReader,
        "slow_reader",
        "a writer blocks when its reader does not read",
        pressure::slow_reader,
    ),
    (
        Case::WouldBlock,
        "would_block",
        "a non-blocking writer gets EAGAIN when its reader does not read, and is woken later",
        pressure::would_block,
    ),
    (
        Case::ReadableBytes,
        "readable_bytes",
        "FIONREAD says how many bytes can be read",
        reading::readable_bytes,
    ),
    (
        Case::Peek,
        "peek",
        "MSG_PEEK shows bytes and leaves them",
        reading::peek,
    ),
    (
        Case::WaitAll,
        "wait_all",
        "MSG_WAITALL waits for all the bytes it was asked for",
        reading::wait_all,
    ),
    (
        Case::EpollLevel,
        "epoll_level",
        "level-triggered epoll reports data as long as there is some",
        waking::epoll_level,
    ),
    (
        Case::EpollEdge,
        "epoll_edge",
        "edge-triggered epoll reports every arrival once",
        waking::epoll_edge,
    ),
    (
        Case::SpliceFrom,
        "splice_from",
        "splice() takes queued data out of the socket",
        special::splice_from,
    ),
    (
        Case::SpliceTo,
        "splice_to",
        "splice() sends a pipe's data",
        special::splice_to,
    ),
    (
        Case::Urgent,
        "urgent",
        "an urgent byte (MSG_OOB) arrives as one",
        special::urgent,
    ),
    (
        Case::ZeroCopy,
        "zero_copy",
        "the completion of a MSG_ZEROCOPY send is reported",
        special::zero_copy,
    ),
    (
        Case::KernelTls,
        "kernel_tls",
        "a socket that turns on kernel TLS, if there is any, sends records, never plaintext",
        special::kernel_tls,
    ),
];

impl Case {
    /// Every case, in the order in which they are tried.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        // Every case has a row; the tests see to it.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// A short name, for metrics and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// What passing proves.
    #[must_use]
    pub fn proves(self) -> &'static str {
        self.row().2
    }

    fn run(self, ground: &Ground) -> Finding {
        let began = Instant::now();
        let fault = (self.row().3)(ground).err();
        Finding {
            case: self,
            fault,
            took: began.elapsed(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a case failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A system call failed that should not have.
    #[error("{call} failed: {source}")]
    Call {
        /// What was called, and what for.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket did something that no TCP socket does.
    #[error("{found}")]
    Behaviour {
        /// What it did.
        found: String,
    },
}

/// What trying one case has shown.
#[derive(Debug)]
pub struct Finding {
    /// The case.
    pub case: Case,
    /// None: it passed.
    pub fault: Option<Fault>,
    /// How long it took.
    pub took: Duration,
}

/// What the self-test has shown of this kernel.
#[derive(Debug)]
pub struct Report {
    /// One for each case; empty where sockets cannot be joined at all.
    pub findings: Vec<Finding>,
    /// Why sockets cannot be joined at all.
    pub unavailable: Option<Error>,
    /// How long all of it took.
    pub took: Duration,
}

impl Report {
    /// Whether joined sockets behave like others here.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.unavailable.is_none()
            && !self.findings.is_empty()
            && self.findings.iter().all(|finding| finding.fault.is_none())
    }

    /// The cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = (Case, &Fault)> {
        let findings = self.findings.iter();
        findings.filter_map(|finding| Some((finding.case, finding.fault.as_ref()?)))
    }
}

/// One line for the log.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.unavailable {
            return write!(f, "sockets cannot be joined on this kernel: {error}");
        }
        let failed: Vec<&str> = self.failed().map(|(case, _)| case.name()).collect();
        let all = self.findings.len();
        if failed.is_empty() {
            write!(
                f,
                "joined sockets behave like others on this kernel ({all} cases)"
            )
        } else {
            write!(
                f,
                "joined sockets do not behave like others on this kernel ({} of {all} cases: {})",
                failed.len(),
                failed.join(", ")
            )
        }
    }
}

/// Tries every case on joined sockets. Takes a fraction of a second, some of it waiting; each case
/// starts threads of its own and waits for them. The calling thread's namespace needs a loopback
/// device that is up.
#[must_use]
pub fn run() -> Report {
    let began = Instant::now();
    let (findings, unavailable) = match Ground::joined() {
        Ok(ground) => (Case::all().map(|case| case.run(&ground)).collect(), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    Report {
        findings,
        unavailable,
        took: began.elapsed(),
    }
}
