//! Reports changed files, whether they were written in place, replaced by a rename, or swapped by a
//! symbolic link, which is how Kubernetes updates a mounted ConfigMap.
//!
//! The watches are on the files' directories, because a watch on a file ends when the file is
//! replaced. An event in a directory only wakes the watcher, and writes to other files do not even
//! wake it; a change is reported if the contents differ from the last ones. Changes in quick
//! succession are reported as one. Create the watcher before the files are read for the first time,
//! then no change is missed. Used by `node`.

use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foldhash::HashSet;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use mesh::Fault;

/// A change is complete when no event has arrived for this long.
const QUIET: Duration = Duration::from_millis(100);
/// A change is treated as complete after this long in any case.
const PATIENCE: Duration = Duration::from_secs(1);

/// Files that cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The system provides no watcher.
    #[error("cannot watch files: {source}")]
    Start {
        /// The system's error; often a limit of inotify.
        source: notify::Error,
    },
    /// The system refuses to watch one directory.
    #[error("cannot watch directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: notify::Error,
    },
}

impl WatchError {
    /// A stable name for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "watch_start",
            Self::Directory { .. } => "watch_directory",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

/// Waits for changes of a set of files.
pub struct Watcher {
    files: Vec<PathBuf>,
    seen: Vec<Option<u64>>,
    watched: HashSet<PathBuf>,
    /// The files and the targets of those that are links.
    names: Arc<RwLock<HashSet<PathBuf>>>,
    watcher: RecommendedWatcher,
    events: Arc<Notify>,
    /// An event has arrived and the contents were not compared yet.
    pending: bool,
}

impl Watcher {
    /// Watches these files; they need not exist, their directories must.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(paths: &[PathBuf]) -> Result<Self, WatchError> {
        let events = Arc::new(Notify::new());
        let wake = events.clone();
        let names = Arc::<RwLock<HashSet<PathBuf>>>::default();
        let known = names.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            // After an error (an overflow of the queue) an event may have been lost.
            if event.map_or(true, |event| may_change(&event, &known)) {
                wake.notify_one();
            }
        })
        .map_err(|source| WatchError::Start { source })?;
        let watched = HashSet::default();
        let mut this = Self {
            files: Vec::new(),
            seen: Vec::new(),
            watched,
            names,
            watcher,
            events,
            pending: false,
        };
        this.retarget(paths)?;
        Ok(this)
    }

    /// Watches other files from now on. Files that were watched before keep their last contents
    /// for comparison.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn retarget(&mut self, paths: &[PathBuf]) -> Result<(), WatchError> {
        let old: Vec<_> = self.files.drain(..).zip(self.seen.drain(..)).collect();
        self.files = paths.to_vec();
        for path in paths {
            self.watch(directory(path))?;
        }
        self.follow_links();
        self.seen = paths
            .iter()
            .map(|path| {
                let before = old.iter().find(|(file, _)| file == path);
                before.map_or_else(|| fingerprint(path), |(_, seen)| *seen)
            })
            .collect();
        Ok(())
    }

    /// Waits until the contents of a file differ from the last ones. Safe to cancel: a change
    /// that was not reported is reported by the next call.
    pub async fn changed(&mut self) {
        loop {
            if !self.pending {
                self.events.notified().await;
                self.pending = true;
            }
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && timeout(QUIET, self.events.notified()).await.is_ok()
            {
            }
            self.pending = false;
            self.follow_links();
            let now: Vec<_> = self.files.iter().map(|path| fingerprint(path)).collect();
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    /// Watches the targets of links too, which may be written in place in another directory.
    fn follow_links(&mut self) {
        let mut names: HashSet<PathBuf> = self.files.iter().cloned().collect();
        for path in self.files.clone() {
            let Ok(target) = path.canonicalize() else {
                continue;
            };
            names.insert(target.clone());
            if let Err(error) = self.watch(directory(&target)) {
                tracing::warn!(%error, "the target of a link cannot be watched: its changes are not noticed");
            }
        }
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn watch(&mut self, directory: &Path) -> Result<(), WatchError> {
        if self.watched.contains(directory) && directory.exists() {
            return Ok(());
        }
        self.watcher
            .watch(directory, RecursiveMode::NonRecursive)
            .map_err(|source| WatchError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        self.watched.insert(directory.to_owned());
        Ok(())
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Whether the contents of a file may have changed. Created, removed and renamed entries may be a
/// swapped link. Events of opening and reading are ignored, because the watcher's own reads cause
/// them.
fn may_change(event: &Event, names: &HashSet<PathBuf>) -> bool {
    let ours = || event.paths.is_empty() || event.paths.iter().any(|path| is_one_of(path, names));
    match event.kind {
        EventKind::Modify(ModifyKind::Name(_)) => true,
        EventKind::Modify(_) | EventKind::Access(AccessKind::Close(AccessMode::Write)) => ours(),
        EventKind::Access(_) => false,
        _ => true,
    }
}

/// Events name a relative file with its directory as it was given, or as `./name`.
fn is_one_of(path: &Path, names: &HashSet<PathBuf>) -> bool {
    names.contains(path)
        || path
            .strip_prefix(".")
            .is_ok_and(|relative| names.contains(relative))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hash of the contents; `None` for a file that cannot be read.
fn fingerprint(path: &Path) -> Option<u64> {
    let contents = std::fs::read(path).ok()?;
    let mut hasher = std::hash::DefaultHasher::new();
    contents.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests;
