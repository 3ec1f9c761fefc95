//! Commands on the cluster.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::MESH;
use crate::sniff::Sniffer;
use crate::traffic::calls::{MARKER, Report};

/// The cluster that `kubectl` is configured for.
#[derive(Debug)]
pub struct Cluster {
    /// The names of the nodes, sorted.
    pub nodes: Vec<String>,
}

impl Cluster {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// When `kubectl` is missing, reaches no cluster, or the node proxy of the mesh is not ready.
    pub fn connect() -> Result<Self> {
        let nodes = json("kubectl", &["get", "nodes", "-o", "json"])
            .context("no cluster answers (KUBECONFIG); `cargo xtask kind up` makes one")?;
        let mut nodes: Vec<String> = items(&nodes).iter().filter_map(name).collect();
        nodes.sort();
        let cluster = Self { nodes };
        ensure!(
            cluster.nodes.len() >= 2,
            "the checks need two nodes, and the cluster has {:?}",
            cluster.nodes
        );
        cluster
            .rolled_out(MESH, "daemonset/ztunnel", Duration::from_secs(120))
            .context("the DaemonSet ztunnel is not ready")?;
        Ok(cluster)
    }

    /// Runs `kubectl`. Returns its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run("kubectl", arguments)
    }

    /// The objects that `kubectl get` lists.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        let found = json("kubectl", &all)?;
        Ok(match found.get("items") {
            Some(_) => items(&found),
            None => vec![found],
        })
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = Command::new("kubectl")
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        stdin.write_all(manifests.as_bytes())?;
        drop(stdin);
        let status = child.wait().context("waiting for kubectl")?;
        ensure!(status.success(), "kubectl apply failed for:\n{manifests}");
        Ok(())
    }

    /// Waits until a workload is rolled out.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn rolled_out(&self, namespace: &str, workload: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", workload, &timeout])?;
        Ok(())
    }

    /// Waits until an object meets a condition of `kubectl wait --for`.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait(
        &self,
        namespace: &str,
        object: &str,
        condition: &str,
        limit: Duration,
    ) -> Result<()> {
        let condition = format!("--for={condition}");
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.kubectl(&["-n", namespace, "wait", object, &condition, &timeout])?;
        Ok(())
    }

    /// Runs a command in a pod. Returns its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut all = vec!["-n", namespace, "exec", pod, "--"];
        all.extend(command);
        self.kubectl(&all)
    }

    /// Starts calls in a pod. See [`calls::Plan`](crate::traffic::calls::Plan) for the flags.
    #[must_use]
    pub fn calls(&self, namespace: &str, pod: &str, flags: &[&str]) -> RunningCalls {
        let mut all = vec!["-n", namespace, "exec", pod, "--"];
        all.extend(["/usr/local/bin/traffic", "calls"]);
        all.extend(flags);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let calling = thread::spawn(move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let output = run("kubectl", &all)?;
            serde_json::from_str(&output).with_context(|| format!("no report in {output:?}"))
        });
        RunningCalls(calling)
    }

    /// The pod with the label `app`, of those that are not being deleted.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod_of(&self, namespace: &str, app: &str) -> Result<String> {
        let selector = format!("app={app}");
        let pods = self.get(&["pods", "-n", namespace, "-l", &selector])?;
        let alive = pods
            .iter()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        alive
            .and_then(name)
            .with_context(|| format!("no pod of {app} in {namespace}"))
    }

    /// Forwards a port of this machine to a port of a pod while `work` runs with its address.
    ///
    /// # Errors
    /// When `kubectl port-forward` does not start, or `work` fails.
    pub fn port_forward<T>(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        work: impl FnOnce(SocketAddr) -> Result<T>,
    ) -> Result<T> {
        let mut child = Command::new("kubectl")
            .args(["-n", namespace, "port-forward", pod, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        let forwarded = || {
            let stdout = child.stdout.take().context("kubectl has no output")?;
            // kubectl ends if it cannot write.
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            stdout.read_line(&mut line)?;
            // "Forwarding from 127.0.0.1:40000 -> 8080"
            let address = line.split_whitespace().nth(2);
            let address = address.and_then(|address| address.parse().ok());
            work(address.with_context(|| format!("kubectl port-forward: {line:?}"))?)
        };
        let result = forwarded();
        child.kill().and_then(|()| child.wait())?;
        result
    }

    /// The pod of the node proxy on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn proxy_on(&self, node: &str) -> Result<String> {
        let selector = format!("spec.nodeName={node},status.phase=Running");
        let fields = ["--field-selector", &selector, "-l", "app=ztunnel"];
        let pods = self.get(&[&["pods", "-n", MESH], &fields[..]].concat())?;
        let alive = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut names: Vec<String> = alive.filter_map(name).collect();
        names
            .pop()
            .with_context(|| format!("no ztunnel pod runs on {node}"))
    }

    /// The log of the node proxy on a node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn proxy_log(&self, node: &str) -> Result<String> {
        let pod = self.proxy_on(node)?;
        self.kubectl(&["-n", MESH, "logs", &pod])
    }

    /// Runs a command on a node that is a container of Docker.
    ///
    /// # Errors
    /// When it fails.
    pub fn on_node(&self, node: &str, command: &str) -> Result<String> {
        run("docker", &["exec", node, "sh", "-c", command])
    }

    /// Listens on the link of a node that is a container of Docker on this machine.
    ///
    /// # Errors
    /// When it is not, or without the privilege.
    pub fn sniffer(&self, node: &str) -> Result<Sniffer> {
        let pid = run("docker", &["inspect", "-f", "{{.State.Pid}}", node])?;
        Sniffer::beside_process(pid.trim().parse()?, "eth0", MARKER.as_bytes())
    }

    /// The process id of the node proxy on a node, in the node's pid namespace.
    ///
    /// # Errors
    /// When it does not run.
    pub fn proxy_process(&self, node: &str) -> Result<String> {
        let found = self.on_node(node, "pgrep -f '^/usr/local/bin/ztunnel proxy' | head -1")?;
        let pid = found.trim().to_owned();
        ensure!(!pid.is_empty(), "no process of ztunnel on {node}");
        Ok(pid)
    }

    /// Makes a namespace whose pods are in the mesh, or outside of it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn namespace(&self, name: &str, membership: Membership) -> Result<Namespace<'_>> {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"
        ))?;
        let namespace = Namespace {
            cluster: self,
            name: name.to_owned(),
        };
        namespace.set_membership(membership)?;
        Ok(namespace)
    }
}

/// Whether the pods of a namespace are in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// They are.
    InMesh,
    /// They are not.
    Outside,
}

/// A namespace, deleted with everything in it when this value is dropped.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Namespace<'_> {
    /// Takes the pods into the mesh, or out of it.
    ///
    /// # Errors
    /// When the label cannot be changed.
    pub fn set_membership(&self, membership: Membership) -> Result<()> {
        let label = match membership {
            Membership::InMesh => "istio.io/dataplane-mode=ambient",
            Membership::Outside => "istio.io/dataplane-mode-",
        };
        let namespace = ["label", "--overwrite", "namespace", &self.name, label];
        self.cluster.kubectl(&namespace).map(drop)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let delete = [
            "delete",
            "namespace",
            &self.name,
            "--wait=true",
            "--timeout=90s",
        ];
        if let Err(error) = self.cluster.kubectl(&delete) {
            eprintln!("the namespace {} is left: {error:#}", self.name);
        }
    }
}

/// Calls that run in a pod.
#[derive(Debug)]
pub struct RunningCalls(thread::JoinHandle<Result<Report>>);

impl RunningCalls {
    /// Waits for the end of the calls.
    ///
    /// # Errors
    /// When they did not run.
    pub fn report(self) -> Result<Report> {
        match self.0.join() {
            Ok(report) => report,
            Err(_) => bail!("the thread of the calls panicked"),
        }
    }
}

/// Runs a program. Returns its standard output.
///
/// # Errors
/// When it is missing or fails; the error has the end of its standard error.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    if !status.success() {
        let errors = String::from_utf8_lossy(&stderr);
        let end: Vec<&str> = errors.lines().rev().take(5).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!(
            "{program} {}: {status}: {}",
            arguments.join(" "),
            end.join("; ")
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn json(program: &str, arguments: &[&str]) -> Result<Value> {
    let text = run(program, arguments)?;
    serde_json::from_str(&text).with_context(|| format!("{program} printed no JSON"))
}

fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().cloned().unwrap_or_default()
}

/// The name of an object.
pub(super) fn name(object: &Value) -> Option<String> {
    object["metadata"]["name"].as_str().map(str::to_owned)
}

/// Waits until `met` returns true.
///
/// # Errors
/// When that takes longer than `limit`, or `met` fails at the end.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    mut met: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let result = met();
        if matches!(result, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            result.with_context(|| format!("waiting for {what}"))?;
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(500));
    }
}
