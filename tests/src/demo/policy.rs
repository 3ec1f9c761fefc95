//! A policy that is added while the proxies run: who was answered before is refused after.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::log;
use super::page::Page;
use super::story::milliseconds;
use super::{MARKER, PATIENCE, PORT};
use crate::net::{Family, Host, World};
use crate::proxy::{Mesh, Policy, identity};
use crate::traffic::{self, Answer};

/// The policy, in the namespace `default`.
const NAME: &str = "keep-a-1-out";
/// How long until a changed settings file must count.
const RELOAD: Duration = Duration::from_secs(10);
/// How long a request is given that may be refused.
const BRIEF: Duration = Duration::from_secs(2);

/// Pod b-1 is called by a-0 and a-1, before and after a policy that refuses a-1.
pub(super) fn show(page: &mut Page, world: &World, mesh: &mut Mesh<'_>) -> Result<()> {
    let (friend, other, guarded) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 1));
    let to = guarded.at(Family::V4, PORT);
    let before = [friend, other].map(|caller| call(caller, to, PATIENCE).is_ok());
    page.claim(
        before == [true, true],
        "without a policy, pod b-1 answers pod a-0 and pod a-1",
    );

    let changed = Instant::now();
    add(mesh, guarded, other)?;
    page.text(&format!(
        "now both settings files get this policy, and the running proxies read them again:\n  \
         name: {NAME}, action: Deny, for: b-1\n  \
         principals: {}",
        principal(other)
    ));
    let refused = refusal(other, to, changed);
    page.claim(refused.is_some(), "pod b-1 refuses pod a-1 from then on");
    if let Some((error, after)) = &refused {
        page.text(&format!(
            "pod a-1 sees: {error} ({} after the change)",
            milliseconds(*after)
        ));
    }
    name_the_policy(page, mesh, other);
    page.claim(
        call(friend, to, PATIENCE).is_ok(),
        "pod a-0 is answered as before",
    );
    Ok(())
}

fn call(caller: &Host, to: SocketAddr, limit: Duration) -> io::Result<Answer> {
    caller.enter(|| traffic::get(to, MARKER, limit))
}

/// A pod's identity as policies write it (without the scheme).
fn principal(pod: &Host) -> String {
    identity(pod).trim_start_matches("spiffe://").to_owned()
}

fn add(mesh: &mut Mesh<'_>, guarded: &Host, refused: &Host) -> Result<()> {
    let rules = json!([[[{ "principals": [{ "exact": principal(refused) }] }]]]);
    mesh.change(|settings| {
        settings
            .policies
            .push(Policy::selector(NAME, "Deny", rules.clone()));
        for workload in &mut settings.workloads {
            if workload.name == guarded.name {
                workload
                    .authorization_policies
                    .push(format!("default/{NAME}"));
            }
        }
    })
    .context("adding a policy")
}

/// Calls until it is refused; what the caller saw, and how long after the change.
fn refusal(caller: &Host, to: SocketAddr, changed: Instant) -> Option<(io::Error, Duration)> {
    while changed.elapsed() < RELOAD {
        if let Err(error) = call(caller, to, BRIEF) {
            return Some((error, changed.elapsed()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// The reason must be in the logs of both nodes: which policy, and what became of the caller.
fn name_the_policy(page: &mut Page, mesh: &mut Mesh<'_>, refused: &Host) {
    let who = identity(refused);
    let reasons = ["b", "a"].map(|node| {
        log::access(mesh.proxy(node), |line| {
            line.says("src.identity", &who) && line.field("error").is_some()
        })
        .and_then(|line| line.field("error").map(str::to_owned))
        .unwrap_or_default()
    });
    for (node, reason) in ["b", "a"].iter().zip(&reasons) {
        page.prose(&format!("node {node}'s log: {reason}"));
    }
    page.claim(
        reasons[0].contains(&format!("default/{NAME}")),
        &format!("the log of the refusing node names the policy default/{NAME}"),
    );
    page.claim(
        !reasons[1].is_empty(),
        "the log of the client node has the refusal too",
    );
}
