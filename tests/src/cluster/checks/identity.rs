//! Identities and policies.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::commands::{Cluster, wait_for};
use super::super::shop;
use super::pairs::{Pairs, Strangers, apps};
use crate::traffic::calls::Report;

pub(super) fn identity(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-identity")?;
    let namespace = &pairs.namespace.name;
    let strangers = Strangers::new(cluster, "zt-outside")?;
    let outside = &strangers.namespace.name;
    cluster.apply(&shop::strict(namespace))?;
    cluster.apply(&shop::allow_only(namespace, "server-b", "client-a"))?;
    let stranger = cluster.pod_of(outside, "client-a")?;
    let callers = [
        (namespace.as_str(), pairs.pod("client-a")?, "server-b", true),
        (
            namespace.as_str(),
            pairs.pod("client-b")?,
            "server-b",
            false,
        ),
        (namespace.as_str(), pairs.pod("client-b")?, "server-a", true),
        (outside.as_str(), stranger, "server-a", false),
    ];
    for (from, pod, server, allowed) in &callers {
        let to = format!("{server}.{namespace}:80");
        let what = format!("{pod} to {server}, allowed: {allowed}");
        wait_for(&what, Duration::from_secs(20), || {
            let calls = cluster.calls(from, pod, &[&to, "--most", "5", "--seconds", "20"]);
            let report = calls.report()?;
            Ok(match allowed {
                true => report.failed == 0 && report.answered == 5,
                false => report.answered == 0,
            })
        })?;
    }
    let denied = denied_calls(&pairs)?;
    // The probes of all servers still pass.
    thread::sleep(Duration::from_secs(5));
    for app in apps(namespace, &cluster.nodes) {
        let deployment = format!("deployment/{}", app.deployment());
        cluster.rolled_out(namespace, &deployment, Duration::from_secs(5))?;
    }
    Ok(format!(
        "{} denied calls: {:?}",
        denied.failed, denied.failures
    ))
}

/// Denied connections are accepted first and reset then, in this order.
fn denied_calls(pairs: &Pairs<'_>) -> Result<Report> {
    let namespace = &pairs.namespace.name;
    let to = format!("server-b.{namespace}:80");
    let flags = [&to, "--most", "200", "--callers", "4"];
    let calls = pairs
        .cluster
        .calls(namespace, &pairs.pod("client-b")?, &flags);
    let denied = calls.report()?;
    ensure!(
        denied.answered == 0 && denied.failed == 200,
        "denied calls: {denied:?}"
    );
    let early = denied
        .failures
        .keys()
        .find(|failure| failure.starts_with("connect"));
    ensure!(
        early.is_none(),
        "a denied connection failed while it was opened: {denied:?}"
    );
    Ok(denied)
}
