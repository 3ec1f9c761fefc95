//! The limits of the fast path: a policy terminates its open connections, and a pod that wants encryption
//! even inside a node has it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::links::Watch;
use super::page::Page;
use super::story::milliseconds;
use super::{MARKER, PATIENCE, PORT};
use crate::net::{Family, Host, World, remote_end};
use crate::proxy::{Mesh, Policy, identity};
use crate::traffic;

/// The policy, in the namespace `default`.
const NAME: &str = "nobody-calls-a-1";
/// How long until a changed settings file must count.
const RELOAD: Duration = Duration::from_secs(10);

/// A live connection from pod a-0 to pod a-1, which no proxy carries, and a policy against it.
pub(super) fn cut(page: &mut Page, world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let (client, server) = (world.pod("a", 0), world.pod("a", 1));
    let to = server.at(Family::V4, PORT);
    let mut stream = client
        .enter(|| TcpStream::connect_timeout(&to, PATIENCE))
        .context("pod a-0 calls pod a-1")?;
    stream.set_read_timeout(Some(RELOAD))?;
    let leads = client.enter(|| remote_end(&stream))?;
    page.claim(
        leads == Some(to),
        "a connection of pod a-0 to pod a-1 is open, and leads straight to it",
    );
    let changed = Instant::now();
    let rules = json!([[[{ "principals": [{ "exact": principal(client) }] }]]]);
    mesh.change(|settings| guard(settings, server, &rules))?;
    // Nobody says anything on it: the reader is woken by the reset alone.
    let error = stream.read(&mut [0; 1]).err();
    let after = changed.elapsed();
    page.claim(
        error.as_ref().is_some_and(is_reset),
        "a policy that pod a-1 refuses pod a-0 ends the open connection with a reset",
    );
    if let Some(error) = error {
        page.text(&format!(
            "pod a-0 sees: {error} ({} after the change)",
            milliseconds(after)
        ));
    }
    drop(stream.write(b"anyone there?"));
    mesh.change(|settings| unguard(settings, server))?;
    answered(client, to).map(drop)
}

fn guard(settings: &mut crate::proxy::Settings, server: &Host, rules: &serde_json::Value) {
    let policy = Policy::selector(NAME, "Deny", rules.clone());
    settings.policies.push(policy);
    for workload in &mut settings.workloads {
        if workload.name == server.name {
            let key = format!("default/{NAME}");
            workload.authorization_policies.push(key);
        }
    }
}

fn unguard(settings: &mut crate::proxy::Settings, server: &Host) {
    settings.policies.retain(|policy| policy.name != NAME);
    for workload in &mut settings.workloads {
        if workload.name == server.name {
            let key = format!("default/{NAME}");
            workload
                .authorization_policies
                .retain(|known| *known != key);
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

fn principal(pod: &Host) -> String {
    identity(pod).trim_start_matches("spiffe://").to_owned()
}

/// Calls until there is an answer.
fn answered(client: &Host, to: SocketAddr) -> Result<SocketAddr> {
    let started = Instant::now();
    loop {
        match client.enter(|| traffic::get(to, MARKER, PATIENCE)) {
            Ok(answer) => return Ok(answer.client_local),
            Err(error) => ensure!(started.elapsed() < RELOAD, "{to} does not answer: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The operator wants encryption inside the node as well.
pub(super) fn tunnelled(page: &mut Page, world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let (client, server) = (world.pod("a", 0), world.pod("a", 1));
    let to = server.at(Family::V4, PORT);
    mesh.change(|settings| {
        drop(
            settings
                .extra
                .insert("sameNode".to_owned(), json!("tunnel")),
        )
    })?;
    page.text("now both settings files say `sameNode: tunnel`");
    let started = Instant::now();
    let hidden = loop {
        let watch = Watch::begin(world)?;
        answered(client, to)?;
        let hidden = watch.finish()?.hidden_within();
        if hidden || started.elapsed() > RELOAD {
            break hidden;
        }
    };
    page.claim(
        hidden,
        "from then on pod a-0 calls pod a-1 through a tunnel: no packet inside node a has the marker",
    );
    Ok(())
}
