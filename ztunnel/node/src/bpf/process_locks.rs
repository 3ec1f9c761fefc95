//! The locks that show which proxies are alive, and the file locks that the handover is made of:
//! `flock(2)` on directories of the BPF file system, which all proxies of a node share, in all
//! containers. A lock ends with its process.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::pins::Pins;
use super::{Error, pins, private};

/// The proxies whose sockets the kernel programs have to recognise. Each holds a lock, under the
/// process id that it has in the first pid namespace, from when it became active until its end.
#[derive(Debug, Clone)]
pub(super) struct ProcessLocks {
    directory: PathBuf,
}

impl ProcessLocks {
    /// The locks in the directory of the pins.
    pub(super) fn new(pins: &Pins) -> Self {
        Self {
            directory: pins.process_locks(),
        }
    }

    /// Marks this process as alive until the returned lock is dropped.
    pub(super) fn lock(&self, process: u32) -> Result<File, Error> {
        let path = self.path(process);
        private::create(&path)?;
        // Shared: a process that looks whether this one is alive tries to lock it exclusively.
        try_lock(&path, File::try_lock_shared)?.ok_or_else(|| {
            let in_use = io::Error::other("another process has locked this process id");
            failed(&path, "locked")(in_use)
        })
    }

    /// Whether a process has an entry.
    pub(super) fn exists(&self, process: u32) -> bool {
        self.path(process).exists()
    }

    /// Whether a process that was active is alive. A process without a lock is not.
    pub(super) fn is_alive(&self, process: u32) -> bool {
        let path = self.path(process);
        path.exists() && matches!(try_lock(&path, File::try_lock), Ok(None))
    }

    /// Removes the entries of processes that have ended. Only the active process may call it, because
    /// only that one adds entries.
    pub(super) fn remove_ended(&self) -> Result<(), Error> {
        for path in pins::children(&self.directory)? {
            if try_lock(&path, File::try_lock)?.is_some() {
                fs::remove_dir(&path).map_err(failed(&path, "removed"))?;
            }
        }
        Ok(())
    }

    fn path(&self, process: u32) -> PathBuf {
        self.directory.join(process.to_string())
    }
}

/// Whether a proxy that runs is active with the pins of a directory.
#[must_use]
pub fn is_in_use(directory: &Path) -> bool {
    let path = directory.join(pins::ACTIVE_LOCK);
    path.exists() && matches!(try_lock(&path, File::try_lock), Ok(None))
}

/// Takes a lock on a directory; none if another process holds it.
///
/// # Errors
/// When the directory cannot be opened or locked.
pub(crate) fn try_lock(
    path: &Path,
    lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<File>, Error> {
    let file = File::open(path).map_err(failed(path, "opened"))?;
    match lock(&file) {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed(path, "locked")(source)),
    }
}

/// Turns an I/O error about a path of the BPF file system into an [`Error`].
pub(crate) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Pin {
        path: path.to_path_buf(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn a_process_counts_as_alive_until_its_lock_is_gone() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("pins");
        let pins = Pins::open(&directory).unwrap();
        let locks = ProcessLocks::new(&pins);
        assert!(!locks.is_alive(7), "no process has locked it");
        let lock = locks.lock(7).unwrap();
        assert!(locks.is_alive(7));
        // A process may become active more than once.
        drop(locks.lock(7).unwrap());
        assert!(locks.is_alive(7));
        locks.remove_ended().unwrap();
        assert!(locks.is_alive(7), "removed while it is alive");
        drop(lock);
        assert!(!locks.is_alive(7));
        locks.remove_ended().unwrap();
        assert!(!pins.process_locks().join("7").exists());
        pins::remove_all(&directory).unwrap();
    }
}
