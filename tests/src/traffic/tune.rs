//! Tuning of a load process: its CPU, its file limit, and the congestion control of its sockets.

use std::io;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use socket2::SockRef;
use std::os::fd::AsFd;

/// Pins this process to one CPU.
///
/// # Errors
/// When the CPU does not exist.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pinning to CPU {cpu}"))
}

/// Raises the soft limit of open files to the hard limit.
///
/// # Errors
/// When the limit cannot be read or set.
pub fn raise_file_limit() -> Result<()> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the file limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the file limit")
}

/// The congestion control that a TCP socket uses, such as `cubic`.
///
/// # Errors
/// When the socket is not a TCP socket.
pub fn congestion(socket: &impl AsFd) -> io::Result<String> {
    let name = SockRef::from(socket).tcp_congestion()?;
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Sets the congestion control of a TCP socket. Connections of a listener inherit it, unless their route
/// has another one.
///
/// # Errors
/// When the kernel does not support it.
pub fn set_congestion(socket: &impl AsFd, name: &str) -> io::Result<()> {
    SockRef::from(socket).set_tcp_congestion(name.as_bytes())
}
