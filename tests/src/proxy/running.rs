//! One proxy: its files, its process, its admin pages and its log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::admin::{self, ADMIN, METRICS, Metrics};
use super::{Settings, binary};
use crate::cleanup;
use crate::net::Node;
use crate::process::{self, CpuSeconds, Pause, Process};

const READINESS: u16 = 15021;
/// The time limit for a proxy to become ready.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The search domains in the resolv.conf of a proxy with a resolver.
pub const SEARCH: &str = "istio-system.svc.cluster.local svc.cluster.local cluster.local";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The number of log lines that a failing test prints.
const LOG_LINES: usize = 40;

/// A proxy in a node's namespace. It is killed when this value is dropped; its pins are removed with the
/// world's directory.
pub struct Proxy<'world> {
    node: &'world Node,
    directory: PathBuf,
    environment: BTreeMap<String, String>,
    process: Option<Process>,
    /// The DNS resolver in the proxy's resolv.conf. `None` uses the resolv.conf of the machine.
    pub resolver: Option<IpAddr>,
    /// The cgroup of its processes. `None` uses that of the test.
    pub cgroup: Option<PathBuf>,
    /// The settings. [`Self::write_settings`] writes them to the file.
    pub settings: Settings,
    launched: Instant,
    ready_after: Duration,
}

impl<'world> Proxy<'world> {
    /// Prepares a proxy for a node without starting it. `directory` is for its files only.
    pub(super) fn prepare(
        node: &'world Node,
        directory: PathBuf,
        settings: Settings,
        environment: BTreeMap<String, String>,
    ) -> Result<Self> {
        let _guard = cleanup::creation_guard();
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self {
            node,
            directory,
            environment,
            process: None,
            resolver: None,
            cgroup: None,
            settings,
            launched: Instant::now(),
            ready_after: Duration::ZERO,
        })
    }

    /// Starts the proxy and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the error contains the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the proxy without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        // Ends the previous process first, so that two never run by mistake.
        self.process = None;
        self.process = Some(self.launch_another(&[])?);
        self.launched = Instant::now();
        Ok(())
    }

    /// Starts a standby process that takes over from the running one. From then on this value refers to
    /// the standby. Does not wait for it. Returns the previous process.
    ///
    /// # Errors
    /// When no process is running, or the standby cannot be started.
    pub fn launch_standby(&mut self) -> Result<Process> {
        let standby = self.launch_another(&["--take-over"])?;
        let previous = self.process.replace(standby);
        self.launched = Instant::now();
        previous.context("the proxy was not running")
    }

    /// Starts another process with the same settings. This value still refers to the running process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_another(&self, flags: &[&str]) -> Result<Process> {
        self.write_settings()?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("opening the proxy's log")?;
        let mut command = match &self.cgroup {
            Some(cgroup) => process::in_cgroup(cgroup, &binary::ztunnel()?),
            None => Command::new(binary::ztunnel()?),
        };
        command
            .arg("proxy")
            .arg("--config")
            .arg(self.settings_path())
            .args(flags)
            .envs(&self.environment)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the proxy's log")?)
            .stderr(log);
        let Some(resolver) = self.resolver else {
            return Process::start(&self.node.host, &mut command);
        };
        let file = self.directory.join("resolv.conf");
        let text = format!("search {SEARCH}\noptions ndots:5\nnameserver {resolver}\n");
        fs::write(&file, text).context("writing a resolv.conf")?;
        let files = [(file.as_path(), Path::new(RESOLV_CONF))];
        Process::start_with_files(&self.node.host, &mut command, &files)
    }

    /// Waits until a process that was launched as standby has taken over the ports and is ready.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_for_takeover(&mut self) -> Result<()> {
        while self.alive() {
            if self.listens_in(&self.node.host, READINESS)? {
                return self.wait_ready();
            }
            if self.launched.elapsed() > TIMEOUT {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!(
            "node {}: the new proxy did not take over; the log ends:\n{}",
            self.node.name(),
            self.log_tail()
        )
    }

    /// Replaces the process as a rolling upgrade does: a new process takes over, and when it is ready, the
    /// previous process gets SIGTERM. Waits until it has ended.
    ///
    /// # Errors
    /// When the new process does not become ready, or the previous one does not end in time.
    pub fn replace(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let mut previous = self.launch_standby()?;
        self.wait_for_takeover()?;
        previous.terminate(limit)
    }

    /// Waits until the readiness endpoint answers 200.
    ///
    /// # Errors
    /// When the proxy ends or is not ready in time; the error contains the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let started = self.launched;
        let process = self.process.as_mut().context("the proxy was not started")?;
        let address = local(READINESS);
        let outcome = self.node.host.enter(|| {
            loop {
                if matches!(admin::call("GET", address, "/healthz/ready"), Ok((200, _))) {
                    return Ok(());
                }
                if !process.alive() {
                    bail!("the proxy ended");
                }
                if started.elapsed() > TIMEOUT {
                    bail!("the proxy was not ready after {TIMEOUT:?}");
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        self.ready_after = started.elapsed();
        outcome.map_err(|error| {
            anyhow!(
                "node {}: {error:#}; its log ends:\n{}",
                self.node.name(),
                self.log_tail()
            )
        })
    }

    /// The duration of the last start, until the readiness endpoint answered 200.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the proxy is not running")?
            .kill()?;
        Ok(())
    }

    /// Suspends or resumes the process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self, pause: Pause) -> Result<()> {
        let process = self.process.as_ref().context("the proxy is not running")?;
        process.pause(pause)
    }

    /// Sends SIGTERM and waits until the process has ended.
    ///
    /// # Errors
    /// When it is not running, or does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.process
            .take()
            .context("the proxy is not running")?
            .terminate(limit)
    }

    /// Writes [`Self::settings`] to the file that the running proxy watches, by renaming a new file
    /// over it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_settings(&self) -> Result<()> {
        self.write_settings_text(&self.settings.to_yaml()?)
    }

    /// Writes any text as the settings file, by renaming.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_settings_text(&self, text: &str) -> Result<()> {
        let _guard = cleanup::creation_guard();
        let path = self.settings_path();
        let fresh = path.with_extension("yaml.new");
        fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// Whether the process is running.
    pub fn alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::alive)
    }

    /// The process id.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .process
            .as_ref()
            .context("the proxy is not running")?
            .pid())
    }

    /// The current metrics.
    ///
    /// # Errors
    /// When the endpoint does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.get(METRICS, "/metrics")?)
    }

    /// The content of `/config_dump`.
    ///
    /// # Errors
    /// When the endpoint does not answer with JSON.
    pub fn config_dump(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.get(ADMIN, "/config_dump")?).context("reading the config dump")
    }

    /// Sends a request to the admin endpoint. Returns status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        self.node
            .host
            .enter(|| admin::call(method, local(ADMIN), path))
            .with_context(|| format!("{method} {path} at node {}", self.node.name()))
    }

    /// Status and body of the readiness endpoint.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readiness(&self) -> Result<(u16, String)> {
        let request = || admin::call("GET", local(READINESS), "/healthz/ready");
        Ok(self.node.host.enter(request)?)
    }

    fn get(&self, port: u16, path: &str) -> Result<String> {
        let (status, body) = self
            .node
            .host
            .enter(|| admin::call("GET", local(port), path))
            .with_context(|| format!("requesting {path} from node {}", self.node.name()))?;
        if status != 200 {
            bail!(
                "node {} answered {path} with status {status}: {body}",
                self.node.name()
            );
        }
        Ok(body)
    }

    /// The CPU time that the process has used.
    ///
    /// # Errors
    /// When it is not running.
    pub fn cpu(&self) -> Result<CpuSeconds> {
        process::cpu_seconds(self.pid()?).context("reading the proxy's CPU time")
    }

    /// The resident memory, bytes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn rss(&self) -> Result<u64> {
        process::rss_bytes(self.pid()?).context("reading the proxy's memory")
    }

    /// The log of all starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until a line of the log contains `text`. Returns the line.
    ///
    /// # Errors
    /// When no line contains it in time.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            // A line without a line feed is being written.
            let log = self.log();
            let mut complete = log
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            if let Some(line) = complete.find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if started.elapsed() > limit {
                bail!(
                    "node {} did not log {text:?} within {limit:?}; its log ends:\n{}",
                    self.node.name(),
                    self.log_tail()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// The path of the settings file.
    #[must_use]
    pub fn settings_path(&self) -> PathBuf {
        self.directory.join("settings.yaml")
    }

    /// The directory of the proxy.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The node of the proxy.
    #[must_use]
    pub fn node(&self) -> &'world Node {
        self.node
    }

    /// Leaves the process running after the harness has ended.
    pub fn leak(mut self) {
        if let Some(process) = self.process.take() {
            process.leak();
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("proxy.log")
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- the log of node {} ends:\n{}",
                self.node.name(),
                self.log_tail()
            );
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}
