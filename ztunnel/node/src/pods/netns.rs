//! Network namespaces: opening, identifying and entering them.
//!
//! Worker threads create sockets in many namespaces. Each thread remembers its current namespace and
//! switches only if necessary ([`Netns::enter`]), so a burst of connections of one pod costs one
//! `setns`. A thread that tokio starts would inherit the namespace, so workers never use
//! `spawn_blocking`. Other threads use [`Netns::visit`], which works on a thread of its own.

#![allow(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

mod descriptor;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockaddrStorage;
use socket2::{Domain, Socket, Type};

pub use self::descriptor::NetnsDescriptor;
use super::Error;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

thread_local! {
    /// The cookie of this worker's current namespace; 0 before the first.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// The source of a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsSource {
    /// A file such as `/run/netns/a`.
    Path(PathBuf),
    /// A descriptor from the node agent; its path is unknown.
    Descriptor(NetnsDescriptor),
}

impl fmt::Display for NetnsSource {
    /// The path, or the pod of the descriptor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(descriptor) => write!(f, "of pod {}", descriptor.pod()),
        }
    }
}

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    source: NetnsSource,
    cookie: u64,
}

impl Netns {
    /// Opens the namespace of a file such as `/run/netns/a` or `/proc/1/ns/net`.
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

    /// Opens the namespace of a source.
    ///
    /// # Errors
    /// When it cannot be opened or is not a network namespace.
    pub fn of(source: &NetnsSource) -> Result<Self, Error> {
        match source {
            NetnsSource::Path(path) => Self::open(path),
            NetnsSource::Descriptor(descriptor) => {
                Self::identified(descriptor.fd().clone(), source.clone())
            }
        }
    }

    fn identified(fd: Arc<OwnedFd>, netns: NetnsSource) -> Result<Self, Error> {
        let cookie = on_own_thread(|| {
            setns(&fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            current_cookie()
        })?;
        match cookie {
            Ok(cookie) => Ok(Self {
                fd,
                source: netns,
                cookie,
            }),
            Err(source) => Err(Error::Identify { netns, source }),
        }
    }

    /// Opens the namespace that this process was started in.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> Result<Self, Error> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// The kernel's number of this namespace. It is unique until the machine restarts, and the key of
    /// the pod in the maps of the kernel programs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The source that it was opened from.
    #[must_use]
    pub const fn source(&self) -> &NetnsSource {
        &self.source
    }

    /// Moves the calling worker thread into this namespace, and leaves it there.
    ///
    /// # Errors
    /// When `setns` is refused.
    pub fn enter(&self) -> Result<(), Error> {
        CURRENT.with(|current| {
            if current.get() == self.cookie {
                return Ok(());
            }
            self.set()?;
            current.set(self.cookie);
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
            netns: self.source.clone(),
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

fn current_cookie() -> io::Result<u64> {
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

/// The IP address in an address of an interface.
pub(super) fn ip_address(storage: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// The addresses on the interfaces of the calling thread's network namespace, without loopback and
/// link-local ones.
///
/// # Errors
/// When the kernel cannot list them.
pub fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| ip_address(interface.address.as_ref()?))
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
