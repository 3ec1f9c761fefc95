//! One proxy: its files, its process, and what it says about itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::admin::{self, Metrics};
use super::{Settings, binary};
use crate::cleanup;
use crate::net::Node;
use crate::process::{self, CpuSeconds, Pause, Process};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// How long a proxy may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// The search domains of a container that has a resolver of its own.
pub const SEARCH: &str = "istio-system.svc.cluster.local svc.cluster.local cluster.local";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How much of the log a failing test shows.
const LOG_LINES: usize = 40;

/// A proxy in a node's namespace; killed when dropped. Its pins go away with the world's
/// directory.
pub struct Proxy<'world> {
    node: &'world Node,
    directory: PathBuf,
    environment: BTreeMap<String, String>,
    process: Option<Process>,
    /// Whom its container's resolv.conf names, if it has one of its own, with the search domains of
    /// [`SEARCH`].
    pub resolver: Option<IpAddr>,
    /// What its settings file says, or will say after [`Self::write_settings`].
    pub settings: Settings,
    launched: Instant,
    ready_after: Duration,
}

impl<'world> Proxy<'world> {
    /// Prepares a proxy for a node; nothing runs yet. `directory` is for its files alone.
    pub(super) fn prepare(
        node: &'world Node,
        directory: PathBuf,
        settings: Settings,
        environment: BTreeMap<String, String>,
    ) -> Result<Self> {
        let _making = cleanup::making();
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            node,
            directory,
            environment,
            process: None,
            resolver: None,
            settings,
            launched: Instant::now(),
            ready_after: Duration::ZERO,
        })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the error holds the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        // Never two by mistake: the one before ends first.
        self.process = None;
        self.process = Some(self.launch_second(&[])?);
        self.launched = Instant::now();
        Ok(())
    }

    /// Starts a process beside the running one, to take over from it; this is then the one that is
    /// meant here. Does not wait for it. Returns the one before.
    ///
    /// # Errors
    /// When none runs, or the new one cannot be started.
    pub fn launch_heir(&mut self) -> Result<Process> {
        let heir = self.launch_second(&["--take-over"])?;
        let before = self.process.replace(heir);
        self.launched = Instant::now();
        before.context("the proxy did not run")
    }

    /// Starts a process beside the running one, which stays the one that is meant here.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_second(&self, flags: &[&str]) -> Result<Process> {
        self.write_settings()?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("opening the proxy's log")?;
        let mut command = Command::new(binary::ztunnel()?);
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
        Process::start_seeing(&self.node.host, &mut command, &files)
    }

    /// Waits until a process that was launched as an heir has the ports of the one before, and is
    /// ready.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_taken_over(&mut self) -> Result<()> {
        while self.alive() {
            if self.listens_in(&self.node.host, READINESS)? {
                return self.wait_ready();
            }
            if self.launched.elapsed() > PATIENCE {
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

    /// Replaces its process as a rolling upgrade does: a new one is started beside it and takes
    /// over; when it is ready, the one before is asked to end. Waits for its end.
    ///
    /// # Errors
    /// When the new one does not become ready, or the old one does not end in time.
    pub fn replace(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let mut before = self.launch_heir()?;
        self.wait_taken_over()?;
        before.terminate(limit)
    }

    /// Waits until the readiness endpoint says yes.
    ///
    /// # Errors
    /// When the proxy ends or is not ready in time; the error holds the end of its log.
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
                if started.elapsed() > PATIENCE {
                    bail!("the proxy was not ready after {PATIENCE:?}");
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

    /// How long the last start took, from the process's start to the readiness endpoint's yes.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the proxy does not run")?
            .kill()?;
        Ok(())
    }

    /// Stops it from running, or lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, pause: Pause) -> Result<()> {
        let process = self.process.as_ref().context("the proxy does not run")?;
        process.pause(pause)
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.process
            .take()
            .context("the proxy does not run")?
            .terminate(limit)
    }

    /// Writes changed [`Self::settings`] to the file that the running proxy watches, by
    /// renaming a new file over it.
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
        let _making = cleanup::making();
        let path = self.settings_path();
        let fresh = path.with_extension("yaml.new");
        fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// Whether its process runs.
    pub fn alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::alive)
    }

    /// Its pid.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .process
            .as_ref()
            .context("the proxy does not run")?
            .pid())
    }

    /// Its metrics as they are now.
    ///
    /// # Errors
    /// When the endpoint does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.get(METRICS, "/metrics")?)
    }

    /// Its `/config_dump`.
    ///
    /// # Errors
    /// When the endpoint does not answer with JSON.
    pub fn config_dump(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.get(ADMIN, "/config_dump")?).context("reading the config dump")
    }

    /// Calls its admin endpoint; returns status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        self.node
            .host
            .enter(|| admin::call(method, local(ADMIN), path))
            .with_context(|| format!("{method} {path} at node {}", self.node.name()))
    }

    /// What its readiness endpoint says: status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readiness(&self) -> Result<(u16, String)> {
        let ask = || admin::call("GET", local(READINESS), "/healthz/ready");
        Ok(self.node.host.enter(ask)?)
    }

    fn get(&self, port: u16, path: &str) -> Result<String> {
        let (status, body) = self
            .node
            .host
            .enter(|| admin::call("GET", local(port), path))
            .with_context(|| format!("asking node {} for {path}", self.node.name()))?;
        if status != 200 {
            bail!(
                "node {} answered {path} with status {status}: {body}",
                self.node.name()
            );
        }
        Ok(body)
    }

    /// CPU time that its process has used.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cpu(&self) -> Result<CpuSeconds> {
        process::cpu_seconds(self.pid()?).context("reading the proxy's CPU time")
    }

    /// Its resident memory, bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn rss(&self) -> Result<u64> {
        process::rss_bytes(self.pid()?).context("reading the proxy's memory")
    }

    /// All that it has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until a line of the log holds `text`; returns the line.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            // A line without its end is just being written.
            let log = self.log();
            let mut whole = log
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            if let Some(line) = whole.find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if started.elapsed() > limit {
                bail!(
                    "node {} did not log {text:?} in {limit:?}; its log ends:\n{}",
                    self.node.name(),
                    self.log_tail()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Its settings file.
    #[must_use]
    pub fn settings_path(&self) -> PathBuf {
        self.directory.join("settings.yaml")
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &'world Node {
        self.node
    }

    /// Lets it run on after this process ended.
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
