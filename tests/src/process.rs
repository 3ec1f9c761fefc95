//! Processes of the harness, and their CPU time, memory and sockets from `/proc`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::cleanup::{self, Resource};
use crate::net::Host;

/// Suspends or resumes a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// SIGSTOP.
    Suspend,
    /// SIGCONT.
    Resume,
}

/// A command that starts a program in a cgroup.
#[must_use]
pub fn in_cgroup(cgroup: &Path, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"",
            "sh",
        ])
        .args([cgroup, program]);
    command
}

/// A child process that is killed when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    registered: cleanup::Registration,
}

impl Process {
    /// Starts a process on a host of the world.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Host, command: &mut Command) -> Result<Self> {
        Self::start_with_files(host, command, &[])
    }

    /// As [`Self::start`]; the first file of each pair is mounted over the second.
    ///
    /// # Errors
    /// As [`Self::start`], and when a file does not exist.
    pub fn start_with_files(
        host: &Host,
        command: &mut Command,
        files: &[(&Path, &Path)],
    ) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let _guard = cleanup::creation_guard();
        // A process group of its own, so that Ctrl-C in the terminal reaches only the harness, which
        // cleans up.
        let child = host.start_with_files(command.process_group(0), files)?;
        let registered = cleanup::register(Resource::Process(pid_of(&child)));
        Ok(Self { child, registered })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(Pid::from_raw(pid_of(&self.child)), signal).context("sending a signal")
    }

    /// Suspends or resumes the process.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn pause(&self, pause: Pause) -> Result<()> {
        self.signal(match pause {
            Pause::Suspend => Signal::SIGSTOP,
            Pause::Resume => Signal::SIGCONT,
        })
    }

    /// Sends SIGKILL and waits until the process has ended.
    ///
    /// # Errors
    /// When waiting for the process fails.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().context("killing a process")?;
        self.child.wait().context("waiting for a process")
    }

    /// Sends SIGTERM and waits until the process has ended.
    ///
    /// # Errors
    /// When the process has not ended within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When the process has not ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a process")? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("process {} has not ended within {limit:?}", self.pid());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process is running.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Leaves the process running after the harness has ended.
    pub fn leak(self) {
        self.registered.forget();
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.alive() {
            cleanup::kill(pid_of(&self.child));
        }
        // Reaps the process; waiting for a killed process does not fail.
        drop(self.child.wait());
        self.registered.forget();
    }
}

fn pid_of(child: &Child) -> i32 {
    // The largest pid of Linux is 2^22.
    i32::try_from(child.id()).unwrap_or(i32::MAX)
}

/// CPU time of a process, including threads that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuSeconds {
    /// In user space, seconds.
    pub user: f64,
    /// In the kernel, seconds.
    pub system: f64,
}

impl CpuSeconds {
    /// The sum of both, seconds.
    #[must_use]
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// The number of clock ticks of `/proc` per second.
#[must_use]
pub fn ticks_per_second() -> f64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    f64::from(u32::try_from(ticks).unwrap_or(100))
}

/// The CPU time that a process has used so far.
///
/// # Errors
/// When the process has ended.
pub fn cpu_seconds(pid: u32) -> io::Result<CpuSeconds> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15 of proc(5); the name in field 2 may contain spaces and brackets.
    let mut fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .skip(11);
    let ticks = ticks_per_second();
    let mut next = || {
        fields
            .next()
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
            / ticks
    };
    Ok(CpuSeconds {
        user: next(),
        system: next(),
    })
}

/// Resident memory of a process, bytes.
///
/// # Errors
/// When the process has ended.
pub fn rss_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .ok_or_else(|| io::Error::other(format!("process {pid} has no VmRSS")))?;
    Ok(kilobytes * 1024)
}

/// The inodes of the open sockets of a process.
///
/// # Errors
/// When the process has ended.
pub fn socket_inodes(pid: u32) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // The descriptor may have been closed in the meantime.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_socket_has_an_inode() {
        let before = socket_inodes(std::process::id()).unwrap();
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let after = socket_inodes(std::process::id()).unwrap();
        assert!(after.difference(&before).next().is_some());
        assert!(socket_inodes(u32::MAX).is_err());
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pid = std::process::id();
        assert!(rss_bytes(pid).unwrap() > 100_000);
        assert!(cpu_seconds(pid).unwrap().total() >= 0.0);
        assert!(cpu_seconds(u32::MAX).is_err());
    }
}
