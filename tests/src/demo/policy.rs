//! A policy is added while the proxies run: a client that was answered before is refused afterwards.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::log;
use super::page::Page;
use super::requests::milliseconds;
use super::{MARKER, PORT, TIMEOUT};
use crate::net::{Family, Host, World};
use crate::proxy::{Mesh, Policy, identity};
use crate::traffic::{self, Answer};

/// The name of the policy in the namespace `default`.
const NAME: &str = "deny-a-1";
/// The time limit for changed settings to take effect.
const RELOAD: Duration = Duration::from_secs(10);
/// The time limit of a request that may be refused.
const BRIEF: Duration = Duration::from_secs(2);

/// Requests from pods a-0 and a-1 to pod b-1, before and after a policy that denies pod a-1.
pub(super) fn show(page: &mut Page, world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let (allowed, denied, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 1));
    let to = server.at(Family::V4, PORT);
    let before = [allowed, denied].map(|client| request(client, to, TIMEOUT).is_ok());
    page.claim(
        before == [true, true],
        "without a policy, pod b-1 answers pod a-0 and pod a-1",
    );

    let changed = Instant::now();
    add_policy(mesh, server, denied)?;
    page.text(&format!(
        "both settings files now contain this policy, and the running proxies read them again:\n  \
         name: {NAME}, action: Deny, for: b-1\n  \
         principals: {}",
        principal(denied)
    ));
    let refused = wait_for_refusal(denied, to, changed);
    page.claim(
        refused.is_some(),
        "after the change pod b-1 refuses pod a-1",
    );
    if let Some((error, after)) = &refused {
        page.text(&format!(
            "pod a-1 sees: {error} ({} after the change)",
            milliseconds(*after)
        ));
    }
    check_logs(page, mesh, denied);
    page.claim(
        request(allowed, to, TIMEOUT).is_ok(),
        "pod b-1 still answers pod a-0",
    );
    Ok(())
}

fn request(client: &Host, to: SocketAddr, limit: Duration) -> io::Result<Answer> {
    client.enter(|| traffic::get(to, MARKER, limit))
}

/// A pod's identity as in policies, without the scheme.
fn principal(pod: &Host) -> String {
    identity(pod).trim_start_matches("spiffe://").to_owned()
}

fn add_policy(mesh: &mut Mesh<'_>, server: &Host, denied: &Host) -> Result<()> {
    let rules = json!([[[{ "principals": [{ "exact": principal(denied) }] }]]]);
    mesh.change(|settings| {
        settings
            .policies
            .push(Policy::selector(NAME, "Deny", rules.clone()));
        for workload in &mut settings.workloads {
            if workload.name == server.name {
                workload
                    .authorization_policies
                    .push(format!("default/{NAME}"));
            }
        }
    })
    .context("adding a policy")
}

/// Sends requests until one is refused. Returns the error and the time since the change.
fn wait_for_refusal(
    client: &Host,
    to: SocketAddr,
    changed: Instant,
) -> Option<(io::Error, Duration)> {
    while changed.elapsed() < RELOAD {
        if let Err(error) = request(client, to, BRIEF) {
            return Some((error, changed.elapsed()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Checks the reason of the refusal in the logs of both nodes.
fn check_logs(page: &mut Page, mesh: &mut Mesh<'_>, denied: &Host) {
    let client_identity = identity(denied);
    let reasons = ["b", "a"].map(|node| {
        log::access(mesh.proxy(node), |line| {
            line.has("src.identity", &client_identity) && line.field("error").is_some()
        })
        .and_then(|line| line.field("error").map(str::to_owned))
        .unwrap_or_default()
    });
    for (node, reason) in ["b", "a"].iter().zip(&reasons) {
        page.prose(&format!("log of node {node}: {reason}"));
    }
    page.claim(
        reasons[0].contains(&format!("default/{NAME}")),
        &format!("the log of the server's node contains the policy default/{NAME}"),
    );
    page.claim(
        !reasons[1].is_empty(),
        "the log of the client's node contains the refusal, too",
    );
}
