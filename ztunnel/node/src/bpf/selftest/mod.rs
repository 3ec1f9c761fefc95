//! Tests whether joined sockets behave like TCP sockets on this kernel.
//!
//! Joined connections are faster than TCP, but on some kernels their sockets behave in ways that
//! applications notice: a blocking read fails, a writer is never blocked, `splice()` reports an
//! end too early. The proxy cannot repair that, so it tests it: every [`Case`] uses private sockets
//! on loopback in the calling thread's namespace, joined by the program that joins the pods'
//! sockets, with maps of its own. `acceleration: auto` joins only if all cases pass.
//!
//! A case that fails on plain sockets proves nothing; the tests of this module run all of them
//! there.

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
use pair::PairKind;

/// The behaviour that a case tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Case {
    /// All bytes arrive in order, in both directions.
    ExactBytes,
    /// A blocking read that waits while the peer closes.
    BlockingClose,
    /// A blocking read that waits while another thread shuts down the sending side.
    BlockingHalfClose,
    /// A blocking read that waits while the peer resets the connection.
    BlockingReset,
    /// Closing with unread data.
    Reset,
    /// A blocking writer whose peer does not read.
    SlowReader,
    /// A non-blocking writer whose peer does not read.
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

/// How a case is reported and run.
struct Row {
    case: Case,
    /// The name in metrics and tables.
    name: &'static str,
    /// The behaviour that a passed case proves.
    proves: &'static str,
    run: fn(&PairKind) -> Result<(), Fault>,
}

const TABLE: [Row; 17] = [
    Row {
        case: Case::ExactBytes,
        name: "exact_bytes",
        proves: "all bytes arrive in order, in both directions at once, for every address family",
        run: reading::exact_bytes,
    },
    Row {
        case: Case::BlockingClose,
        name: "blocking_close",
        proves: "a blocking read that waits while the peer closes gets the bytes, then the end",
        run: ending::blocking_close,
    },
    Row {
        case: Case::BlockingHalfClose,
        name: "blocking_half_close",
        proves: "a blocking read continues while its own side shuts down, and gets the answer",
        run: ending::blocking_half_close,
    },
    Row {
        case: Case::BlockingReset,
        name: "blocking_reset",
        proves: "a blocking read that waits while the peer resets the connection reports the reset",
        run: ending::blocking_reset,
    },
    Row {
        case: Case::Reset,
        name: "reset",
        proves: "closing with unread data resets the connection",
        run: ending::reset,
    },
    Row {
        case: Case::SlowReader,
        name: "slow_reader",
        proves: "a writer blocks when its peer does not read",
        run: pressure::slow_reader,
    },
    Row {
        case: Case::WouldBlock,
        name: "would_block",
        proves: "a non-blocking writer gets EAGAIN when its peer does not read, and is woken later",
        run: pressure::would_block,
    },
    Row {
        case: Case::ReadableBytes,
        name: "readable_bytes",
        proves: "FIONREAD returns how many bytes can be read",
        run: reading::readable_bytes,
    },
    Row {
        case: Case::Peek,
        name: "peek",
        proves: "MSG_PEEK returns bytes without removing them",
        run: reading::peek,
    },
    Row {
        case: Case::WaitAll,
        name: "wait_all",
        proves: "MSG_WAITALL waits for all requested bytes",
        run: reading::wait_all,
    },
    Row {
        case: Case::EpollLevel,
        name: "epoll_level",
        proves: "level-triggered epoll reports data until it is read",
        run: waking::epoll_level,
    },
    Row {
        case: Case::EpollEdge,
        name: "epoll_edge",
        proves: "edge-triggered epoll reports every arrival once",
        run: waking::epoll_edge,
    },
    Row {
        case: Case::SpliceFrom,
        name: "splice_from",
        proves: "splice() reads queued data from the socket",
        run: special::splice_from,
    },
    Row {
        case: Case::SpliceTo,
        name: "splice_to",
        proves: "splice() sends the data of a pipe",
        run: special::splice_to,
    },
    Row {
        case: Case::Urgent,
        name: "urgent",
        proves: "an urgent byte (MSG_OOB) arrives as an urgent byte",
        run: special::urgent,
    },
    Row {
        case: Case::ZeroCopy,
        name: "zero_copy",
        proves: "the completion of a MSG_ZEROCOPY send is reported",
        run: special::zero_copy,
    },
    Row {
        case: Case::KernelTls,
        name: "kernel_tls",
        proves: "a socket with kernel TLS, if the kernel has it, sends records and no plaintext",
        run: special::kernel_tls,
    },
];

impl Case {
    /// Every case, in the order of running.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.case)
    }

    fn row(self) -> &'static Row {
        // A test checks that every case has a row.
        TABLE
            .iter()
            .find(|row| row.case == self)
            .unwrap_or(&TABLE[0])
    }

    /// The name in metrics and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The behaviour that a passed case proves, as a sentence.
    #[must_use]
    pub fn proves(self) -> &'static str {
        self.row().proves
    }

    fn run(self, kind: &PairKind) -> Finding {
        let began = Instant::now();
        let fault = (self.row().run)(kind).err();
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

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A system call failed unexpectedly.
    #[error("{call} failed: {source}")]
    Call {
        /// The call and its purpose.
        call: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket behaved unlike any TCP socket.
    #[error("{found}")]
    Behaviour {
        /// What was observed.
        found: String,
    },
}

/// The result of one case.
#[derive(Debug)]
pub struct Finding {
    /// The case.
    pub case: Case,
    /// None: the case passed.
    pub fault: Option<Fault>,
    /// How long it took.
    pub took: Duration,
}

/// The results of the self-test.
#[derive(Debug)]
pub struct Report {
    /// One result for each case; empty if sockets cannot be joined at all.
    pub findings: Vec<Finding>,
    /// Why sockets cannot be joined at all.
    pub unavailable: Option<Error>,
    /// How long all of it took.
    pub took: Duration,
}

impl Report {
    /// Whether joined sockets behave like TCP sockets on this kernel.
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
                "joined sockets behave like TCP sockets on this kernel ({all} cases)"
            )
        } else {
            write!(
                f,
                "joined sockets do not behave like TCP sockets on this kernel ({} of {all} cases: {})",
                failed.len(),
                failed.join(", ")
            )
        }
    }
}

/// Runs every case on joined sockets, in a fraction of a second. Cases start threads and wait for
/// them. The loopback device of the calling thread's namespace must be up.
#[must_use]
pub fn run() -> Report {
    let began = Instant::now();
    let (findings, unavailable) = match PairKind::joined() {
        Ok(kind) => (Case::all().map(|case| case.run(&kind)).collect(), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    Report {
        findings,
        unavailable,
        took: began.elapsed(),
    }
}
