//! The locks that say which process of this node owns the pins, and which one takes over next.
//!
//! ```text
//! <directory>/charge      locked by the active process
//! <directory>/heir        locked by the standby process, until it serves all pods as the active one
//! <directory>/heir/ports  exists if the standby process waits for the active one's ports, too
//! ```
//! The locks are `flock(2)` on directories of the BPF file system: all proxies of a node share it,
//! whatever containers they run in. The kernel releases a lock when its process ends, however it
//! ends, so no process waits for a dead one. The standby process requests the handover by touching
//! its directory, which the active process watches (inotify).

use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, oneshot};

use super::holder::Holder;
use crate::bpf::{self, Error, pin_failed as failed, try_lock};

/// The locks of one node.
#[derive(Debug, Clone)]
pub(crate) struct Handover {
    active: PathBuf,
    standby: PathBuf,
    ports: PathBuf,
}

/// While this lives, the process is the active one.
#[derive(Debug)]
pub(crate) struct ActiveLock {
    lock: File,
}

/// While this lives, the process is the standby one, and the previous active process keeps its
/// listeners. If the standby process dies before it is active, the previous one becomes active
/// again.
#[derive(Debug)]
pub(crate) struct StandbyLock {
    lock: File,
}

impl Handover {
    /// The locks in a directory of pins.
    ///
    /// # Errors
    /// When there is no BPF file system, or a directory cannot be created in it.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        bpf::prepare_directory(directory)?;
        let standby = directory.join(bpf::STANDBY_LOCK);
        let this = Self {
            active: directory.join(bpf::ACTIVE_LOCK),
            ports: standby.join("ports"),
            standby,
        };
        for path in [&this.active, &this.standby] {
            bpf::create_private(path)?;
        }
        Ok(this)
    }

    /// Acquires both locks if no process holds one of them.
    ///
    /// # Errors
    /// When `flock(2)` fails for another reason.
    pub(crate) fn try_acquire(&self) -> Result<Option<(ActiveLock, StandbyLock)>, Error> {
        let Some(lock) = try_lock(&self.standby, File::try_lock)? else {
            return Ok(None);
        };
        let standby = StandbyLock { lock };
        let active = self.try_acquire_active()?;
        Ok(active.map(|active| (active, standby)))
    }

    /// The process that holds the active lock.
    #[must_use]
    pub(super) fn active_process(&self) -> Holder {
        Holder::of(&self.active)
    }

    /// The process that holds the standby lock.
    #[must_use]
    pub(super) fn standby_process(&self) -> Holder {
        Holder::of(&self.standby)
    }

    /// Whether the directories of the locks are those that other processes see, and `lock` is on one of
    /// them.
    #[must_use]
    pub(super) fn is_intact(&self, lock: &ActiveLock) -> bool {
        let file = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let held = lock.lock.metadata().map(file).ok();
        let seen = fs::metadata(&self.active).map(file).ok();
        seen.is_some() && held == seen && self.standby.exists()
    }

    /// Makes the directories of the locks again, and acquires the active lock if `lock` is not on them
    /// any more. None if another process has it now.
    ///
    /// # Errors
    /// When a directory cannot be created or locked.
    pub(super) fn recreate(&self, lock: ActiveLock) -> Result<Option<ActiveLock>, Error> {
        for path in [&self.active, &self.standby] {
            bpf::create_private(path)?;
        }
        if self.is_intact(&lock) {
            return Ok(Some(lock));
        }
        self.try_acquire_active()
    }

    /// Whether a process holds the standby lock.
    #[must_use]
    pub(crate) fn has_standby(&self) -> bool {
        matches!(try_lock(&self.standby, File::try_lock), Ok(None))
    }

    /// Acquires the active lock if no process holds it. Only the standby process and the previous
    /// active process may do so.
    ///
    /// # Errors
    /// When `flock(2)` fails for another reason.
    pub(crate) fn try_acquire_active(&self) -> Result<Option<ActiveLock>, Error> {
        let lock = try_lock(&self.active, File::try_lock)?;
        Ok(lock.map(|lock| ActiveLock { lock }))
    }

    /// Waits until this process is the standby one; there is one at a time. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be acquired, or the wish for the ports cannot be recorded.
    pub(crate) async fn become_standby(&self, ports: StandbyPorts) -> Result<StandbyLock, Error> {
        let lock = wait_for(&self.standby, File::lock).await?;
        let standby = StandbyLock { lock };
        let marked = match ports {
            StandbyPorts::Wanted => fs::create_dir_all(&self.ports),
            StandbyPorts::Own => remove_if_present(&self.ports),
        };
        marked.map_err(failed(&self.ports, "written"))?;
        Ok(standby)
    }

    /// Requests the handover from the active process. The caller repeats this: that process may not
    /// watch yet.
    ///
    /// # Errors
    /// When the directory cannot be touched.
    pub(crate) fn request_handover(&self, standby: &StandbyLock) -> Result<(), Error> {
        let now = SystemTime::now();
        // Both times: one alone looks to inotify like a read or a write of the contents.
        let now = FileTimes::new().set_accessed(now).set_modified(now);
        standby
            .lock
            .set_times(now)
            .map_err(failed(&self.standby, "touched"))
    }

    /// Waits until no other process is active; for the standby process. Safe to cancel.
    ///
    /// # Errors
    /// When the lock cannot be acquired.
    pub(crate) async fn acquire_active(&self) -> Result<ActiveLock, Error> {
        let lock = wait_for(&self.active, File::lock).await?;
        Ok(ActiveLock { lock })
    }

    /// Waits until the standby process serves all pods or is dead. While the returned lock lives, no
    /// process becomes standby.
    ///
    /// # Errors
    /// When the lock cannot be acquired.
    pub(crate) async fn standby_released(&self) -> Result<StandbyLock, Error> {
        let lock = wait_for(&self.standby, File::lock_shared).await?;
        Ok(StandbyLock { lock })
    }

    /// Whether the standby process waits for the ports of the active one.
    #[must_use]
    pub(crate) fn standby_wants_ports(&self) -> bool {
        self.ports.exists()
    }

    /// Watches for requests to hand over.
    ///
    /// # Errors
    /// When the system refuses, for example because all inotify watches are in use.
    pub(crate) fn watch_requests(&self) -> Result<HandoverRequests, Error> {
        let refused =
            |error: notify::Error| failed(&self.standby, "watched")(io::Error::other(error));
        let touched = Arc::new(Notify::new());
        // A standby process may have touched the directory already.
        touched.notify_one();
        let wake = touched.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error, such as an overflow of the queue, may stand for a lost event. Other events
            // come from this process itself, which opens the directory.
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

/// Whether the standby process has the admin, metrics and readiness ports: in another network
/// namespace it has ports of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StandbyPorts {
    /// It has ports.
    Own,
    /// It waits for the ports of the active process.
    Wanted,
}

/// Requests of standby processes to hand over.
pub(crate) struct HandoverRequests {
    standby: PathBuf,
    touched: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl HandoverRequests {
    /// Waits until a living standby process requests the handover. Safe to cancel.
    pub(crate) async fn next(&self) {
        loop {
            self.touched.notified().await;
            // The process that touched the directory may be dead by now.
            match try_lock(&self.standby, File::try_lock_shared) {
                Ok(None) => return,
                Ok(Some(_unlocked)) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot check for a standby process");
                }
            }
        }
    }
}

impl std::fmt::Debug for HandoverRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandoverRequests").finish_non_exhaustive()
    }
}

fn is_touch(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Metadata(_)))
}

/// Waits for a lock on a thread of its own; the end of the process does not wait for that thread. A
/// lock that is acquired after the caller was cancelled is released at once.
async fn wait_for(path: &Path, lock: fn(&File) -> io::Result<()>) -> Result<File, Error> {
    let file = File::open(path).map_err(failed(path, "opened"))?;
    let (locked, waiting) = oneshot::channel();
    let run = move || {
        let outcome = lock(&file).map(|()| file);
        drop(locked.send(outcome));
    };
    std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(run)
        .map_err(failed(path, "locked"))?;
    let outcome = waiting.await;
    let outcome = outcome.unwrap_or_else(|_ended| Err(io::Error::other("the thread ended early")));
    outcome.map_err(failed(path, "locked"))
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
