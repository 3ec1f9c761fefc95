//! The memory of the proxies, without and with idle connections, and their time to ready.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::rows::Results;
use super::setup::Setup;
use super::work::Service;
use super::{MeasuredPath, Plan, Variant};
use crate::process::Process;
use crate::proxy::companion;

/// The pause before memory is measured.
const SETTLE: Duration = Duration::from_millis(700);

/// Measures the rows without a plain variant.
pub(super) fn measure(setup: &mut Setup<'_>, plan: &Plan, results: &mut Results) -> Result<()> {
    for start in 0..plan.starts {
        eprintln!("start {} of {}", start + 1, plan.starts);
        for (row, pins) in [
            ("ready_takeover_ms", Pins::Kept),
            ("ready_ms", Pins::Removed),
        ] {
            for value in restart(setup, pins)? {
                results.push(row, value);
            }
        }
        thread::sleep(SETTLE);
        results.push("rss_idle_mb", largest(setup)?);
    }
    let idle = largest(setup)?;
    let mut holders = Vec::new();
    let mut open = 0;
    for count in &plan.idle {
        eprintln!("{count} idle connections");
        holders.push(hold(setup, count - open)?);
        open = *count;
        thread::sleep(SETTLE);
        let now = largest(setup)?;
        results.push(&format!("rss_{count}_idle_mb"), now);
        if *count == 1000 {
            results.push("rss_per_1000_idle_mb", now - idle);
        }
    }
    Ok(())
}

/// The pins that a restarted proxy finds.
#[derive(Clone, Copy)]
enum Pins {
    /// The programs of the previous process, which it takes over.
    Kept,
    /// No pins: it loads its own programs.
    Removed,
}

/// Kills the proxies and starts them one after another. Returns the milliseconds to ready of each.
fn restart(setup: &mut Setup<'_>, pins: Pins) -> Result<Vec<f64>> {
    for proxy in setup.mesh.proxies() {
        proxy.kill()?;
        if matches!(pins, Pins::Removed) {
            crate::cleanup::remove_directory(&proxy.settings.capture.bpf_directory);
        }
    }
    let mut times = Vec::new();
    for proxy in setup.mesh.proxies() {
        proxy.start()?;
        times.push(proxy.ready_after().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// The resident memory of the proxy that uses most, MB (10^6 bytes).
fn largest(setup: &mut Setup<'_>) -> Result<f64> {
    let mut largest = 0.0f64;
    for proxy in setup.mesh.proxies() {
        #[allow(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
        let megabytes = proxy.rss()? as f64 / 1e6;
        largest = largest.max(megabytes);
    }
    Ok(largest)
}

/// Starts a process that opens idle connections and keeps them open.
fn hold(setup: &Setup<'_>, count: usize) -> Result<Process> {
    let (host, to) = setup.ends(MeasuredPath::Tunnel, Variant::Mesh, Service::Http);
    let mut command = Command::new(companion("traffic")?);
    command.arg("idle").arg("--to").arg(to.to_string());
    command.arg("--connections").arg(count.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::start(host, &mut command)?;
    let output = process
        .child()
        .stdout
        .take()
        .context("a client without standard output")?;
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .context("waiting for idle connections")?;
    ensure!(
        line.contains("open"),
        "opening {count} idle connections failed"
    );
    Ok(process)
}
