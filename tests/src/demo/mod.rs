//! The demonstration: the mesh at work, told as a story with its evidence.
//!
//! Every claim comes from a witness that is not the claim's author where there is one: source
//! addresses from the server's answer, encryption and TLS version from a packet socket on the
//! link between the nodes; identities and lanes from the proxies' access logs.

mod log;
mod story;
mod text;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::net::{Family, Host, World};
use crate::process::Process;
use crate::proxy::{Mesh, Policy, companion, identity};
use crate::sniff::{SETTLE, Seen, Sniffer};
use crate::traffic;
use story::{Request, Story};

/// The application's port.
const PORT: u16 = 8080;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many steps the demonstration has.
const STEPS: usize = 6;
/// The policy that refuses one caller.
const POLICY: &str = "only-a-0";

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
/// When nodes or proxies cannot be started, or the mesh does not do what it should.
pub fn run(afterwards: Afterwards) -> Result<()> {
    let started = Instant::now();
    step(1, "two nodes with two pods each, in network namespaces");
    let world = World::two_nodes()?;
    let mut servers = Vec::new();
    for host in world
        .nodes()
        .iter()
        .flat_map(|node| &node.pods)
        .chain([world.outside()])
    {
        servers.push(serve(host)?);
    }

    step(2, "the mesh is off: a request from pod a-0 to pod b-0");
    without_mesh(&world)?;
    step(
        3,
        "the mesh's certificate authority, and a proxy on each node",
    );
    let mut mesh = start_mesh(&world)?;
    step(4, "the mesh is on: requests from pod to pod");
    let seen = with_mesh(&world, &mut mesh)?;
    step(5, "what crossed the link between the nodes meanwhile");
    encrypted(&seen)?;
    step(6, "a policy: pod b-1 admits pod a-0 and nobody else");
    refusal(&world, &mut mesh)?;
    println!(
        "\nall of this took {:.1} s",
        started.elapsed().as_secs_f64()
    );
    match afterwards {
        Afterwards::CleanUp => {
            drop(mesh);
            drop(servers);
            drop(world);
            println!("everything is removed again");
        }
        Afterwards::Keep => {
            println!("{}", text::what_to_try(&world, &companion("traffic")?));
            mesh.leak();
            servers.into_iter().for_each(Process::leak);
            world.leak();
        }
    }
    Ok(())
}

fn with_mesh(world: &World, mesh: &mut Mesh<'_>) -> Result<Seen> {
    let sniffer = Sniffer::between(world.node("a"), "b", story::MARKER.as_bytes())?;
    let stories = requests(world, mesh)?;
    thread::sleep(SETTLE);
    let seen = sniffer.finish()?;
    println!("\n{}", story::table(&stories, &seen));
    Ok(seen)
}

fn encrypted(seen: &Seen) -> Result<()> {
    say(&format!(
        "{} packets, {} bytes, {} TLS handshakes; {} packets show a marker in the clear",
        seen.packets,
        seen.bytes,
        seen.handshakes.len(),
        seen.hits
    ));
    ensure!(seen.hits == 0, "the payload crossed the link in the clear");
    ensure!(!seen.handshakes.is_empty(), "no tunnel crossed the link");
    Ok(())
}

fn step(number: usize, what: &str) {
    println!("\n[{number}/{STEPS}] {what}");
}

fn say(what: &str) {
    println!("      {what}");
}

/// A server is a process of its own, so that it lives on when everything is kept.
fn serve(host: &Host) -> Result<Process> {
    let mut command = Command::new(companion("traffic")?);
    command
        .args(["serve", "http", "--listen"])
        .arg(format!("[::]:{PORT}"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::start(host, &mut command)?;
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
    Ok(process)
}

fn without_mesh(world: &World) -> Result<()> {
    let sniffer = Sniffer::between(world.node("a"), "b", story::MARKER.as_bytes())?;
    let to = world.pod("b", 0).at(Family::V4, PORT);
    world
        .pod("a", 0)
        .enter(|| traffic::get(to, story::MARKER, PATIENCE))
        .context("a request without the mesh")?;
    thread::sleep(SETTLE);
    let seen = sniffer.finish()?;
    ensure!(
        seen.hits > 0,
        "the sniffer did not see a request that nobody encrypted"
    );
    say(&format!(
        "on the link between the nodes: {} packets, {} of them show the request's marker in the clear",
        seen.packets, seen.hits
    ));
    Ok(())
}

fn start_mesh(world: &World) -> Result<Mesh<'_>> {
    let admitted = identity(world.pod("a", 0));
    let principal = admitted.trim_start_matches("spiffe://").to_owned();
    let guarded = world.pod("b", 1).name.clone();
    let mut mesh = Mesh::builder(world)
        .settings(move |settings| {
            "json".clone_into(&mut settings.log.format);
            settings.policies.push(Policy::selector(
                POLICY,
                "Allow",
                json!([[[{ "principals": [{ "exact": principal }] }]]]),
            ));
            for workload in &mut settings.workloads {
                if workload.name == guarded {
                    workload
                        .authorization_policies
                        .push(format!("default/{POLICY}"));
                }
            }
        })
        .start()?;
    for proxy in mesh.proxies() {
        let milliseconds = proxy.ready_after().as_secs_f64() * 1e3;
        say(&format!(
            "node {}: ready after {milliseconds:.0} ms",
            proxy.node().name()
        ));
    }
    Ok(mesh)
}

fn requests(world: &World, mesh: &mut Mesh<'_>) -> Result<Vec<Story>> {
    let mut stories = Vec::new();
    for request in story::requests(world) {
        stories.push(tell(&request, mesh)?);
    }
    Ok(stories)
}

fn tell(request: &Request<'_>, mesh: &mut Mesh<'_>) -> Result<Story> {
    let ask = || {
        request
            .client
            .enter(|| traffic::get(request.to, story::MARKER, PATIENCE))
            .with_context(|| {
                format!(
                    "{} called {} ({})",
                    request.client.name, request.called, request.to
                )
            })
    };
    let first = ask()?;
    let again = ask()?;
    let node = request.client.name.split('-').next().unwrap_or_default();
    let line = log::connection(mesh.proxy(node), again.client_local);
    Ok(Story::new(request, &first, &again, line))
}

fn refusal(world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let to = world.pod("b", 1).at(Family::V4, PORT);
    let ask = |caller: &Host| caller.enter(|| traffic::get(to, story::MARKER, PATIENCE));
    let admitted = ask(world.pod("a", 0)).context("pod a-0 is admitted by the policy")?;
    say(&format!(
        "pod a-0 asks and is answered with status {}",
        admitted.status
    ));
    let refused = ask(world.pod("a", 1));
    let Err(error) = refused else {
        anyhow::bail!("pod a-1 was answered although the policy admits only pod a-0");
    };
    say(&format!("pod a-1 asks and is refused; it sees: {error}"));
    if let Some(reason) = log::refusal(mesh.proxy("b")) {
        say(&format!("node b's log: {reason}"));
    }
    Ok(())
}
