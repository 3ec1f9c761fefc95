//! Which process of this node is in charge of what is pinned, and who comes next.
//!
//! ```text
//! <directory>/charge      locked by the process in charge
//! <directory>/heir        locked by the process that is to be next, until it serves all pods
//! <directory>/heir/ports  is there if the heir waits for the other's ports, too
//! ```
//! The locks are `flock(2)` on directories of the BPF file system, which is the one thing that all
//! proxies of a node share whatever containers they are in. A lock ends with its process, however
//! that ends, so nobody waits for the dead. The heir makes itself noticed by touching its directory,
//! which wakes whoever watches it (inotify).

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, oneshot};

use super::pins::Pins;
use super::{Error, pins};

/// The locks of one node.
#[derive(Debug, Clone)]
pub struct Succession {
    charge: PathBuf,
    heir: PathBuf,
    ports: PathBuf,
}

/// Being in charge, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    _lock: File,
}

/// Being the next, until it is dropped: the process before stays at its listeners as long as this
/// lives, and takes charge again should it end with its process before anybody is in charge.
#[derive(Debug)]
pub struct Heir {
    lock: File,
}

impl Succession {
    /// The locks beside the pins of a directory.
    ///
    /// # Errors
    /// When there is no BPF file system, or a directory cannot be made in it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        drop(Pins::open(directory)?);
        let heir = directory.join("heir");
        let this = Self {
            charge: directory.join("charge"),
            ports: heir.join("ports"),
            heir,
        };
        for path in [&this.charge, &this.heir] {
            fs::create_dir_all(path).map_err(failed(path, "created"))?;
        }
        Ok(this)
    }

    /// Takes charge where nobody has it and nobody waits for it.
    ///
    /// # Errors
    /// When a lock cannot be asked for.
    pub fn take(&self) -> Result<Option<(Charge, Heir)>, Error> {
        let Some(lock) = try_lock(&self.heir, File::try_lock)? else {
            return Ok(None);
        };
        let heir = Heir { lock };
        Ok(self.take_over()?.map(|charge| (charge, heir)))
    }

    /// Whether somebody is the heir.
    #[must_use]
    pub fn has_heir(&self) -> bool {
        matches!(try_lock(&self.heir, File::try_lock), Ok(None))
    }

    /// Takes charge where nobody has it; for the heir, and for who has just had it.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub fn take_over(&self) -> Result<Option<Charge>, Error> {
        let lock = try_lock(&self.charge, File::try_lock)?;
        Ok(lock.map(|lock| Charge { _lock: lock }))
    }

    /// Waits until this process is the heir: one at a time. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub async fn become_heir(&self, ports: Ports) -> Result<Heir, Error> {
        let lock = wait_for(&self.heir, File::lock).await?;
        let heir = Heir { lock };
        let marked = match ports {
            Ports::Wanted => fs::create_dir_all(&self.ports),
            Ports::Own => remove_if_there(&self.ports),
        };
        marked.map_err(failed(&self.ports, "written"))?;
        Ok(heir)
    }

    /// Asks whoever is in charge to hand over. To be repeated: it may not be watching yet.
    ///
    /// # Errors
    /// When the directory cannot be touched.
    pub fn ask(&self, heir: &Heir) -> Result<(), Error> {
        let now = SystemTime::now();
        // Both: the kernel takes one alone for a read or a write of the contents.
        let now = FileTimes::new().set_accessed(now).set_modified(now);
        heir.lock
            .set_times(now)
            .map_err(failed(&self.heir, "touched"))
    }

    /// Waits until nobody else is in charge, as the heir. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub async fn inherit(&self) -> Result<Charge, Error> {
        let lock = wait_for(&self.charge, File::lock).await?;
        Ok(Charge { _lock: lock })
    }

    /// Waits until the heir serves all pods, or is dead. While what is returned lives, nobody
    /// becomes heir.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub async fn served(&self) -> Result<Heir, Error> {
        let lock = wait_for(&self.heir, File::lock_shared).await?;
        Ok(Heir { lock })
    }

    /// Whether the heir waits for the ports of the process before it.
    #[must_use]
    pub fn wants_ports(&self) -> bool {
        self.ports.exists()
    }

    /// Begins to watch whether somebody wants to take over.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn watch(&self) -> Result<Asked, Error> {
        let refused = |error: notify::Error| failed(&self.heir, "watched")(io::Error::other(error));
        let touched = Arc::new(Notify::new());
        // It may have been touched already.
        touched.notify_one();
        let wake = touched.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error (an overflow of the queue) may stand for an event that was lost. What this
            // process does itself, opening the directory, must not count.
            if event.map_or(true, |event| is_touch(event.kind)) {
                wake.notify_one();
            }
        })
        .map_err(refused)?;
        watcher
            .watch(&self.heir, RecursiveMode::NonRecursive)
            .map_err(refused)?;
        Ok(Asked {
            heir: self.heir.clone(),
            touched,
            _watcher: watcher,
        })
    }
}

/// Whether an heir has ports of its own: in another network namespace it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// It has.
    Own,
    /// It waits for those of the process before it.
    Wanted,
}

/// Notices that somebody wants to take over.
pub struct Asked {
    heir: PathBuf,
    touched: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Asked {
    /// Waits until there is an heir that asks. Safe to cancel.
    pub async fn asked(&self) {
        loop {
            self.touched.notified().await;
            // One that touched it and died meanwhile does not ask any more.
            match try_lock(&self.heir, File::try_lock_shared) {
                Ok(None) => return,
                Ok(Some(_nobody)) => {}
                Err(error) => tracing::error!(%error, "cannot see who wants to take over"),
            }
        }
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

fn is_touch(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Metadata(_)))
}

/// The processes that the programs may have to know: each holds a lock, under the number that it
/// has in the first pid namespace, from when it took charge until its end.
#[derive(Debug, Clone)]
pub(super) struct Lives {
    directory: PathBuf,
}

impl Lives {
    pub(super) fn beside(pins: &Pins) -> Self {
        Self {
            directory: pins.lives(),
        }
    }

    /// Shows that this process lives, until what is returned is dropped.
    pub(super) fn begin(&self, process: u32) -> Result<File, Error> {
        let path = self.of(process);
        fs::create_dir_all(&path).map_err(failed(&path, "created"))?;
        // Shared with itself: whoever asks wants it alone.
        try_lock(&path, File::try_lock_shared)?.ok_or_else(|| {
            let taken = io::Error::other("another process has this one's number");
            failed(&path, "locked")(taken)
        })
    }

    /// Whether a process that was in charge lives. One that never showed it does not.
    pub(super) fn is_alive(&self, process: u32) -> bool {
        let path = self.of(process);
        path.exists() && matches!(try_lock(&path, File::try_lock), Ok(None))
    }

    /// Forgets the dead. For the process in charge only: it is the only one that begins a life.
    pub(super) fn bury(&self) -> Result<(), Error> {
        for path in pins::children(&self.directory)? {
            if try_lock(&path, File::try_lock)?.is_some() {
                fs::remove_dir(&path).map_err(failed(&path, "removed"))?;
            }
        }
        Ok(())
    }

    fn of(&self, process: u32) -> PathBuf {
        self.directory.join(process.to_string())
    }
}

/// The lock, unless somebody else has it.
fn try_lock(
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

/// Waits for a lock on a thread of its own, which the end of the process does not wait for. A lock
/// that comes when nobody waits for it any more is given back at once.
async fn wait_for(path: &Path, lock: fn(&File) -> io::Result<()>) -> Result<File, Error> {
    let file = File::open(path).map_err(failed(path, "opened"))?;
    let (locked, waiting) = oneshot::channel();
    let run = move || {
        let outcome = lock(&file).map(|()| file);
        drop(locked.send(outcome));
    };
    std::thread::Builder::new()
        .name("succession".to_owned())
        .spawn(run)
        .map_err(failed(path, "locked"))?;
    let outcome = waiting.await;
    let outcome = outcome.unwrap_or_else(|_ended| Err(io::Error::other("the thread ended early")));
    outcome.map_err(failed(path, "locked"))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Pin {
        path: path.to_path_buf(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests;
