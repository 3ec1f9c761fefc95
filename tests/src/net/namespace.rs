//! Named network namespaces.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::cleanup::{self, Resource};

/// The directory of named namespaces, which `ip netns` and `nsenter` use, too.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace that is mounted under `/run/netns` for as long as this value lives.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    handle: File,
    registered: cleanup::Registration,
}

impl Namespace {
    /// Creates an empty namespace. Its loopback device is down.
    ///
    /// # Errors
    /// Without the privilege to create namespaces or mounts.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let _guard = cleanup::creation_guard();
        let path = Path::new(DIRECTORY).join(name);
        fs::create_dir_all(DIRECTORY).with_context(|| format!("creating {DIRECTORY}"))?;
        File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let registered = cleanup::register(Resource::Namespace(path.clone()));
        // In a separate thread, because unshare changes the namespace of the calling thread.
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
        .map_err(|_panic| anyhow!("the thread that created namespace {name} panicked"))?
        .with_context(|| format!("creating network namespace {name}"))?;
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            path,
            handle,
            registered,
        })
    }

    /// The name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The mounted file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    #[must_use]
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Runs `work` in a new thread inside this namespace and returns its result. A panic of `work`
    /// resumes in the caller. Processes that `work` starts are in the namespace, too.
    ///
    /// # Panics
    /// When `work` panics, or when the namespace cannot be entered (without root).
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

    /// Like [`Self::enter`], but does not wait for the thread.
    ///
    /// # Errors
    /// When the namespace's handle cannot be duplicated or the thread cannot be created.
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

/// Gives this thread and the processes that it starts a mount namespace of their own, in which the
/// first file of each pair is mounted over the second.
pub(crate) fn replace_files(files: &[(&Path, &Path)]) -> io::Result<()> {
    let none = None::<&str>;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    // The mounts below do not propagate to other mount namespaces.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(none, "/", none, flags, none)?;
    for (file, target) in files {
        nix::mount::mount(Some(*file), *target, none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

fn enter_current_thread(handle: &File, name: &str) {
    if let Err(errno) = nix::sched::setns(handle, CloneFlags::CLONE_NEWNET) {
        panic!("cannot enter network namespace {name}: {errno}");
    }
}

/// Removes a namespace's mount and file. They may be missing.
pub(crate) fn remove(path: &Path) {
    // Detached, so that an open socket in the namespace does not keep the mount.
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
