//! The stage of the benchmark: nodes, proxies and servers that are there all the time.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Variant;
use super::machine::{Moment, Usage};
use super::rows::Measured;
use super::work::{SERVER_CPU, Service, Work};
use crate::net::{Family, Host, World};
use crate::process::Process;
use crate::proxy::{Mesh, companion};

/// How long a client may take beyond its sample.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes with proxies, and all servers in both variants.
pub(super) struct Stage<'world> {
    pub(super) mesh: Mesh<'world>,
    servers: Vec<Process>,
}

impl<'world> Stage<'world> {
    /// Starts proxies and servers.
    pub(super) fn set(world: &'world World, log: &str) -> Result<Self> {
        let log = log.to_owned();
        let mesh = Mesh::builder(world)
            .without(world.pod("a", 1))
            .without(world.pod("b", 1))
            .settings(move |settings| settings.log.filter.clone_from(&log))
            .start()?;
        let mut servers = Vec::new();
        for variant in [Variant::Plain, Variant::Mesh] {
            for service in Service::ALL {
                servers.push(serve(pod(world, "b", variant), service)?);
            }
        }
        Ok(Self { mesh, servers })
    }

    /// Where the client of a variant runs, and the server's address of a service.
    pub(super) fn ends(&self, variant: Variant, service: Service) -> (&'world Host, SocketAddr) {
        let world = self.mesh.world();
        (
            pod(world, "a", variant),
            pod(world, "b", variant).at(Family::V4, service.port()),
        )
    }

    /// Takes one sample.
    pub(super) fn measure(
        &self,
        work: &Work,
        variant: Variant,
        length: Duration,
    ) -> Result<(Measured, Usage)> {
        let (host, to) = self.ends(variant, work.service());
        let mut command = Command::new(companion("traffic")?);
        command
            .args(work.arguments(length))
            .arg("--to")
            .arg(to.to_string());
        let servers: Vec<_> = self.servers.iter().map(Process::pid).collect();
        let proxies = self.mesh.pids()?;
        let before = Moment::now(&servers, &proxies)?;
        let report = client(host, &mut command).with_context(|| format!("{work}, {variant:?}"))?;
        let after = Moment::now(&servers, &proxies)?;
        let usage = before.until(&after);
        let values = work.values(&report, &usage)?;
        Ok((
            Measured {
                work: *work,
                values,
            },
            usage,
        ))
    }
}

fn pod<'world>(world: &'world World, node: &str, variant: Variant) -> &'world Host {
    match variant {
        Variant::Mesh => world.pod(node, 0),
        Variant::Plain => world.pod(node, 1),
    }
}

fn serve(host: &Host, service: Service) -> Result<Process> {
    let mut command = Command::new(companion("traffic")?);
    command.arg("serve").arg(service.kind());
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
    let status = process.wait(PATIENCE)?;
    ensure!(
        status.success(),
        "the client on {} failed ({status})",
        host.name
    );
    serde_json::from_str(&text).with_context(|| format!("reading a client's report: {text}"))
}
