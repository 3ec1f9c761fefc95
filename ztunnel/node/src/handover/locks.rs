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

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, oneshot};

use crate::bpf::{self, Error, pin_failed as failed, try_lock};

/// The locks of one node.
#[derive(Debug, Clone)]
pub(crate) struct Handover {
    charge: PathBuf,
    standby: PathBuf,
    ports: PathBuf,
}

/// Being in charge, until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveLock {
    _lock: File,
}

/// Being the next, until it is dropped: the process before stays at its listeners as long as this
/// lives, and takes charge again should it end with its process before anybody is in charge.
#[derive(Debug)]
pub(crate) struct StandbyLock {
    lock: File,
}

impl Handover {
    /// The locks beside the pins of a directory.
    ///
    /// # Errors
    /// When there is no BPF file system, or a directory cannot be made in it.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        bpf::prepare_directory(directory)?;
        let standby = directory.join("heir");
        let this = Self {
            charge: directory.join("charge"),
            ports: standby.join("ports"),
            standby,
        };
        for path in [&this.charge, &this.standby] {
            fs::create_dir_all(path).map_err(failed(path, "created"))?;
        }
        Ok(this)
    }

    /// Takes charge where nobody has it and nobody waits for it.
    ///
    /// # Errors
    /// When a lock cannot be asked for.
    pub(crate) fn take(&self) -> Result<Option<(ActiveLock, StandbyLock)>, Error> {
        let Some(lock) = try_lock(&self.standby, File::try_lock)? else {
            return Ok(None);
        };
        let standby = StandbyLock { lock };
        Ok(self.take_over()?.map(|charge| (charge, standby)))
    }

    /// Whether somebody is the heir.
    #[must_use]
    pub(crate) fn has_standby(&self) -> bool {
        matches!(try_lock(&self.standby, File::try_lock), Ok(None))
    }

    /// Takes charge where nobody has it; for the heir, and for who has just had it.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub(crate) fn take_over(&self) -> Result<Option<ActiveLock>, Error> {
        let lock = try_lock(&self.charge, File::try_lock)?;
        Ok(lock.map(|lock| ActiveLock { _lock: lock }))
    }

    /// Waits until this process is the heir: one at a time. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub(crate) async fn become_standby(&self, ports: StandbyPorts) -> Result<StandbyLock, Error> {
        let lock = wait_for(&self.standby, File::lock).await?;
        let standby = StandbyLock { lock };
        let marked = match ports {
            StandbyPorts::Wanted => fs::create_dir_all(&self.ports),
            StandbyPorts::Own => remove_if_there(&self.ports),
        };
        marked.map_err(failed(&self.ports, "written"))?;
        Ok(standby)
    }

    /// Asks whoever is in charge to hand over. To be repeated: it may not be watching yet.
    ///
    /// # Errors
    /// When the directory cannot be touched.
    pub(crate) fn ask(&self, standby: &StandbyLock) -> Result<(), Error> {
        let now = SystemTime::now();
        // Both: the kernel takes one alone for a read or a write of the contents.
        let now = FileTimes::new().set_accessed(now).set_modified(now);
        standby
            .lock
            .set_times(now)
            .map_err(failed(&self.standby, "touched"))
    }

    /// Waits until nobody else is in charge, as the heir. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub(crate) async fn wait_for_active_lock(&self) -> Result<ActiveLock, Error> {
        let lock = wait_for(&self.charge, File::lock).await?;
        Ok(ActiveLock { _lock: lock })
    }

    /// Waits until the heir serves all pods, or is dead. While what is returned lives, nobody
    /// becomes heir.
    ///
    /// # Errors
    /// When the lock cannot be asked for.
    pub(crate) async fn served(&self) -> Result<StandbyLock, Error> {
        let lock = wait_for(&self.standby, File::lock_shared).await?;
        Ok(StandbyLock { lock })
    }

    /// Whether the heir waits for the ports of the process before it.
    #[must_use]
    pub(crate) fn wants_ports(&self) -> bool {
        self.ports.exists()
    }

    /// Begins to watch whether somebody wants to take over.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn watch(&self) -> Result<HandoverRequests, Error> {
        let refused =
            |error: notify::Error| failed(&self.standby, "watched")(io::Error::other(error));
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
            .watch(&self.standby, RecursiveMode::NonRecursive)
            .map_err(refused)?;
        Ok(HandoverRequests {
            standby: self.standby.clone(),
            touched,
            _watcher: watcher,
        })
    }
}

/// Whether an heir has ports of its own: in another network namespace it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StandbyPorts {
    /// It has.
    Own,
    /// It waits for those of the process before it.
    Wanted,
}

/// Notices that somebody wants to take over.
pub(crate) struct HandoverRequests {
    standby: PathBuf,
    touched: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl HandoverRequests {
    /// Waits until there is an heir that asks. Safe to cancel.
    pub(crate) async fn asked(&self) {
        loop {
            self.touched.notified().await;
            // One that touched it and died meanwhile does not ask any more.
            match try_lock(&self.standby, File::try_lock_shared) {
                Ok(None) => return,
                Ok(Some(_nobody)) => {}
                Err(error) => tracing::error!(%error, "cannot see who wants to take over"),
            }
        }
    }
}

impl std::fmt::Debug for HandoverRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

fn is_touch(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Metadata(_)))
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

#[cfg(test)]
mod tests;
