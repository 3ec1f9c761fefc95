//! The setup of the benchmark: nodes, proxies and servers that run during all samples.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::machine::{Moment, Usage};
use super::rows::Measured;
use super::work::{SERVER_CPU, Service, Work};
use super::{MeasuredPath, Variant};
use crate::net::{Family, Host, World};
use crate::process::Process;
use crate::proxy::{Mesh, companion, workload_uid};
use crate::traffic::IoMode;

/// The time that a client may take after its sample.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Nodes with proxies, and the servers of the measured paths in both variants.
pub(super) struct Setup<'world> {
    pub(super) mesh: Mesh<'world>,
    servers: Vec<Process>,
}

impl<'world> Setup<'world> {
    /// Starts proxies and servers.
    pub(super) fn new(world: &'world World, log: &str, paths: &[MeasuredPath]) -> Result<Self> {
        let log = log.to_owned();
        let mut mesh = Mesh::builder(world);
        for path in MeasuredPath::ALL {
            mesh = mesh.without(path.client(world, Variant::Plain));
            mesh = mesh.without(path.server(world, Variant::Plain));
        }
        let joined = [
            MeasuredPath::Joined.client(world, Variant::Mesh),
            MeasuredPath::Joined.server(world, Variant::Mesh),
        ];
        let on = |pod| json!({ "workload": workload_uid(pod), "acceleration": "on" });
        let overrides = json!(joined.map(on));
        let mesh = mesh
            .settings(move |settings| {
                settings.log.filter.clone_from(&log);
                let mut set = |key: &str, value| settings.extra.insert(key.to_owned(), value);
                drop(set("acceleration", json!("off")));
                drop(set("overrides", overrides.clone()));
            })
            .start()?;
        let mut servers = Vec::new();
        let mut served: Vec<&str> = Vec::new();
        for path in paths {
            for variant in [Variant::Plain, Variant::Mesh] {
                let host = path.server(world, variant);
                // Outside the mesh both variants use the same servers.
                if served.contains(&host.name.as_str()) {
                    continue;
                }
                served.push(&host.name);
                for service in Service::ALL {
                    servers.push(serve(host, service, path.io_mode())?);
                }
            }
        }
        Ok(Self { mesh, servers })
    }

    /// The host of the client of a variant, and the server's address of a service.
    pub(super) fn ends(
        &self,
        path: MeasuredPath,
        variant: Variant,
        service: Service,
    ) -> (&'world Host, SocketAddr) {
        let world = self.mesh.world();
        (
            path.client(world, variant),
            path.server(world, variant).at(Family::V4, service.port()),
        )
    }

    /// Takes one sample.
    pub(super) fn measure(
        &self,
        (path, work): (MeasuredPath, Work),
        variant: Variant,
        length: Duration,
    ) -> Result<(Measured, Usage)> {
        let (host, to) = self.ends(path, variant, work.service());
        let mut command = Command::new(companion("traffic")?);
        command
            .args(work.arguments(length))
            .arg("--to")
            .arg(to.to_string())
            .args(io_mode(path.io_mode()));
        let servers: Vec<_> = self.servers.iter().map(Process::pid).collect();
        let proxies = self.mesh.pids()?;
        let before = Moment::now(&servers, &proxies)?;
        let report =
            client(host, &mut command).with_context(|| format!("{work}, {path:?}, {variant:?}"))?;
        let after = Moment::now(&servers, &proxies)?;
        let usage = before.until(&after);
        let values = work.values(&report, &usage)?;
        Ok((Measured { path, work, values }, usage))
    }
}

/// The argument of the program `traffic` for an I/O mode.
fn io_mode(io_mode: IoMode) -> [&'static str; 2] {
    let name = match io_mode {
        IoMode::Blocking => "blocking",
        IoMode::EventDriven => "event-driven",
    };
    ["--io-mode", name]
}

fn serve(host: &Host, service: Service, how: IoMode) -> Result<Process> {
    let mut command = Command::new(companion("traffic")?);
    command.args(io_mode(how)).arg("serve").arg(service.kind());
    command
        .arg("--listen")
        .arg(format!("[::]:{}", service.port()));
    if service == Service::PinnedEcho {
        command.arg("--cpu").arg(SERVER_CPU.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start(host, &mut command)?;
    let output = process
        .child()
        .stdout
        .take()
        .context("a server without standard output")?;
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .context("waiting for a server")?;
    ensure!(
        line.contains("port"),
        "the {} server on {} did not start",
        service.kind(),
        host.name
    );
    Ok(process)
}

fn client(host: &Host, command: &mut Command) -> Result<Value> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start(host, command)?;
    let mut output = process
        .child()
        .stdout
        .take()
        .context("a client without standard output")?;
    let mut text = String::new();
    output
        .read_to_string(&mut text)
        .context("reading a client's report")?;
    let status = process.wait(TIMEOUT)?;
    ensure!(
        status.success(),
        "the client on {} failed ({status})",
        host.name
    );
    serde_json::from_str(&text).with_context(|| format!("reading a client's report: {text}"))
}
