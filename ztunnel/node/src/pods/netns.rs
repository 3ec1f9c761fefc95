//! Network namespaces: opening, identifying and entering them.
//!
//! Worker threads create sockets in many namespaces. Each remembers in which one it is and
//! switches only when it must ([`Netns::enter`]), so a burst of connections of one pod costs one
//! `setns`. Nothing else may run on those threads: a thread that tokio starts would inherit the
//! namespace, which is why workers never use `spawn_blocking`. Any other thread uses
//! [`Netns::visit`], which does its work on a thread of its own.

#![allow(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

mod handed;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

pub use self::handed::Handed;
use super::Error;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

thread_local! {
    /// The cookie of the namespace this worker is in; 0 before it entered any.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

/// Where a pod's network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsSource {
    /// Behind a file such as `/run/netns/a`.
    Path(PathBuf),
    /// Behind a descriptor that somebody handed over; its path is not known.
    Handed(Handed),
}

impl fmt::Display for NetnsSource {
    /// The path, or whose namespace it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Handed(handed) => write!(f, "of pod {}", handed.pod()),
        }
    }
}

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    place: NetnsSource,
    cookie: u64,
}

impl Netns {
    /// Opens the namespace behind a file such as `/run/netns/a` or `/proc/1/ns/net`.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a network namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::OpenNetns {
            path: path.to_owned(),
            source,
        })?;
        Self::identified(Arc::new(file.into()), NetnsSource::Path(path.to_owned()))
    }

    /// The namespace in this place.
    ///
    /// # Errors
    /// When it cannot be opened or is not a network namespace.
    pub fn of(place: &NetnsSource) -> Result<Self, Error> {
        match place {
            NetnsSource::Path(path) => Self::open(path),
            NetnsSource::Handed(handed) => Self::identified(handed.fd().clone(), place.clone()),
        }
    }

    fn identified(fd: Arc<OwnedFd>, place: NetnsSource) -> Result<Self, Error> {
        let cookie = on_own_thread(|| {
            setns(&fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            cookie_here()
        })?;
        match cookie {
            Ok(cookie) => Ok(Self { fd, place, cookie }),
            Err(source) => Err(Error::Identify { place, source }),
        }
    }

    /// The namespace this process was started in.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> Result<Self, Error> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// The kernel's number for this namespace: unique until the machine restarts, never used
    /// again, and the key of everything the kernel programs know about the pod.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it was found.
    #[must_use]
    pub const fn place(&self) -> &NetnsSource {
        &self.place
    }

    /// Moves the calling worker thread into this namespace, and leaves it there.
    ///
    /// # Errors
    /// When `setns` is refused.
    pub fn enter(&self) -> Result<(), Error> {
        HERE.with(|here| {
            if here.get() == self.cookie {
                return Ok(());
            }
            self.set()?;
            here.set(self.cookie);
            Ok(())
        })
    }

    /// Runs `work` inside this namespace on a thread of its own.
    ///
    /// # Errors
    /// When `setns` is refused, or the thread ended early.
    pub fn visit<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_own_thread(|| self.set().map(|()| work()))?
    }

    fn set(&self) -> Result<(), Error> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter {
            place: self.place.clone(),
            source: errno.into(),
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| scope.spawn(work).join()).map_err(|_panic| Error::Thread)
}

fn cookie_here() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the buffer and its length describe the u64 above, which outlives the call.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if code == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The addresses on the interfaces of the calling thread's namespace by which others can reach
/// it: loopback and link-local ones are left out.
///
/// # Errors
/// When the kernel does not list them.
pub fn addresses_here() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let storage = interface.address?;
            let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
