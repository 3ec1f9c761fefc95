//! The CPU time of the machine, and the part that other processes used.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::process::{CpuSeconds, ticks_per_second};

/// The part of a sample's wall time that other processes may use before the sample counts as disturbed.
pub const TOLERANCE: f64 = 0.10;

/// A point in time with the CPU times until then.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    at: Instant,
    machine: Machine,
    ours: CpuSeconds,
    proxies: f64,
}

/// The CPU seconds of all CPUs, from `/proc/stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Machine {
    user: f64,
    system: f64,
    interrupts: f64,
    steal: f64,
}

/// The usage between two points in time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Wall time, seconds.
    pub wall: f64,
    /// CPU seconds of the proxies.
    pub proxies: f64,
    /// CPU seconds of the machine, including interrupts: the kernel's work for a connection is not always
    /// attributed to a process.
    pub machine: f64,
    /// CPU seconds of processes outside the benchmark.
    pub foreign: f64,
    /// CPU seconds that the hypervisor gave to other machines.
    pub steal: f64,
}

impl Usage {
    /// Whether other processes used more CPU time than a sample tolerates.
    #[must_use]
    pub fn disturbed(&self) -> bool {
        self.disturbance() > TOLERANCE
    }

    /// The part of the wall time that other processes used.
    #[must_use]
    pub fn disturbance(&self) -> f64 {
        (self.foreign + self.steal) / self.wall.max(f64::MIN_POSITIVE)
    }
}

impl Moment {
    /// The current point in time. `servers` and `proxies` are pids; this process and its reaped children
    /// belong to the benchmark, too.
    pub(crate) fn now(servers: &[u32], proxies: &[u32]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let machine = machine(&stat).context("/proc/stat has no line for all CPUs")?;
        let mut ours = own()?;
        let mut proxy_seconds = 0.0;
        for (pid, is_proxy) in servers
            .iter()
            .map(|pid| (pid, false))
            .chain(proxies.iter().map(|pid| (pid, true)))
        {
            let cpu = crate::process::cpu_seconds(*pid)
                .with_context(|| format!("reading the CPU time of process {pid}"))?;
            ours.user += cpu.user;
            ours.system += cpu.system;
            if is_proxy {
                proxy_seconds += cpu.total();
            }
        }
        for kernel in kernel_threads() {
            ours.system += kernel;
        }
        Ok(Self {
            at: Instant::now(),
            machine,
            ours,
            proxies: proxy_seconds,
        })
    }

    /// The usage until a later point in time.
    pub(crate) fn until(&self, later: &Self) -> Usage {
        let machine = |pick: fn(&Machine) -> f64| pick(&later.machine) - pick(&self.machine);
        let user = machine(|machine| machine.user);
        let system = machine(|machine| machine.system);
        let ours_user = later.ours.user - self.ours.user;
        let ours = later.ours.total() - self.ours.total();
        // Interrupts are counted for the interrupted process as well as for the machine, so the
        // difference of the totals can be too small. Other processes mostly use user time, which is exact.
        let foreign = (user - ours_user).max(user + system - ours).max(0.0);
        Usage {
            wall: (later.at - self.at).as_secs_f64(),
            proxies: later.proxies - self.proxies,
            machine: user + system + machine(|machine| machine.interrupts),
            foreign,
            steal: machine(|machine| machine.steal),
        }
    }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, in
/// clock ticks (proc(5)).
fn machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks = ticks_per_second();
    let numbers: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|number| number.parse::<f64>().ok())
        .map(|number| number / ticks)
        .collect();
    let at = |index: usize| numbers.get(index).copied();
    Some(Machine {
        user: at(0)? + at(1)?,
        system: at(2)?,
        interrupts: at(5)? + at(6)?,
        steal: at(7)?,
    })
}

/// CPU time of this process and its reaped children (fields 14 to 17 of proc(5)).
fn own() -> Result<CpuSeconds> {
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let ticks = ticks_per_second();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<f64>().ok())
        .collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or(0.0) / ticks;
    Ok(CpuSeconds {
        user: at(0) + at(2),
        system: at(1) + at(3),
    })
}

/// CPU seconds of kernel threads (children of kthreadd, pid 2): mostly the network work of the sample.
fn kernel_threads() -> Vec<f64> {
    let ticks = ticks_per_second();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter_map(|stat| {
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let parent = fields.get(1)?;
            let system = fields.get(12)?.parse::<f64>().ok()?;
            (*parent == "2").then_some(system / ticks)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_all_cpus_is_parsed() {
        let text = "cpu  100 50 200 9 9 0 50 30 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let ticks = ticks_per_second();
        let expected = Machine {
            user: 150.0 / ticks,
            system: 200.0 / ticks,
            interrupts: 50.0 / ticks,
            steal: 30.0 / ticks,
        };
        assert_eq!(machine(text), Some(expected));
        assert_eq!(machine("nothing"), None);
    }

    #[test]
    fn a_sample_above_the_tolerance_is_disturbed() {
        let usage = Usage {
            wall: 1.0,
            foreign: 0.06,
            steal: 0.03,
            ..Usage::default()
        };
        assert!(!usage.disturbed());
        assert!(
            Usage {
                steal: 0.05,
                ..usage
            }
            .disturbed()
        );
    }

    #[test]
    fn usage_includes_wall_and_cpu_time() {
        let before = Moment::now(&[], &[]).unwrap();
        let after = Moment::now(&[], &[]).unwrap();
        assert!(before.until(&after).wall >= 0.0);
    }
}
