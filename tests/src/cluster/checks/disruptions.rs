//! Parts of the cluster that restart, end or are replaced, under load.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::super::MESH;
use super::super::commands::{Cluster, run, wait_for};
use super::super::shop;
use super::ROLLOUT;
use super::pairs::{Pairs, SERVERS, Strangers, none_failed};
use crate::sniff::Sniffer;
use crate::traffic::calls::Report;

pub(super) fn rolling_restart(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-rolling")?;
    let strangers = Strangers::new(cluster, "zt-strangers")?;
    let plain = strangers.start(&pairs, "--seconds 80 --callers 1 --pause 2")?;
    let new = pairs.start("--seconds 80 --callers 2")?;
    let kept = pairs.start("--seconds 80 --callers 2 --keep --pause 5")?;
    thread::sleep(Duration::from_secs(3));
    cluster.kubectl(&["-n", MESH, "rollout", "restart", "daemonset/ztunnel"])?;
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;
    let answered = none_failed("new connections", new)?;
    let from_outside = none_failed("from outside the mesh", plain)?;
    let (mut kept_answered, mut kept_failed) = (0, 0);
    for calls in kept {
        let report = calls.report()?;
        kept_answered += report.answered;
        kept_failed += report.failed;
    }
    // Each caller's open connection ends at most once with each of the two proxies that it uses.
    ensure!(
        kept_failed <= 16,
        "{kept_failed} failures on kept connections"
    );
    Ok(format!(
        "{answered} on new connections and {from_outside} from outside the mesh, none failed; \
         {kept_answered} on kept ones, \
         {kept_failed} ended with their proxy"
    ))
}

/// A Deployment without replicas; it gets its replicas back when this value is dropped.
struct Scaled<'a> {
    cluster: &'a Cluster,
    workload: &'a str,
    replicas: String,
}

impl<'a> Scaled<'a> {
    fn down(cluster: &'a Cluster, workload: &'a str) -> Result<Self> {
        let objects = cluster.get(&["-n", MESH, workload])?;
        let replicas = objects
            .first()
            .map(|object| object["spec"]["replicas"].to_string());
        let scaled = Self {
            cluster,
            workload,
            replicas: replicas.unwrap_or_else(|| "1".to_owned()),
        };
        scaled.to("0")?;
        Ok(scaled)
    }

    fn to(&self, replicas: &str) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let scale = ["-n", MESH, "scale", self.workload, &replicas];
        self.cluster.kubectl(&scale).map(drop)
    }
}

impl Drop for Scaled<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.to(&self.replicas) {
            eprintln!("{} has no replicas: {error:#}", self.workload);
        }
    }
}

pub(super) fn control_plane_gone(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-no-control")?;
    let calls = pairs.start("--seconds 85 --callers 2 --pause 5")?;
    let istiod = Scaled::down(cluster, "deployment/istiod")?;
    let restart = ["-n", MESH, "rollout", "restart", "daemonset/istio-cni-node"];
    let restarted = cluster.kubectl(&restart);
    thread::sleep(Duration::from_secs(60));
    drop(istiod);
    restarted?;
    cluster.rolled_out(MESH, "deployment/istiod", ROLLOUT)?;
    cluster.rolled_out(MESH, "daemonset/istio-cni-node", ROLLOUT)?;
    let answered = none_failed("calls", calls)?;
    Ok(format!("{answered}, none failed"))
}

pub(super) fn killed(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-killed")?;
    let node = &cluster.nodes[0];
    let process = cluster.proxy_process(node)?;
    let sniffer = cluster.sniffer(node).ok();
    let calls = pairs.start("--seconds 30 --callers 1 --pause 5")?;
    thread::sleep(Duration::from_secs(5));
    cluster.on_node(node, &format!("kill -9 {process}"))?;
    let began = Instant::now();
    wait_for(
        "another process of the proxy",
        Duration::from_secs(30),
        || Ok(cluster.proxy_process(node)? != process),
    )?;
    let back = began.elapsed();
    let mut reports = Vec::new();
    for calls in calls {
        reports.push(calls.report()?);
    }
    let failed: u64 = reports.iter().map(|report| report.failed).sum();
    // The last pair is on the other node.
    let beside = reports.last().map_or(0, |report| report.failed);
    ensure!(beside == 0, "{beside} calls on the other node failed");
    let traffic = sniffer.map(Sniffer::finish).transpose()?;
    ensure!(
        failed > 0,
        "no call failed: what carried them without a proxy?"
    );
    let leaked = traffic.map_or(0, |traffic| traffic.marker_packets);
    ensure!(
        leaked == 0,
        "{leaked} packets between the nodes have the calls in plaintext"
    );
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;
    none_failed("after the restart", pairs.start("--most 20 --seconds 30")?)?;
    Ok(format!(
        "a new process after {:.1} s; {failed} calls failed until then, and none after it",
        back.as_secs_f64()
    ))
}

pub(super) fn node_reboot(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-reboot")?;
    let node = cluster
        .nodes
        .iter()
        .find(|node| !node.contains("control-plane"));
    let Some(node) = node else {
        return Ok("left out: no worker node".to_owned());
    };
    let routes = cluster.on_node(
        node,
        "ip route show | grep ' via ' | grep -v default || true",
    )?;
    run("docker", &["restart", node])?;
    let began = Instant::now();
    for route in routes.lines() {
        cluster.on_node(node, &format!("ip route replace {route}"))?;
    }
    let ready = ["wait", "--for=condition=Ready", "--timeout=120s"];
    cluster.kubectl(&[&ready[..], &[&format!("node/{node}")]].concat())?;
    // The status of the pods is that of before the restart until kubelet has seen them.
    wait_for("calls of all pairs", Duration::from_secs(180), || {
        let running = pairs.start("--strict --most 5 --seconds 20")?;
        Ok(running.into_iter().all(|calls| calls.report().is_ok()))
    })?;
    let took = began.elapsed();
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;
    let log = cluster.proxy_log(node)?;
    let refused = log
        .lines()
        .filter(|line| line.contains("cannot enroll the pod"));
    let refused = refused.count();
    let pods = cluster.get(&[
        "pods",
        "-A",
        "--field-selector",
        &format!("spec.nodeName={node}"),
    ])?;
    ensure!(
        refused <= 2 * pods.len(),
        "{refused} lines about pods that cannot be enrolled, for {} pods",
        pods.len()
    );
    Ok(format!(
        "all pairs answer {:.0} s after the restart; {refused} lines about dead sandboxes",
        took.as_secs_f64()
    ))
}

pub(super) fn kubelet_restart(cluster: &Cluster) -> Result<String> {
    const SECONDS: u64 = 20;
    let pairs = Pairs::new(cluster, "zt-kubelet")?;
    let namespace = pairs.namespace.name.as_str();
    // Not with `kubectl exec`, which kubelet's restart would end.
    for (node, server) in cluster.nodes.iter().zip(SERVERS.iter().rev()) {
        let (to, seconds) = (format!("{server}.{namespace}:80"), SECONDS.to_string());
        let calls = [&to, "--seconds", &seconds, "--callers", "2", "--pause", "2"];
        let caller = format!("caller-of-{server}");
        cluster.apply(&shop::caller(namespace, &caller, node, &calls))?;
        let caller = format!("pod/{caller}");
        cluster.wait(
            namespace,
            &caller,
            "jsonpath={.status.phase}=Running",
            ROLLOUT,
        )?;
    }
    for node in &cluster.nodes {
        cluster.on_node(node, "systemctl restart kubelet")?;
    }
    thread::sleep(Duration::from_secs(SECONDS));
    let mut answered = 0;
    for server in SERVERS {
        let caller = format!("pod/caller-of-{server}");
        cluster.wait(
            namespace,
            &caller,
            "jsonpath={.status.phase}=Succeeded",
            ROLLOUT,
        )?;
        let log = cluster.kubectl(&["-n", namespace, "logs", &caller])?;
        let report: Report = serde_json::from_str(&log)?;
        ensure!(report.failed == 0, "{caller}: {report:?}");
        answered += report.answered;
    }
    ensure!(answered > 0, "nothing was called");
    Ok(format!("{answered} calls, none failed"))
}
