//! A network namespace that was received as a file descriptor. It is validated once, when the
//! [`NetnsDescriptor`] is created.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::stat::{FileStat, fstat, stat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::Error;

/// The descriptor of a pod's network namespace. Two are equal if they refer to the same namespace.
#[derive(Debug, Clone)]
pub struct NetnsDescriptor {
    pod: Arc<str>,
    fd: Arc<OwnedFd>,
    id: Id,
}

/// Identifies a file while it is open.
type Id = (libc::dev_t, libc::ino_t);

impl NetnsDescriptor {
    /// Validates that the descriptor is a network namespace, and not the proxy's own: capture in that
    /// one would capture the proxy itself.
    ///
    /// # Errors
    /// When the descriptor refers to anything else.
    pub fn check(pod: &Arc<str>, fd: OwnedFd) -> Result<Self, Error> {
        let inspect = |source| Error::Inspect {
            pod: pod.clone(),
            source,
        };
        let no_netns = |found| Error::NoNetns {
            pod: pod.clone(),
            found,
        };
        // Before the ioctl: for a device its number may mean another operation.
        let files = fstatfs(&fd).map_err(io::Error::from).map_err(inspect)?;
        if files.filesystem_type() != NSFS_MAGIC {
            return Err(no_netns("no namespace at all".to_owned()));
        }
        match kind(&fd).map_err(inspect)? {
            libc::CLONE_NEWNET => {}
            other => return Err(no_netns(format!("a namespace of the kind {other:#x}"))),
        }
        let identify = |stat: nix::Result<FileStat>| {
            let stat = stat.map_err(io::Error::from).map_err(inspect)?;
            Ok::<Id, Error>((stat.st_dev, stat.st_ino))
        };
        let id = identify(fstat(&fd))?;
        if id == identify(stat("/proc/self/ns/net"))? {
            return Err(Error::Own { pod: pod.clone() });
        }
        Ok(Self {
            pod: pod.clone(),
            fd: Arc::new(fd),
            id,
        })
    }

    /// The pod that the descriptor was sent for.
    #[must_use]
    pub const fn pod(&self) -> &Arc<str> {
        &self.pod
    }

    pub(super) const fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
}

impl PartialEq for NetnsDescriptor {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetnsDescriptor {}

/// The kind of a namespace, as a flag of `clone(2)`.
fn kind(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: NS_GET_NSTYPE of ioctl_ns(2) takes no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind)
}
