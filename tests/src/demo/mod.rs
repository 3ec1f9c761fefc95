//! The demonstration: the mesh at work, told as a story with its evidence.
//!
//! Every claim is checked, and comes from a witness that is not the claim's author where there
//! is one: source addresses from the server's answer, capture from the kernel's own table of
//! sockets, encryption from packet sockets on the links; identities and lanes from the proxies'
//! logs, those of a tunnel from both of its ends. A claim that does not hold is the outcome.

mod direct;
mod ending;
mod links;
mod log;
mod page;
mod policy;
mod story;
mod tunnels;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cleanup;
use crate::net::{Family, Host, World};
use crate::process::Process;
use crate::proxy::{Mesh, companion};
use crate::traffic;
use ending::Traces;
pub use ending::clean;
use links::{Crossed, Watch};
use page::Page;
use story::{Story, milliseconds};

/// The application's port.
const PORT: u16 = 8080;
/// The services' port, which leads to [`PORT`].
const SERVICE_PORT: u16 = 80;
/// How long a request may take; more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(10);
/// What to look for on the links; part of every request and of every answer.
const MARKER: &str = "marker-that-must-not-cross-in-the-clear";

/// What to leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// Nothing.
    CleanUp,
    /// Nodes, proxies and servers, and a text that says what to try.
    Keep,
}

/// Runs the demonstration; the story goes to standard output.
///
/// # Errors
/// When nodes or proxies cannot be started, or a claim does not hold.
pub fn run(afterwards: Afterwards) -> Result<()> {
    cleanup::on_signal();
    let mut page = Page::new();
    page.step("Two nodes with two pods each, and a host outside the mesh, in network namespaces");
    let world = World::two_nodes()?;
    page.text(&map(&world));
    let servers = serve_everywhere(&world)?;
    page.step("The mesh is off: pod a-0 calls pods b-0 and a-1, packet sockets read the links");
    let off = without_mesh(&world)?;
    page.claim(off.readable(), "a reader of the links sees the requests");
    page.step("The mesh's certificate authority, and one `ztunnel proxy` on each node");
    let mut mesh = start_mesh(&mut page, &world)?;
    let told = tell(&mut page, &world, &mut mesh, &off);
    if (told.is_err() || !page.good()) && !cleanup::interrupted() {
        for proxy in mesh.proxies() {
            eprintln!(
                "--- the log of node {} ends:\n{}",
                proxy.node().name(),
                proxy.log_tail()
            );
        }
    }
    told?;
    if afterwards == Afterwards::Keep && page.good() {
        page.step("Everything stays: what to try");
        ending::what_to_try(&page, &world, &companion("traffic")?);
        mesh.leak();
        servers.into_iter().for_each(Process::leak);
        world.leak();
        return page.close();
    }
    page.step("Everything is removed again");
    let pids = servers.iter().map(Process::pid).chain(mesh.pids()?);
    let traces = Traces::of(&world, pids.collect());
    drop((mesh, servers));
    drop(world);
    traces.check(&mut page);
    page.close()
}

/// The steps with the mesh on.
fn tell(page: &mut Page, world: &World, mesh: &mut Mesh<'_>, off: &Crossed) -> Result<()> {
    page.step("The mesh is on: HTTP from pod to pod, each request on a connection of its own");
    let watch = Watch::begin(world)?;
    let mut stories: Vec<Story<'_>> = Vec::new();
    for request in story::requests(world) {
        stories.push(story::tell(request, mesh)?);
    }
    let on = watch.finish()?;
    let tunnels = tunnels::gather(mesh);
    story::show(page, &stories, &tunnels);
    story::check(page, &stories);
    page.step("The tunnels that carried them, as the proxies at both ends log them");
    tunnels::show(page, &tunnels);
    tunnels::check(page, world, &tunnels, &on.handshakes());
    page.step("What crossed the links, as the packet sockets read it");
    links::show(page, off, &on);
    page.step("A policy: pod b-1 refuses pod a-1");
    policy::show(page, world, mesh)?;
    page.step("The same inside node a: a live connection that no proxy carries, and a policy");
    direct::cut(page, world, mesh)?;
    page.step("Encryption inside a node as well: sameNode: tunnel");
    direct::tunnelled(page, world, mesh)
}

fn map(world: &World) -> String {
    let pod = |node: &str, index: usize| {
        let pod = world.pod(node, index);
        format!("pod {}  {}  {}", pod.name, pod.v4, pod.v6)
    };
    let outside = world.outside();
    format!(
        "{:32}--+                      +--  {}
{:32}  +-- node a == node b --+
{:32}--+          |           +--  {}
{:43}|
{:30}outside  {}  {}",
        pod("a", 0),
        pod("b", 0),
        "",
        pod("a", 1),
        pod("b", 1),
        "",
        "",
        outside.v4,
        outside.v6,
    )
}

/// Servers are processes of their own, so that they live on when everything is kept.
fn serve_everywhere(world: &World) -> Result<Vec<Process>> {
    let hosts = || {
        let pods = world.nodes().iter().flat_map(|node| &node.pods);
        pods.chain([world.outside()])
    };
    let servers = hosts().map(serve).collect::<Result<_>>()?;
    for host in hosts() {
        wait_for(host)?;
    }
    Ok(servers)
}

fn serve(host: &Host) -> Result<Process> {
    let mut command = Command::new(companion("traffic")?);
    command
        .args(["serve", "http", "--listen"])
        .arg(format!("[::]:{PORT}"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Process::start(host, &mut command)
}

fn wait_for(host: &Host) -> Result<()> {
    let to = host.at(Family::V4, PORT);
    let started = Instant::now();
    while host.enter(|| traffic::get(to, "hello", PATIENCE)).is_err() {
        ensure!(
            started.elapsed() < PATIENCE,
            "the server on {} does not answer",
            host.name
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn without_mesh(world: &World) -> Result<Crossed> {
    let watch = Watch::begin(world)?;
    for server in [world.pod("b", 0), world.pod("a", 1)] {
        let to = server.at(Family::V4, PORT);
        world
            .pod("a", 0)
            .enter(|| traffic::get(to, MARKER, PATIENCE))
            .with_context(|| format!("pod a-0 calls pod {} without the mesh", server.name))?;
    }
    watch.finish()
}

fn start_mesh<'world>(page: &mut Page, world: &'world World) -> Result<Mesh<'world>> {
    let mut mesh = Mesh::builder(world)
        .settings(|settings| {
            log::FILTER.clone_into(&mut settings.log.filter);
            "json".clone_into(&mut settings.log.format);
        })
        .start()?;
    for proxy in mesh.proxies() {
        page.text(&format!(
            "node {}  ready after {:8}  settings {}",
            proxy.node().name(),
            milliseconds(proxy.ready_after()),
            proxy.settings_path().display()
        ));
    }
    let directory = world.directory().join("ca");
    let mut secrets = fs::read_dir(&directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .collect::<std::io::Result<Vec<_>>>()?;
    secrets.retain(|entry| entry.file_name().to_string_lossy().contains("key"));
    let modes: Vec<_> = secrets
        .iter()
        .map(|entry| {
            entry
                .metadata()
                .map(|metadata| metadata.permissions().mode() & 0o777)
        })
        .collect::<std::io::Result<_>>()?;
    page.claim(
        modes == [0o600],
        "both proxies share one certificate authority, whose key only root can read (0600)",
    );
    Ok(mesh)
}
