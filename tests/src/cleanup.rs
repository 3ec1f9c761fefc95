//! Cleanup after success, failure, a signal, and a run that was killed.
//!
//! Every resource outside the process is [`register`]ed when it is created. Each value removes its own
//! resource when it is dropped; on SIGINT and SIGTERM, [`on_signal`] removes all registered resources;
//! [`sweep`] removes the resources of runs whose process has ended (the pid is part of every name).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::MntFlags;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::net::remove_namespace;

/// The prefix of every name of the harness; the pid and a dash follow.
pub const PREFIX: &str = "zt";
/// The parent of run directories.
const RUN: &str = "/run";
/// The time limit for the end of a killed process.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// The list of mounts, among them BPF file systems and namespaces of a run.
const MOUNTS: &str = "/proc/self/mounts";

/// A resource outside this process that must be removed.
#[derive(Debug, Clone)]
pub(crate) enum Resource {
    /// A process, by its pid.
    Process(i32),
    /// A mounted network namespace.
    Namespace(PathBuf),
    /// A directory of a run, with the mounts below it.
    Directory(PathBuf),
}

/// The registration of a resource.
#[derive(Debug)]
pub(crate) struct Registration(u64);

#[derive(Default)]
struct Registry {
    next: u64,
    resources: BTreeMap<u64, Resource>,
}

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

/// Registers a resource, so that it is removed on a signal.
pub(crate) fn register(resource: Resource) -> Registration {
    let mut registry = registry().lock().unwrap_or_else(PoisonError::into_inner);
    registry.next += 1;
    let id = registry.next;
    registry.resources.insert(id, resource);
    Registration(id)
}

impl Registration {
    /// Ends the registration after the resource was removed.
    pub(crate) fn forget(&self) {
        registry()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .resources
            .remove(&self.0);
    }
}

/// Held for reading while a resource is created, see [`creation_guard`]; held for writing after a signal.
static CREATION: RwLock<()> = RwLock::new(());

/// Hold this guard while a resource is created and registered. A signal waits for it; after a signal
/// this function blocks until the process ends. A thread must not hold two guards.
pub(crate) fn creation_guard() -> RwLockReadGuard<'static, ()> {
    CREATION.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held while [`run`] removes resources.
static CLEANING_UP: Mutex<()> = Mutex::new(());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Removes all registered resources, newest first.
pub fn run() {
    let _running = CLEANING_UP.lock().unwrap_or_else(PoisonError::into_inner);
    let resources = {
        let mut registry = registry().lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut registry.resources)
    };
    for resource in resources.into_values().rev() {
        release(&resource);
    }
}

/// Ends all registrations: the resources stay when the process ends.
pub fn keep() {
    registry()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .resources
        .clear();
}

/// Whether a signal that ends this process has arrived.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Waits until a running cleanup has ended. The process must not end earlier.
pub(crate) fn wait_for_cleanup() {
    drop(CLEANING_UP.lock().unwrap_or_else(PoisonError::into_inner));
}

/// The exit code of a program. Prints an error, unless a signal caused it.
#[must_use]
pub fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    if interrupted() {
        // The thread that cleans up ends the process.
        loop {
            thread::park();
        }
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Installs the handler: SIGINT and SIGTERM remove all resources and end the process with status 130.
pub fn on_signal() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let (installed, wait) = mpsc::channel();
        thread::spawn(move || {
            if let Err(error) = wait_for_signal(installed) {
                eprintln!("cannot wait for signals: {error}");
                return;
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\ninterrupted: cleaning up");
            let _no_creation = CREATION.write().unwrap_or_else(PoisonError::into_inner);
            run();
            std::process::exit(130);
        });
        // Waits until the thread drops its sender; it never sends a value.
        for () in wait {}
    });
}

fn wait_for_signal(installed: mpsc::Sender<()>) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        drop(installed);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn release(resource: &Resource) {
    match resource {
        Resource::Process(pid) => {
            kill(*pid);
            await_end(*pid);
        }
        Resource::Namespace(path) => remove_namespace(path),
        Resource::Directory(path) => remove_directory(path),
    }
}

/// Kills a process that the harness started. It may have ended already.
pub(crate) fn kill(pid: i32) {
    if let Err(errno) = signal::kill(Pid::from_raw(pid), Signal::SIGKILL)
        && errno != nix::errno::Errno::ESRCH
    {
        eprintln!("cannot kill process {pid}: {errno}");
    }
}

/// Waits until a killed process has ended. Does not reap it, because that is the task of its parent.
fn await_end(pid: i32) {
    let started = Instant::now();
    while u32::try_from(pid).is_ok_and(is_running) && started.elapsed() < KILL_TIMEOUT {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes a run's directory and the mounts below it. Unmounting a BPF file system drops its pins, and
/// with them the links that no process holds.
pub(crate) fn remove_directory(path: &Path) {
    for mount in mounts_below(path).into_iter().rev() {
        if let Err(errno) = nix::mount::umount2(&mount, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", mount.display());
            return;
        }
    }
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(path))
        .collect()
}

/// Removes the resources of runs whose process has ended: recorded processes, run directories with their
/// mounts, and namespaces.
pub fn sweep() {
    for directory in leftovers(Path::new(RUN)) {
        kill_recorded(&directory.join("pids"));
        remove_directory(&directory);
    }
    for namespace in leftovers(Path::new(crate::net::NAMESPACES)) {
        remove_namespace(&namespace);
    }
}

fn leftovers(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !is_running(pid))
        })
        .map(|entry| entry.path())
        .collect()
}

/// Whether a process exists and is not a zombie (field 3 of `/proc/PID/stat`, proc(5)).
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X'))
    })
}

/// The pid in a name of the harness, for example 42 in `zt42-0-a`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Records a process in a run's directory, so that a later sweep can kill it.
pub(crate) fn record_process(directory: &Path, pid: u32) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("pids"))?;
    writeln!(file, "{pid} {}", start_time(pid).unwrap_or_default())
}

fn kill_recorded(file: &Path) {
    let recorded = fs::read_to_string(file).unwrap_or_default();
    for line in recorded.lines() {
        let Some((pid, started)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else {
            continue;
        };
        // The start time distinguishes the recorded process from a later one with the same pid.
        if start_time(pid) == Some(started)
            && let Ok(pid) = i32::try_from(pid)
        {
            kill(pid);
        }
    }
}

/// The start time of a process, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_harness_have_an_owner() {
        assert_eq!(owner("zt42-0-a-p1"), Some(42));
        assert_eq!(owner("ztunnel"), None);
        assert_eq!(owner("zt-0"), None);
        assert_eq!(owner("cni-1234"), None);
    }

    #[test]
    fn this_process_has_a_start_time() {
        assert!(start_time(std::process::id()).is_some());
        assert!(is_running(std::process::id()));
        assert!(!is_running(u32::MAX));
    }
}
