//! A network namespace that came as a file descriptor: looked at once, so that whoever has a
//! [`Handed`] need not ask again what it is.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::stat::{FileStat, fstat, stat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::Error;

/// The descriptor of a pod's network namespace. Two are equal when they lead to the same one.
#[derive(Debug, Clone)]
pub struct Handed {
    pod: Arc<str>,
    fd: Arc<OwnedFd>,
    id: Id,
}

/// What tells one file from all others while it is held open.
type Id = (libc::dev_t, libc::ino_t);

impl Handed {
    /// Makes sure that it is a network namespace, and not the proxy's own: capture in there would
    /// catch the proxy itself.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn check(pod: &Arc<str>, fd: OwnedFd) -> Result<Self, Error> {
        let inspect = |source| Error::Inspect {
            pod: pod.clone(),
            source,
        };
        let no_netns = |found| Error::NoNetns {
            pod: pod.clone(),
            found,
        };
        // Before the ioctl: its number may mean something else to a device.
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

    /// Whose it is.
    #[must_use]
    pub const fn pod(&self) -> &Arc<str> {
        &self.pod
    }

    pub(super) const fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }
}

impl PartialEq for Handed {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Handed {}

/// Which of the kinds of namespaces it is, as the flag of `clone(2)`.
fn kind(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: NS_GET_NSTYPE of ioctl_ns(2) has no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind)
}
