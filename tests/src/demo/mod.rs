//! The demo: a mesh in simulated nodes, with claims that are checked.
//!
//! Each claim is checked against independent evidence where there is one: source addresses in the
//! answer of the server, capture in the kernel's socket table, encryption in captured packets,
//! identities and paths in the logs of the proxies at both ends. The demo fails if a claim does not hold.

mod cleanup_check;
mod fast_path;
mod links;
mod log;
pub(crate) mod page;
mod policy;
mod requests;
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
use cleanup_check::Leftovers;
pub use cleanup_check::clean;
use links::{LinkCapture, LinkTraffic};
use page::Page;
use requests::{RequestResult, milliseconds};

/// The number of steps of the demo.
const STEPS: usize = 10;
/// The application's port.
const PORT: u16 = 8080;
/// The services' port, which maps to [`PORT`].
const SERVICE_PORT: u16 = 80;
/// The time limit of a request; far more than a busy machine needs.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The marker that the sniffers search for; part of every request and every answer.
const MARKER: &str = "marker-that-must-be-encrypted";

/// What happens to the nodes at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// Everything is removed.
    CleanUp,
    /// Nodes, proxies and servers stay, and commands to try are printed.
    Keep,
}

/// Runs the demo and prints it to standard output.
///
/// # Errors
/// When nodes or proxies cannot be started, or a claim does not hold.
pub fn run(on_exit: OnExit) -> Result<()> {
    cleanup::on_signal();
    let mut page = Page::new(STEPS);
    page.step("Two nodes with two pods each, and a host outside the mesh, in network namespaces");
    let world = World::two_nodes()?;
    page.text(&map(&world));
    let servers = start_servers(&world)?;
    page.step(
        "The mesh is off: requests from pod a-0 to pods b-0 and a-1, and a capture of the links",
    );
    let off = without_mesh(&world)?;
    page.claim(off.readable(), "the captured packets contain the requests");
    page.step("The certificate authority of the mesh, and one `ztunnel proxy` on each node");
    let mut mesh = start_mesh(&mut page, &world)?;
    let outcome = run_with_mesh(&mut page, &world, &mut mesh, &off);
    if (outcome.is_err() || !page.good()) && !cleanup::interrupted() {
        for proxy in mesh.proxies() {
            eprintln!(
                "--- the log of node {} ends:\n{}",
                proxy.node().name(),
                proxy.log_tail()
            );
        }
    }
    outcome?;
    if on_exit == OnExit::Keep && page.good() {
        page.step("Everything stays: commands to try");
        cleanup_check::print_commands(&page, &world, &companion("traffic")?);
        mesh.leak();
        servers.into_iter().for_each(Process::leak);
        world.leak();
        return page.close();
    }
    page.step("Everything is removed");
    let pids = servers.iter().map(Process::pid).chain(mesh.pids()?);
    let leftovers = Leftovers::of(&world, pids.collect());
    drop((mesh, servers));
    drop(world);
    leftovers.check(&mut page);
    page.close()
}

/// The steps with the mesh on.
fn run_with_mesh(
    page: &mut Page,
    world: &World,
    mesh: &mut Mesh<'_>,
    off: &LinkTraffic,
) -> Result<()> {
    page.step("The mesh is on: HTTP requests between pods, each on a new connection");
    let capture = LinkCapture::start(world)?;
    let mut results: Vec<RequestResult<'_>> = Vec::new();
    for request in requests::requests(world) {
        results.push(requests::send(request, mesh)?);
    }
    let on = capture.finish()?;
    let tunnels = tunnels::collect(mesh);
    requests::show(page, &results, &tunnels);
    requests::check(page, &results);
    page.step("The tunnels of these requests, as logged by the proxies at both ends");
    tunnels::show(page, &tunnels);
    tunnels::check(page, world, &tunnels, &on.handshakes());
    page.step("The traffic that was captured on the links");
    links::show(page, off, &on);
    page.step("A policy denies connections from pod a-1 to pod b-1");
    policy::show(page, world, mesh)?;
    page.step("A policy terminates an open connection inside node a, which no proxy carries");
    fast_path::terminate(page, world, mesh)?;
    page.step("Encryption inside a node: sameNode: tunnel");
    fast_path::tunnel_inside_node(page, world, mesh)
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

/// Starts the servers as processes, so that they stay with `OnExit::Keep`.
fn start_servers(world: &World) -> Result<Vec<Process>> {
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
    while host.enter(|| traffic::get(to, "hello", TIMEOUT)).is_err() {
        ensure!(
            started.elapsed() < TIMEOUT,
            "the server on {} does not answer",
            host.name
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn without_mesh(world: &World) -> Result<LinkTraffic> {
    let capture = LinkCapture::start(world)?;
    for server in [world.pod("b", 0), world.pod("a", 1)] {
        let to = server.at(Family::V4, PORT);
        world
            .pod("a", 0)
            .enter(|| traffic::get(to, MARKER, TIMEOUT))
            .with_context(|| {
                format!(
                    "requesting from pod a-0 to pod {} without the mesh",
                    server.name
                )
            })?;
    }
    capture.finish()
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
        "both proxies use one certificate authority, whose key only root can read (mode 0600)",
    );
    Ok(mesh)
}
