//! Pods of one node whose connections stay in the kernel.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::MESH;
use super::super::commands::{Cluster, RunningCalls, wait_for};
use super::super::shop;
use super::install::captured_by_programs;
use super::pairs::{Answered, Pairs, none_failed};
use super::{ROLLOUT, config_dump, container_id, metrics};

/// The time until the proxy has followed a change.
const LIMIT: Duration = Duration::from_secs(20);

/// A client and a server on one node, without the rules that istio-cni puts into their pods: those
/// redirect every connection, and so exclude the fast path. A node agent of this proxy would leave them
/// out; here they are removed afterwards.
pub(super) fn fast_path(cluster: &Cluster) -> Result<String> {
    if !captured_by_programs(cluster)? {
        return Ok("left out: rules capture".to_owned());
    }
    let pairs = Pairs::new(cluster, "zt-fast-path")?;
    let namespace = pairs.namespace.name.as_str();
    let (node, client, server) = (
        cluster.nodes[0].as_str(),
        pairs.pod("client-a")?,
        pairs.pod("server-a")?,
    );
    for pod in [&client, &server] {
        remove_rules(cluster, namespace, pod, node)?;
    }
    // Rules are looked for when a pod is enrolled.
    cluster.kubectl(&["-n", MESH, "rollout", "restart", "daemonset/ztunnel"])?;
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;

    let to = format!("server-a.{namespace}:80");
    let call =
        |flags: &[&str]| cluster.calls(namespace, &client, &[&[to.as_str()], flags].concat());
    let before = opened(cluster, node)?;
    let calls = none_failed("calls", vec![call(&["--most", "200"])])?;
    let entries = entries_of(cluster, node, &client)?;
    ensure!(entries > 0, "no entry leads from {client} to {server}");
    wait_for("the metrics of all calls", LIMIT, || {
        Ok(opened(cluster, node)? - before >= 200.0)
    })?;

    let survived = survives_its_proxy(cluster, node, call(&["--keep", "--seconds", "12"]))?;
    let open = call(&["--keep", "--pause", "20", "--seconds", "15"]);
    thread::sleep(Duration::from_secs(4));
    cluster.apply(&shop::allow_only(namespace, "server-a", "client-b"))?;
    let kept = open.report()?;
    ensure!(
        kept.answered > 0 && kept.failed > 0,
        "the open connection outlived the policy: {kept:?}"
    );
    let denied = call(&["--most", "20"]).report()?;
    ensure!(denied.answered == 0, "denied calls: {denied:?}");
    ensure!(
        entries_of(cluster, node, &client)? == 0,
        "an entry outlived the policy"
    );
    Ok(format!(
        "{calls} with {entries} entries; {survived} on connections that are open while the proxy is \
         killed; a policy ended the open connection after {} calls",
        kept.answered
    ))
}

/// Calls on an open connection go on while the proxy of the node is killed.
fn survives_its_proxy(cluster: &Cluster, node: &str, open: RunningCalls) -> Result<Answered> {
    thread::sleep(Duration::from_secs(4));
    let process = cluster.proxy_process(node)?;
    cluster.on_node(node, &format!("kill -9 {process}"))?;
    let answered = none_failed("calls on the open connection of a killed proxy", vec![open])?;
    wait_for("another process of the proxy", LIMIT, || {
        Ok(cluster.proxy_process(node)? != process)
    })?;
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;
    Ok(answered)
}

/// Removes the rules from a pod's network namespace.
fn remove_rules(cluster: &Cluster, namespace: &str, pod: &str, node: &str) -> Result<()> {
    let container = format!("$({})", container_id(namespace, pod));
    let process =
        format!("crictl inspect -o go-template --template '{{{{.info.pid}}}}' {container}");
    let flush = format!("nsenter --net=/proc/$({process})/ns/net nft flush ruleset");
    cluster.on_node(node, &flush).map(drop)
}

/// The number of the fast path's entries for the connections of a pod.
fn entries_of(cluster: &Cluster, node: &str, pod: &str) -> Result<usize> {
    let dump = config_dump(cluster, node)?;
    let calls = dump["direct"]["calls"].as_array();
    let of_pod = |entry: &&Value| {
        let uid = entry["pod"].as_str().unwrap_or_default();
        uid.ends_with(&format!("/{pod}"))
    };
    let calls = calls.context("no fast path in the dump")?;
    Ok(calls.iter().filter(of_pod).count())
}

/// The connections from the client to the server that the metrics of the node count.
fn opened(cluster: &Cluster, node: &str) -> Result<f64> {
    let labels = [
        ("source_workload", "client-a-v1"),
        ("destination_workload", "server-a-v1"),
        ("reporter", "source"),
    ];
    Ok(metrics(cluster, node)?.sum("istio_tcp_connections_opened_total", &labels))
}
