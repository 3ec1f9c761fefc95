//! Leaving nothing behind: on success, on failure, on a signal, and after a run that was killed.
//!
//! Whatever the harness makes outside its own process is [`register`]ed first. Values take
//! their own resource away when they are dropped; [`on_signal`] takes away what is registered
//! when SIGINT or SIGTERM comes; and [`sweep`] removes what runs left whose process is gone
//! (the pid is part of every name).

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

/// What every name of ours begins with; the pid and a dash follow.
pub const PREFIX: &str = "zt";
/// Where run directories are made.
const RUN: &str = "/run";
/// How long a killed process may take to end.
const DYING: Duration = Duration::from_secs(2);
/// Where BPF file systems and namespaces of a run may be mounted.
const MOUNTS: &str = "/proc/self/mounts";

/// Something outside this process that must be taken away again.
#[derive(Debug, Clone)]
pub(crate) enum Resource {
    /// A process, by its pid.
    Process(i32),
    /// A mounted network namespace.
    Namespace(PathBuf),
    /// A directory of a run, with the mounts below it.
    Directory(PathBuf),
}

/// The registration of one resource.
#[derive(Debug)]
pub(crate) struct Registered(u64);

#[derive(Default)]
struct Registry {
    next: u64,
    resources: BTreeMap<u64, Resource>,
}

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

/// Notes a resource, so that a signal finds it.
pub(crate) fn register(resource: Resource) -> Registered {
    let mut registry = registry().lock().unwrap_or_else(PoisonError::into_inner);
    registry.next += 1;
    let id = registry.next;
    registry.resources.insert(id, resource);
    Registered(id)
}

impl Registered {
    /// The resource is gone.
    pub(crate) fn forget(&self) {
        registry()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .resources
            .remove(&self.0);
    }
}

/// Held for reading while something is made, see [`making`]; for writing from a signal on.
static MAKING: RwLock<()> = RwLock::new(());

/// To be held from before something is made until it is made and registered: a signal waits for
/// that, and after one nothing is made any more (this blocks until the process ends). Not to be
/// held twice by one thread.
pub(crate) fn making() -> RwLockReadGuard<'static, ()> {
    MAKING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held while [`run`] works.
static WORKING: Mutex<()> = Mutex::new(());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes away everything that is registered, newest first.
pub fn run() {
    let _working = WORKING.lock().unwrap_or_else(PoisonError::into_inner);
    let resources = {
        let mut registry = registry().lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut registry.resources)
    };
    for resource in resources.into_values().rev() {
        release(&resource);
    }
}

/// Forgets everything that is registered: it stays when the process ends.
pub fn keep() {
    registry()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .resources
        .clear();
}

/// Whether a signal has come that ends this process.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Waits until a clean-up that is under way has ended: the process must not end before.
pub(crate) fn settle() {
    drop(WORKING.lock().unwrap_or_else(PoisonError::into_inner));
}

/// How a program ends: prints an error, unless the error came from being interrupted.
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

/// From now on SIGINT and SIGTERM clean up and end the process with status 130.
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
            let _nothing_new = MAKING.write().unwrap_or_else(PoisonError::into_inner);
            run();
            std::process::exit(130);
        });
        // Nothing is ever sent: this ends when the thread lets go of its end.
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

/// Kills a process that this one started. Not finding it is fine.
pub(crate) fn kill(pid: i32) {
    if let Err(errno) = signal::kill(Pid::from_raw(pid), Signal::SIGKILL)
        && errno != nix::errno::Errno::ESRCH
    {
        eprintln!("cannot kill process {pid}: {errno}");
    }
}

/// Waits until a killed process can make nothing any more. Its parent may be busy, so this does
/// not collect its status.
fn await_end(pid: i32) {
    let started = Instant::now();
    while u32::try_from(pid).is_ok_and(lives) && started.elapsed() < DYING {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Removes a run's directory and what is mounted below it (BPF file systems: unmounting one
/// drops its pins, and with them the links that nothing else holds).
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

/// Removes what runs left whose process no longer lives: processes they had noted, run
/// directories with their mounts, namespaces.
pub fn sweep() {
    for directory in leftovers(Path::new(RUN)) {
        kill_noted(&directory.join("pids"));
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
        .filter(|entry| owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !lives(pid)))
        .map(|entry| entry.path())
        .collect()
}

/// Whether a process exists and is no zombie (field 3 of `/proc/PID/stat`, proc(5)).
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X'))
    })
}

/// The pid in a name of ours, for example 42 in `zt42-0-a`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Notes a process in a run's directory, so that a later sweep finds it.
pub(crate) fn note_process(directory: &Path, pid: u32) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("pids"))?;
    writeln!(file, "{pid} {}", start_time(pid).unwrap_or_default())
}

fn kill_noted(file: &Path) {
    let noted = fs::read_to_string(file).unwrap_or_default();
    for line in noted.lines() {
        let Some((pid, started)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else {
            continue;
        };
        // The start time tells our process from a later one with the same number.
        if start_time(pid) == Some(started)
            && let Ok(pid) = i32::try_from(pid)
        {
            kill(pid);
        }
    }
}

/// When a process started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
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
    fn the_owner_is_read_from_our_names_only() {
        assert_eq!(owner("zt42-0-a-p1"), Some(42));
        assert_eq!(owner("ztunnel"), None);
        assert_eq!(owner("zt-0"), None);
        assert_eq!(owner("cni-1234"), None);
    }

    #[test]
    fn this_process_has_a_start_time() {
        assert!(start_time(std::process::id()).is_some());
        assert!(lives(std::process::id()));
        assert!(!lives(u32::MAX));
    }
}
