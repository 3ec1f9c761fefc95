//! The limits of the fast path: a policy terminates open connections, and `sameNode: tunnel` encrypts
//! connections inside a node.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::links::LinkCapture;
use super::page::Page;
use super::requests::milliseconds;
use super::{MARKER, PORT, TIMEOUT};
use crate::net::{Family, FarEnd, Host, World, far_end};
use crate::proxy::{Mesh, Policy, identity};
use crate::traffic;

/// The name of the policy in the namespace `default`.
const NAME: &str = "deny-a-0";
/// The time limit for changed settings to take effect.
const RELOAD: Duration = Duration::from_secs(10);

/// A policy terminates an open connection from pod a-0 to pod a-1, which no proxy carries.
pub(super) fn terminate(page: &mut Page, world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let (client, server) = (world.pod("a", 0), world.pod("a", 1));
    let to = server.at(Family::V4, PORT);
    let mut stream = client
        .enter(|| TcpStream::connect_timeout(&to, TIMEOUT))
        .context("connecting from pod a-0 to pod a-1")?;
    stream.set_read_timeout(Some(RELOAD))?;
    let far_end = client.enter(|| far_end(&stream))?;
    page.claim(
        far_end == Some(FarEnd::Elsewhere(to)),
        "an open connection leads directly from pod a-0 to pod a-1",
    );
    let changed = Instant::now();
    let rules = json!([[[{ "principals": [{ "exact": principal(client) }] }]]]);
    mesh.change(|settings| add_policy(settings, server, &rules))?;
    // No data is sent: only the reset ends the read.
    let error = stream.read(&mut [0; 1]).err();
    let after = changed.elapsed();
    page.claim(
        error.as_ref().is_some_and(is_reset),
        "after a policy that denies it, the open connection is reset",
    );
    if let Some(error) = error {
        page.text(&format!(
            "pod a-0 sees: {error} ({} after the change)",
            milliseconds(after)
        ));
    }
    drop(stream.write(b"data"));
    mesh.change(|settings| remove_policy(settings, server))?;
    wait_for_answer(client, to).map(drop)
}

fn add_policy(settings: &mut crate::proxy::Settings, server: &Host, rules: &serde_json::Value) {
    let policy = Policy::selector(NAME, "Deny", rules.clone());
    settings.policies.push(policy);
    for workload in &mut settings.workloads {
        if workload.name == server.name {
            let key = format!("default/{NAME}");
            workload.authorization_policies.push(key);
        }
    }
}

fn remove_policy(settings: &mut crate::proxy::Settings, server: &Host) {
    settings.policies.retain(|policy| policy.name != NAME);
    for workload in &mut settings.workloads {
        if workload.name == server.name {
            let key = format!("default/{NAME}");
            workload
                .authorization_policies
                .retain(|listed| *listed != key);
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

/// Sends requests until one is answered.
fn wait_for_answer(client: &Host, to: SocketAddr) -> Result<SocketAddr> {
    let started = Instant::now();
    loop {
        match client.enter(|| traffic::get(to, MARKER, TIMEOUT)) {
            Ok(answer) => return Ok(answer.client_local),
            Err(error) => ensure!(started.elapsed() < RELOAD, "{to} does not answer: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Connections inside the node use tunnels, too.
pub(super) fn tunnel_inside_node(
    page: &mut Page,
    world: &World,
    mesh: &mut Mesh<'_>,
) -> Result<()> {
    let (client, server) = (world.pod("a", 0), world.pod("a", 1));
    let to = server.at(Family::V4, PORT);
    mesh.change(|settings| {
        drop(
            settings
                .extra
                .insert("sameNode".to_owned(), json!("tunnel")),
        )
    })?;
    page.text("both settings files now contain `sameNode: tunnel`");
    let started = Instant::now();
    let hidden = loop {
        let capture = LinkCapture::start(world)?;
        wait_for_answer(client, to)?;
        let hidden = capture.finish()?.hidden_inside_node();
        if hidden || started.elapsed() > RELOAD {
            break hidden;
        }
    };
    page.claim(
        hidden,
        "after the change pod a-0 reaches pod a-1 through a tunnel: no packet inside node a contains the marker",
    );
    Ok(())
}
