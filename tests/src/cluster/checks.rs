//! The checks: what must hold in a real cluster and cannot be shown in simulated nodes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::MESH;
use super::commands::{Cluster, Membership, Namespace, RunningCalls, name, run, wait_for};
use super::shop::{self, App};
use crate::sniff::Sniffer;
use crate::traffic::calls::Report;

/// A check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Runs it. Returns its figures.
    pub run: fn(&Cluster) -> Result<String>,
}

/// Every check, in the order of their running.
#[must_use]
pub fn all() -> Vec<Check> {
    let check = |name, shows, run| Check { name, shows, run };
    vec![
        check(
            "istioctl",
            "istioctl shows the version of the proxies, and their log level",
            istioctl,
        ),
        check(
            "new-pods",
            "100 pods that are created at once and call a service by its name at once",
            new_pods,
        ),
        check(
            "identity",
            "STRICT: kubelet's probes pass, the allowed account passes, others do not",
            identity,
        ),
        check(
            "rolling-restart",
            "the DaemonSet is replaced under load: no new connection fails",
            rolling_restart,
        ),
        check(
            "control-plane-gone",
            "istiod is gone and istio-cni is restarted under load: no call fails",
            control_plane_gone,
        ),
        check(
            "killed",
            "a proxy is killed: calls are refused, not sent in plaintext, until it is back",
            killed,
        ),
        check(
            "pod-churn",
            "200 pods come and go under load: no call fails and no descriptor is left",
            pod_churn,
        ),
        check(
            "node-reboot",
            "a node restarts: its pods are served again, and the log is not flooded",
            node_reboot,
        ),
    ]
}

/// The limit for a rollout.
const ROLLOUT: Duration = Duration::from_secs(120);
/// The number of pods that are created at once.
const NEW_PODS: usize = 100;

/// A client and a server on each of two nodes.
struct Pairs<'a> {
    cluster: &'a Cluster,
    namespace: Namespace<'a>,
}

impl<'a> Pairs<'a> {
    fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = cluster.namespace(name, Membership::InMesh)?;
        let apps = apps(&namespace.name, &cluster.nodes);
        for app in &apps {
            cluster.apply(&app.manifests())?;
        }
        for app in &apps {
            let deployment = format!("deployment/{}", app.deployment());
            cluster.rolled_out(&namespace.name, &deployment, ROLLOUT)?;
        }
        let pairs = Self { cluster, namespace };
        // The first call of each pair also waits for the mesh configuration.
        for calls in pairs.start("--strict --most 1")? {
            calls.report()?;
        }
        Ok(pairs)
    }

    /// Starts calls from both clients to both servers: same node and other node.
    fn start(&self, flags: &str) -> Result<Vec<RunningCalls>> {
        let mut running = Vec::new();
        for client in CLIENTS {
            let pod = self.pod(client)?;
            for server in SERVERS {
                let to = format!("{server}.{}:80", self.namespace.name);
                let mut all = vec![to.as_str()];
                all.extend(flags.split_whitespace());
                running.push(self.cluster.calls(&self.namespace.name, &pod, &all));
            }
        }
        Ok(running)
    }

    fn pod(&self, app: &str) -> Result<String> {
        let selector = format!("app={app}");
        let pods = self
            .cluster
            .get(&["pods", "-n", &self.namespace.name, "-l", &selector])?;
        let alive = pods
            .iter()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        alive
            .and_then(name)
            .ok_or_else(|| anyhow::anyhow!("no pod of {app}"))
    }
}

const CLIENTS: [&str; 2] = ["client-a", "client-b"];
const SERVERS: [&str; 2] = ["server-a", "server-b"];

fn apps<'a>(namespace: &'a str, nodes: &'a [String]) -> Vec<App<'a>> {
    let places = nodes.iter().map(String::as_str);
    let pairs = CLIENTS.iter().zip(SERVERS).zip(places);
    pairs
        .flat_map(|((client, server), node)| {
            [
                App::on(namespace, client, node),
                App::on(namespace, server, node),
            ]
        })
        .collect()
}

/// The sums of several reports; an error if a call failed.
fn none_failed(what: &str, running: Vec<RunningCalls>) -> Result<u64> {
    let mut answered = 0;
    for calls in running {
        let report = calls.report()?;
        ensure!(report.failed == 0, "{what}: {report:?}");
        answered += report.answered;
    }
    ensure!(answered > 0, "{what}: nothing was called");
    Ok(answered)
}

fn istioctl(cluster: &Cluster) -> Result<String> {
    let versions = run("istioctl", &["version"])?;
    let ours = versions.lines().find(|line| line.contains("v0."));
    ensure!(
        ours.is_some(),
        "istioctl version shows no version of the proxies:\n{versions}"
    );
    let node = &cluster.nodes[0];
    let pod = format!("{}.{MESH}", cluster.proxy_on(node)?);
    let level = run("istioctl", &["ztunnel-config", "log", &pod])?;
    ensure!(level.contains("current log level is"), "{level}");
    for table in ["workloads", "services", "policies", "certificates"] {
        run("istioctl", &["ztunnel-config", table, &pod])?;
    }
    Ok(ours.unwrap_or_default().trim().to_owned())
}

fn new_pods(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-new-pods")?;
    let namespace = &pairs.namespace.name;
    let to = format!("server-a.{namespace}:80");
    let began = Instant::now();
    cluster.apply(&shop::callers(namespace, "callers", NEW_PODS, &to))?;
    let completed = [
        "wait",
        "job/callers",
        "--for=condition=Complete",
        "--timeout=300s",
    ];
    cluster.kubectl(&[&["-n", namespace], &completed[..]].concat())?;
    let took = began.elapsed();
    let pods = cluster.get(&["pods", "-n", namespace, "-l", "job-name=callers"])?;
    let restarted: Vec<String> = pods
        .iter()
        .filter(|pod| pod["status"]["containerStatuses"][0]["restartCount"] != 0)
        .filter_map(name)
        .collect();
    ensure!(pods.len() == NEW_PODS, "{} pods", pods.len());
    ensure!(restarted.is_empty(), "restarted: {restarted:?}");
    Ok(format!(
        "{NEW_PODS} pods, 0 restarts, {:.0} s",
        took.as_secs_f64()
    ))
}

fn identity(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-identity")?;
    let namespace = &pairs.namespace.name;
    let outside = cluster.namespace("zt-outside", Membership::Outside)?;
    let stranger = App::on(&outside.name, "stranger", &cluster.nodes[0]);
    cluster.apply(&stranger.manifests())?;
    cluster.rolled_out(&outside.name, "deployment/stranger-v1", ROLLOUT)?;
    cluster.apply(&shop::strict(namespace))?;
    cluster.apply(&shop::allow_only(namespace, "server-b", "client-a"))?;
    let strangers = cluster.get(&["pods", "-n", &outside.name])?;
    let stranger = strangers.first().and_then(name).unwrap_or_default();
    let callers = [
        (namespace.as_str(), pairs.pod("client-a")?, "server-b", true),
        (
            namespace.as_str(),
            pairs.pod("client-b")?,
            "server-b",
            false,
        ),
        (namespace.as_str(), pairs.pod("client-b")?, "server-a", true),
        (outside.name.as_str(), stranger, "server-a", false),
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

fn rolling_restart(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-rolling")?;
    let new = pairs.start("--seconds 60 --callers 2")?;
    let kept = pairs.start("--seconds 60 --callers 2 --keep --pause 5")?;
    thread::sleep(Duration::from_secs(3));
    cluster.kubectl(&["-n", MESH, "rollout", "restart", "daemonset/ztunnel"])?;
    cluster.rolled_out(MESH, "daemonset/ztunnel", ROLLOUT)?;
    let answered = none_failed("new connections", new)?;
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
        "{answered} calls on new connections, none failed; {kept_answered} on kept ones, \
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

fn control_plane_gone(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-no-control")?;
    let calls = pairs.start("--seconds 45 --callers 2 --pause 5")?;
    let istiod = Scaled::down(cluster, "deployment/istiod")?;
    let restart = ["-n", MESH, "rollout", "restart", "daemonset/istio-cni-node"];
    let restarted = cluster.kubectl(&restart);
    thread::sleep(Duration::from_secs(25));
    drop(istiod);
    restarted?;
    cluster.rolled_out(MESH, "deployment/istiod", ROLLOUT)?;
    cluster.rolled_out(MESH, "daemonset/istio-cni-node", ROLLOUT)?;
    let answered = none_failed("calls", calls)?;
    Ok(format!("{answered} calls, none failed"))
}

fn killed(cluster: &Cluster) -> Result<String> {
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
    let mut failed = 0;
    for calls in calls {
        failed += calls.report()?.failed;
    }
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

fn pod_churn(cluster: &Cluster) -> Result<String> {
    const AT_ONCE: usize = 25;
    const ROUNDS: usize = 8;
    let pairs = Pairs::new(cluster, "zt-churn")?;
    let namespace = &pairs.namespace.name;
    let node = &cluster.nodes[1];
    let descriptors = || -> Result<usize> {
        let process = cluster.proxy_process(node)?;
        let count = cluster.on_node(node, &format!("ls /proc/{process}/fd | wc -l"))?;
        Ok(count.trim().parse()?)
    };
    let before = descriptors()?;
    let calls = pairs.start("--seconds 150 --callers 1 --pause 20")?;
    let to = format!("server-a.{namespace}:80");
    for round in 0..ROUNDS {
        let job = format!("round-{round}");
        cluster.apply(&shop::callers(namespace, &job, AT_ONCE, &to))?;
        let job = format!("job/{job}");
        let wait = ["wait", "--for=condition=Complete", "--timeout=180s", &job];
        cluster.kubectl(&[&["-n", namespace], &wait[..]].concat())?;
        cluster.kubectl(&["-n", namespace, "delete", &job, "--wait=true"])?;
    }
    let answered = none_failed("calls", calls)?;
    let mut after = descriptors()?;
    let settled = wait_for(
        "the descriptors of pods that have left",
        Duration::from_secs(60),
        || {
            after = descriptors()?;
            Ok(after <= before + 20)
        },
    );
    settled.map_err(|error| error.context(format!("{before} before, {after} after")))?;
    Ok(format!(
        "{} pods, {answered} calls, none failed; {before} descriptors before, {after} after",
        AT_ONCE * ROUNDS
    ))
}

fn node_reboot(cluster: &Cluster) -> Result<String> {
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
