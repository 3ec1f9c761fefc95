//! The stage of the benchmark: nodes, proxies and servers that are there all the time.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::machine::{Moment, Usage};
use super::rows::Measured;
use super::work::{SERVER_CPU, Service, Work};
use super::{Variant, Way};
use crate::net::{Family, Host, World};
use crate::process::Process;
use crate::proxy::{Mesh, companion, workload_uid};
use crate::traffic::Manner;

/// How long a client may take beyond its sample.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes with proxies, and all servers of some ways in both variants.
pub(super) struct Stage<'world> {
    pub(super) mesh: Mesh<'world>,
    servers: Vec<Process>,
}

impl<'world> Stage<'world> {
    /// Starts proxies and servers.
    pub(super) fn set(world: &'world World, log: &str, ways: &[Way]) -> Result<Self> {
        let log = log.to_owned();
        let mut mesh = Mesh::builder(world);
        for way in Way::ALL {
            mesh = mesh.without(way.client(world, Variant::Plain));
            mesh = mesh.without(way.server(world, Variant::Plain));
        }
        let joined = [
            Way::Joined.client(world, Variant::Mesh),
            Way::Joined.server(world, Variant::Mesh),
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
        for way in ways {
            for variant in [Variant::Plain, Variant::Mesh] {
                let host = way.server(world, variant);
                // Outside of the mesh both variants have the same servers.
                if served.contains(&host.name.as_str()) {
                    continue;
                }
                served.push(&host.name);
                for service in Service::ALL {
                    servers.push(serve(host, service, way.manner())?);
                }
            }
        }
        Ok(Self { mesh, servers })
    }

    /// Where the client of a variant runs, and the server's address of a service.
    pub(super) fn ends(
        &self,
        way: Way,
        variant: Variant,
        service: Service,
    ) -> (&'world Host, SocketAddr) {
        let world = self.mesh.world();
        (
            way.client(world, variant),
            way.server(world, variant).at(Family::V4, service.port()),
        )
    }

    /// Takes one sample.
    pub(super) fn measure(
        &self,
        (way, work): (Way, Work),
        variant: Variant,
        length: Duration,
    ) -> Result<(Measured, Usage)> {
        let (host, to) = self.ends(way, variant, work.service());
        let mut command = Command::new(companion("traffic")?);
        command
            .args(work.arguments(length))
            .arg("--to")
            .arg(to.to_string())
            .args(manner(way.manner()));
        let servers: Vec<_> = self.servers.iter().map(Process::pid).collect();
        let proxies = self.mesh.pids()?;
        let before = Moment::now(&servers, &proxies)?;
        let report =
            client(host, &mut command).with_context(|| format!("{work}, {way:?}, {variant:?}"))?;
        let after = Moment::now(&servers, &proxies)?;
        let usage = before.until(&after);
        let values = work.values(&report, &usage)?;
        Ok((Measured { way, work, values }, usage))
    }
}

/// How the program `traffic` is told to wait.
fn manner(manner: Manner) -> [&'static str; 2] {
    let name = match manner {
        Manner::Blocking => "blocking",
        Manner::EventDriven => "event-driven",
    };
    ["--manner", name]
}

fn serve(host: &Host, service: Service, how: Manner) -> Result<Process> {
    let mut command = Command::new(companion("traffic")?);
    command.args(manner(how)).arg("serve").arg(service.kind());
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
