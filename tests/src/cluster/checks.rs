//! The checks: what must hold in a real cluster and cannot be shown in simulated nodes.

mod disruptions;
mod fast_path;
mod identity;
mod install;
mod kinds;
mod pairs;
mod pods;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::MESH;
use super::commands::{Cluster, run};
use crate::proxy::Metrics;
use crate::proxy::admin::{self, ADMIN, METRICS};
use disruptions::{control_plane_gone, killed, kubelet_restart, node_reboot, rolling_restart};
use fast_path::fast_path;
use identity::identity;
use install::install;
use kinds::kinds;
use pods::{leaving, new_pods, pod_churn};

/// A check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Whether it takes minutes: it runs only if it is named, or with `--long`.
    pub is_long: bool,
    /// Runs it. Returns its figures.
    pub run: fn(&Cluster) -> Result<String>,
}

/// Every check, in the order of their running.
pub const ALL: &[Check] = &[
    short(
        "commands",
        "istioctl's tables, versions and log levels; readiness; the doctor in the proxy's container",
        commands,
    ),
    short(
        "new-pods",
        "100 pods that are created at once and call a service by its name at once",
        new_pods,
    ),
    short(
        "identity",
        "STRICT: kubelet's probes pass, the allowed account passes, others do not",
        identity,
    ),
    short(
        "leaving",
        "servers leave the mesh and come back under load: no call fails",
        leaving,
    ),
    short(
        "kinds",
        "StatefulSets, host network, node ports, own addresses, exec, port-forward",
        kinds,
    ),
    short(
        "rolling-restart",
        "the DaemonSet is replaced under load: no new connection fails",
        rolling_restart,
    ),
    short(
        "install",
        "Istio's chart with deploy/istio/values.yaml, deploy/daemonset.yaml, and uninstalling",
        install,
    ),
    short(
        "fast-path",
        "by programs: two pods of a node are connected in the kernel, with metrics and policies",
        fast_path,
    ),
    long(
        "control-plane-gone",
        "istiod is gone and istio-cni is restarted under load: no call fails",
        control_plane_gone,
    ),
    short(
        "kubelet-restart",
        "kubelet is restarted under load: no call fails",
        kubelet_restart,
    ),
    short(
        "killed",
        "a proxy is killed: calls are refused, not sent in plaintext, until it is back",
        killed,
    ),
    long(
        "pod-churn",
        "200 pods come and go under load: no call fails and nothing of them is left",
        pod_churn,
    ),
    long(
        "node-reboot",
        "a node restarts: its pods are served again, and the log is not flooded",
        node_reboot,
    ),
];

const fn short(
    name: &'static str,
    shows: &'static str,
    run: fn(&Cluster) -> Result<String>,
) -> Check {
    Check {
        name,
        shows,
        is_long: false,
        run,
    }
}

const fn long(
    name: &'static str,
    shows: &'static str,
    run: fn(&Cluster) -> Result<String>,
) -> Check {
    Check {
        is_long: true,
        ..short(name, shows, run)
    }
}

/// The limit for a rollout.
const ROLLOUT: Duration = Duration::from_secs(120);

/// The commands of docs/kubernetes.md, "When it does not work", and the tables of istioctl.
fn commands(cluster: &Cluster) -> Result<String> {
    let versions = run("istioctl", &["version"])?;
    let ours = versions.lines().find(|line| line.contains("v0."));
    ensure!(
        ours.is_some(),
        "istioctl version shows no version of the proxies:\n{versions}"
    );
    let proxy = cluster.proxy_on(&cluster.nodes[0])?;
    let pod = format!("{proxy}.{MESH}");
    for level in ["debug", "info"] {
        run(
            "istioctl",
            &["ztunnel-config", "log", &pod, "--level", level],
        )?;
        let shown = run("istioctl", &["ztunnel-config", "log", &pod])?;
        let expected = format!("current log level is {level}");
        ensure!(shown.contains(&expected), "{shown}");
    }
    for table in ["all", "workloads", "services", "policies", "certificates"] {
        run("istioctl", &["ztunnel-config", table, &pod])?;
    }
    let status = run("istioctl", &["proxy-status"])?;
    ensure!(status.contains(&proxy), "no {proxy} in:\n{status}");
    let ready = format!("/api/v1/namespaces/{MESH}/pods/{proxy}:15021/proxy/healthz/ready");
    cluster.kubectl(&["-n", MESH, "get", "--raw", &ready])?;
    cluster.exec(MESH, &proxy, &["/usr/local/bin/ztunnel", "doctor"])?;
    Ok(ours.unwrap_or_default().trim().to_owned())
}

/// A command for a node's shell that prints the id of a pod's container.
fn container_id(namespace: &str, pod: &str) -> String {
    format!(
        "crictl ps -q --label \
         io.kubernetes.pod.name={pod},io.kubernetes.pod.namespace={namespace}"
    )
}

/// The dump of the proxy on a node.
fn config_dump(cluster: &Cluster, node: &str) -> Result<Value> {
    let dump = from_proxy(cluster, node, ADMIN, "/config_dump")?;
    serde_json::from_str(&dump).context("/config_dump")
}

/// The metrics of the proxy on a node.
fn metrics(cluster: &Cluster, node: &str) -> Result<Metrics> {
    Metrics::parse(&from_proxy(cluster, node, METRICS, "/metrics")?)
}

fn from_proxy(cluster: &Cluster, node: &str, port: u16, path: &str) -> Result<String> {
    let proxy = format!("pod/{}", cluster.proxy_on(node)?);
    cluster.port_forward(MESH, &proxy, port, |address| {
        let (status, body) = admin::call("GET", address, path)?;
        ensure!(status == 200, "{path} of {node}: status {status}: {body}");
        Ok(body)
    })
}
