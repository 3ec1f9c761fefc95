//! Pods that come and go, and kinds of pods.

use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::super::commands::{Cluster, name, wait_for};
use super::super::shop;
use super::config_dump;
use super::pairs::{Pairs, SERVERS, Strangers, none_failed};

/// The number of pods that are created at once.
const NEW_PODS: usize = 100;

pub(super) fn new_pods(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-new-pods")?;
    let namespace = &pairs.namespace.name;
    let to = format!("server-a.{namespace}:80");
    let began = Instant::now();
    cluster.apply(&shop::callers(namespace, "callers", NEW_PODS, &to))?;
    cluster.wait(
        namespace,
        "job/callers",
        "condition=Complete",
        Duration::from_secs(300),
    )?;
    let took = began.elapsed();
    let pods = cluster.get(&["pods", "-n", namespace, "-l", "job-name=callers"])?;
    let restarted: Vec<String> = pods
        .iter()
        .filter(|pod| pod["status"]["containerStatuses"][0]["restartCount"] != 0)
        .filter_map(name)
        .collect();
    ensure!(pods.len() == NEW_PODS, "{} pods", pods.len());
    if !restarted.is_empty() {
        bail!("restarted: {}", reasons(cluster, namespace, &restarted));
    }
    Ok(format!(
        "{NEW_PODS} pods, 0 restarts, {:.0} s",
        took.as_secs_f64()
    ))
}

/// The largest number of lines of one proxy that an error shows.
const MAX_LINES: usize = 400;

/// Servers leave the mesh and come back, while clients inside and outside of the mesh call them.
pub(super) fn leaving(cluster: &Cluster) -> Result<String> {
    const ROUNDS: usize = 6;
    let pairs = Pairs::new(cluster, "zt-leaving")?;
    let strangers = Strangers::new(cluster, "zt-strangers")?;
    let inside = pairs.start("--seconds 40 --callers 2 --pause 2")?;
    let outside = strangers.start(&pairs, "--seconds 40 --callers 2 --pause 2")?;
    thread::sleep(Duration::from_secs(3));
    for _ in 0..ROUNDS {
        for mode in ["none", "ambient"] {
            for server in SERVERS {
                let label = format!("istio.io/dataplane-mode={mode}");
                let pod = pairs.pod(server)?;
                let namespace = &pairs.namespace.name;
                cluster.kubectl(&["-n", namespace, "label", "--overwrite", "pod", &pod, &label])?;
            }
            thread::sleep(Duration::from_millis(1500));
        }
    }
    let inside = none_failed("from the mesh", inside);
    let outside = none_failed("from outside the mesh", outside);
    let (inside, outside) = match (inside, outside) {
        (Ok(inside), Ok(outside)) => (inside, outside),
        (inside, outside) => {
            let errors = [inside.err(), outside.err()];
            let errors = errors
                .into_iter()
                .flatten()
                .map(|error| format!("{error:#}"));
            let errors: Vec<String> = errors.collect();
            bail!("{}{}", errors.join("; "), log_around(cluster, &errors));
        }
    };
    Ok(format!(
        "{} times, {inside} from the mesh and {outside} from outside, none failed",
        ROUNDS * SERVERS.len()
    ))
}

/// The lines of the proxies' logs of the seconds that a text names.
fn log_around(cluster: &Cluster, texts: &[String]) -> String {
    let is_time = |word: &&str| word.len() == 12 && word.matches(':').count() == 2;
    let words = texts.iter().flat_map(|text| text.split([' ', '"']));
    let seconds: BTreeSet<&str> = words
        .filter(is_time)
        .filter_map(|word| word.get(..8))
        .collect();
    let mut found = String::new();
    for log in cluster
        .nodes
        .iter()
        .filter_map(|node| cluster.proxy_log(node).ok())
    {
        let lines = log
            .lines()
            .filter(|line| seconds.iter().any(|second| line.contains(second)));
        for line in lines.take(MAX_LINES) {
            found.push_str(&format!("\n    {line}"));
        }
    }
    found
}

/// Why the containers of these pods have ended before: the ends of their logs, and what the proxies say
/// about the pods.
fn reasons(cluster: &Cluster, namespace: &str, pods: &[String]) -> String {
    let mut reasons = String::new();
    let logs: Vec<String> = cluster
        .nodes
        .iter()
        .filter_map(|node| cluster.proxy_log(node).ok())
        .collect();
    for pod in pods {
        let previous = cluster.kubectl(&["-n", namespace, "logs", "--previous", pod]);
        let said = previous.unwrap_or_else(|error| format!("{error:#}"));
        reasons.push_str(&format!("\n{pod}: {}", said.trim()));
        let lines = logs.iter().flat_map(|log| log.lines());
        for line in lines.filter(|line| line.contains(pod.as_str())) {
            reasons.push_str(&format!("\n    {line}"));
        }
    }
    reasons
}

/// What a proxy holds for its node.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    descriptors: u64,
    memory_mib: u64,
    pods: usize,
    /// Entries of the fast path in the kernel.
    entries: u64,
}

impl Footprint {
    fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        let process = cluster.proxy_process(node)?;
        let number = |command: &str| -> Result<u64> {
            let shown = cluster.on_node(node, command)?;
            shown.trim().parse().context(shown)
        };
        let dump = config_dump(cluster, node)?;
        let counts = &dump["direct"]["counts"];
        let entries = ["calls", "arrivals"].map(|kind| counts[kind].as_u64().unwrap_or(0));
        let pods = dump["workloadState"].as_object();
        Ok(Self {
            descriptors: number(&format!("ls /proc/{process}/fd | wc -l"))?,
            memory_mib: number(&format!(
                "awk '/^VmRSS/ {{print $2}}' /proc/{process}/status"
            ))? / 1024,
            pods: pods.context("no pods in the dump")?.len(),
            entries: entries.iter().sum(),
        })
    }

    /// Whether nothing is left of the pods that were there in the meantime. A few descriptors are of
    /// connections that end later, and the memory of the allocator does not go back to the kernel.
    fn is_as(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors + 20
            && self.memory_mib <= before.memory_mib + 24
            && self.pods == before.pods
            && self.entries <= before.entries
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            descriptors,
            memory_mib,
            pods,
            entries,
        } = self;
        write!(
            f,
            "{descriptors} descriptors, {memory_mib} MiB, {pods} pods, {entries} entries"
        )
    }
}

pub(super) fn pod_churn(cluster: &Cluster) -> Result<String> {
    const AT_ONCE: usize = 25;
    const ROUNDS: usize = 8;
    let pairs = Pairs::new(cluster, "zt-churn")?;
    let namespace = &pairs.namespace.name;
    let node = &cluster.nodes[1];
    let before = Footprint::of(cluster, node)?;
    let calls = pairs.start("--seconds 150 --callers 1 --pause 20")?;
    let to = format!("server-a.{namespace}:80");
    for round in 0..ROUNDS {
        let job = format!("round-{round}");
        cluster.apply(&shop::callers(namespace, &job, AT_ONCE, &to))?;
        let job = format!("job/{job}");
        cluster.wait(
            namespace,
            &job,
            "condition=Complete",
            Duration::from_secs(180),
        )?;
        cluster.kubectl(&["-n", namespace, "delete", &job, "--wait=true"])?;
    }
    let answered = none_failed("calls", calls)?;
    let mut after = Footprint::of(cluster, node)?;
    let settled = wait_for("the end of what pods left", Duration::from_secs(60), || {
        after = Footprint::of(cluster, node)?;
        Ok(after.is_as(&before))
    });
    settled.map_err(|error| error.context(format!("before: {before}; after: {after}")))?;
    Ok(format!(
        "{} pods, {answered}, none failed; before: {before}; after: {after}",
        AT_ONCE * ROUNDS
    ))
}
