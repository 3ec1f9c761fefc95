//! Named network namespaces: made, entered, and removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::cleanup::{self, Resource};

/// Where named namespaces are mounted, so that `ip netns` and `nsenter` find them too.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace that is mounted under `/run/netns` for as long as this value lives.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    handle: File,
    registered: cleanup::Registered,
}

impl Namespace {
    /// Makes an empty namespace (its loopback is still down).
    ///
    /// # Errors
    /// Without the right to make namespaces or mounts.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let _making = cleanup::making();
        let path = Path::new(DIRECTORY).join(name);
        fs::create_dir_all(DIRECTORY).with_context(|| format!("making {DIRECTORY}"))?;
        File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let registered = cleanup::register(Resource::Namespace(path.clone()));
        // A thread of its own, because unshare changes the namespace of the calling thread.
        let mount_point = path.clone();
        thread::spawn(move || -> io::Result<()> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            nix::mount::mount(
                Some("/proc/thread-self/ns/net"),
                &mount_point,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            Ok(())
        })
        .join()
        .map_err(|_panic| anyhow!("the thread that made namespace {name} panicked"))?
        .with_context(|| format!("making network namespace {name}"))?;
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            path,
            handle,
            registered,
        })
    }

    /// Its name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace.
    #[must_use]
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Runs `work` in a new thread inside this namespace and returns what it returned; a panic
    /// of `work` goes on in the caller. Processes started by `work` live in the namespace too.
    ///
    /// # Panics
    /// When `work` panics, or when the namespace cannot be entered (no root).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter_current_thread(&self.handle, &self.name);
                    work()
                })
                .join()
        });
        match outcome {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Like [`Self::enter`], but returns at once; the thread goes on by itself.
    ///
    /// # Errors
    /// When the namespace's handle cannot be duplicated or the thread cannot be made.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let handle = self
            .handle
            .try_clone()
            .context("duplicating a namespace handle")?;
        let name = self.name.clone();
        thread::Builder::new()
            .spawn(move || {
                enter_current_thread(&handle, &name);
                work()
            })
            .context("starting a thread")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path);
        self.registered.forget();
    }
}

/// Gives this thread, and the processes that it starts, mounts of their own, in which the first file
/// of each pair is in the place of the second.
pub(crate) fn replace_files(files: &[(&Path, &Path)]) -> io::Result<()> {
    let none = None::<&str>;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted from here on is nobody else's.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(none, "/", none, flags, none)?;
    for (file, place) in files {
        nix::mount::mount(Some(*file), *place, none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

fn enter_current_thread(handle: &File, name: &str) {
    if let Err(errno) = nix::sched::setns(handle, CloneFlags::CLONE_NEWNET) {
        panic!("cannot enter network namespace {name}: {errno}");
    }
}

/// Takes a namespace's mount and file away. Not finding them is fine.
pub(crate) fn remove(path: &Path) {
    // Detached, so that a socket still open in there does not keep the name alive.
    let unmounted = nix::mount::umount2(path, MntFlags::MNT_DETACH);
    if let Err(errno) = unmounted
        && !matches!(errno, nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT)
    {
        eprintln!("cannot unmount {}: {errno}", path.display());
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}
